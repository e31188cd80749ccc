"""Every file and folder of this repository that a page names exists, and every relative link leads to a file."""

import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md", *(ROOT / "docs").glob("*.md")]
MODULE = re.compile(r"(?<![\w/.<>*-])(?:[\w-]+/)*[\w-]*[a-z_]\.py\b")
"""`trainer.py` or `training/trainer.py`; the placeholder NAME.py has no lower-case letter."""
IN_A_FOLDER = re.compile(r"(?<![\w/.<>-])(?:pipeline|jobs|tests|benchmarks|docs|deploy)/(?:[\w.*-]+/?)*")
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


def missing(page: Path, text: str) -> list[str]:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    files = [f"/{name}" for name in tracked]
    modules = {name for name in MODULE.findall(text) if not any(file.endswith(f"/{name}") for file in files)}
    paths = {path.rstrip(".,") for path in IN_A_FOLDER.findall(text) if "NAME" not in path}
    absent = {path for path in paths if not any(ROOT.glob(path.rstrip("/")))}
    links = {link for link in LINK.findall(text) if not (page.parent / link).exists()}
    return sorted(modules | absent | links)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_name_files_that_exist(page):
    assert missing(page, page.read_text()) == []


def test_a_file_that_is_gone_is_found():
    text = "`pipeline/lost.py`, lost.py, deploy/lost, [page](lost.md), docs/*.md, `training/trainer.py`, NAME.py"
    assert missing(ROOT / "README.md", text) == ["deploy/lost", "lost.md", "lost.py", "pipeline/lost.py"]

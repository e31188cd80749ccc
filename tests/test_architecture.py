"""The shape of the house: which folder may import which, and how large a file may be."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])
HOUSE = (
    *("errors", "schema", "progress", "log"),
    *("config", "diffusion", "models", "metrics", "images", "storage", "cluster", "task_pool"),
    *("ingest", "model_store", "training", "generation", "evaluation", "nightly", "operations", "report", "analysis"),
    "jobs",
)
"""A folder imports only folders that stand earlier in this list. README and docs/architecture.md show the same list."""
RAY = re.compile(
    r"cluster|task_pool|(training|generation)/distributed/\w+|\w+/driver|evaluation/memorisation/driver"
    r"|evaluation/(extractor|likelihood)|operations/(cluster_info|doctor|jobs_client|package)"
)
"""Modules that may import Ray: joining a cluster, fan-out, drivers, and files that run or describe Ray tasks."""
NO_TORCH = {"errors", "schema", "progress", "log", "config", "storage", "ingest"}
NO_TORCH_IN_PROCESS = (
    *("training.distributed.shard_reader", "training.distributed.scheduler_throttle"),
    *("training.distributed.coordinator", "ingest.phases"),
)
STORAGE_CLIENTS = {"fsspec", "s3fs"}
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 40
FORBIDDEN_WORDS = ("utils", "helpers", "common", "misc")
OLD_WORDS = (
    *("stages", "engine", "assignment", "placement", "placing", "preparing", "planning", "promotion", "nights"),
    *("refusals", "signatures", "board", "control", "fitting", "room", "keeper", "recorder", "lanes", "unhurried"),
    *("rounds", "telemetry", "sketching", "extracting", "bounding", "ranking", "picturing", "gathering", "judging"),
    *("registering", "comparing", "mirroring", "hooks", "survey", "part", "neighbouring", "memorised", "patience"),
    *("holder", "zone", "one_core", "anchors", "packing", "exact", "coverage", "paired", "running"),
)
"""Module names that had to be explained; none of them comes back."""


def folder(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "jobs" if parts[0] == "jobs" else parts[1]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative imports hide the direction"
            whole = node.module == "pipeline"  # from pipeline import folder
            found |= {f"pipeline.{alias.name}" for alias in node.names} if whole else {node.module}
    return found


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_folder_has_its_place_in_the_house():
    assert {folder(path) for path in FILES} - {"__init__"} <= set(HOUSE)
    assert {place for place in HOUSE if not (ROOT / "pipeline" / place).exists()} - {"jobs"} == {
        path.stem for path in (ROOT / "pipeline").glob("*.py") if path.stem != "__init__"
    }


@pytest.mark.parametrize("path", FILES, ids=named)
def test_a_folder_imports_only_folders_earlier_in_the_list(path):
    here = folder(path)
    if here == "__init__":
        return
    for module in imports(path):
        parts = module.split(".")
        if parts[0] == "pipeline" and len(parts) > 1 and parts[1] != "__version__":
            assert HOUSE.index(parts[1]) <= HOUSE.index(here), f"{here} may not import {module}"


@pytest.mark.parametrize("path", FILES, ids=named)
def test_ray_torch_and_storage_clients_stay_where_they_belong(path):
    tops = {module.split(".")[0] for module in imports(path)}
    inside = path.relative_to(ROOT / "pipeline").with_suffix("") if folder(path) != "jobs" else Path("jobs")
    assert "ray" not in tops or RAY.fullmatch(inside.as_posix()), "ray may not be imported here"
    assert not tops & STORAGE_CLIENTS or folder(path) == "storage", "only storage/ opens a URI"
    assert "torch" not in tops or folder(path) not in NO_TORCH, f"{folder(path)} stays free of torch"


@pytest.mark.parametrize("path", FILES, ids=named)
def test_an_underscore_makes_a_name_private_to_its_module(path):
    """So no module needs a list of its public names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("pipeline", "jobs")):
            assert not [
                alias.name for alias in node.names if alias.name.startswith("_") and alias.name != "__version__"
            ]
        assert not (isinstance(node, ast.Name) and node.id == "__all__"), "the underscore says which names are public"


@pytest.mark.parametrize("path", FILES, ids=named)
def test_files_and_functions_stay_small(path):
    source = path.read_text()
    assert len(source.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= MAX_FUNCTION_LINES, f"{node.name} is too long"


@pytest.mark.parametrize("module", NO_TORCH_IN_PROCESS)
def test_a_process_that_computes_nothing_imports_no_torch(module):
    """The import costs seconds and 200 MB in each such process."""
    code = f"import pipeline.{module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_verbs_are_parse_config_one_driver():
    shared = {"__init__.py", "__main__.py", "command.py"}
    for path in (ROOT / "jobs").glob("*.py"):
        if path.name not in shared:
            assert len(path.read_text().splitlines()) <= 40, f"{path.name}: a verb is at most 40 lines"


def test_names_say_what_is_inside():
    for path in FILES:
        assert not any(word in path.stem.split("_") for word in FORBIDDEN_WORDS), path
        assert path.stem not in OLD_WORDS, path
        assert path.parent.name not in OLD_WORDS, path


def test_notices_go_through_the_logger():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            called = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id
            assert called != "print", f"{path}:{node.lineno} prints: use logging, or write_out for results"


def test_only_the_store_builds_filesystems():
    builders = ("S3FileSystem", "LocalFileSystem", "PyFileSystem", "fsspec.filesystem")
    for path in FILES:
        if folder(path) != "storage":
            assert not any(word in path.read_text() for word in builders), path


def test_no_global_randomness():
    """Noise is a function of a key; a global generator would make a sample depend on what ran before it."""
    allowed = {"Generator", "Philox", "SeedSequence", "default_rng"}  # objects that carry their own key
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("np.random", "numpy.random", "random"):
                assert node.attr in allowed, f"{path}:{node.lineno} {ast.unparse(node)}"
            if isinstance(node, ast.Attribute) and ast.unparse(node) in (
                "torch.manual_seed",
                "torch.random.manual_seed",
            ):
                raise AssertionError(f"{path}:{node.lineno} seeds the global generator")

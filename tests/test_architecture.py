"""The shape of the house: who may import whom, and how large a room may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])
BASE = {
    *("section", "config", "config_generation", "config_ingest", "config_nightly", "config_sources"),
    *("config_evaluation", "config_memorisation"),
    *("errors", "refusals", "schema"),
    *("signatures", "manifests", "sample_manifests", "progress", "planning", "placement", "assignment", "requests"),
    *("forecast", "promotion", "nights", "cron", "zone", "config_operations", "diagnosis", "submission"),
}
PURE = {"diffusion", "models", "metrics"}
MAY_IMPORT = {
    **dict.fromkeys(BASE, BASE),
    **{name: {name} | BASE for name in PURE},
    "engine": {"engine"} | PURE | BASE,
    "storage": {"storage"} | PURE | BASE,
    "report": {"report"} | PURE | BASE,
    "stages": {"stages", "engine", "storage", "report"} | PURE | BASE,
    "jobs": {"jobs", "stages", "engine", "storage", "report"} | PURE | BASE,
}
ONLY_IN = {"ray": {"stages"}, "fsspec": {"storage"}, "s3fs": {"storage"}}
NO_TORCH = BASE
STAGE_PARTS = {
    *("cluster", "train_worker", "board", "control", "fitting", "room", "keeper", "recorder"),
    *("lanes", "lane_reader", "unhurried"),
    *("shard_actor", "job_plan", "rounds", "telemetry", "sketching", "extracting", "bounding", "sweep_points"),
    *("fan_out", "ingest_phases", "preparing", "placing", "scheduler", "survey", "neighbouring", "memorised"),
    *("job_client", "job_log", "job_package"),
    *("registering", "comparing", "mirroring", "night_run", "night_work", "night_watch", "hooks"),
    *("part", "run_part", "sample_part", "gathering", "side_by_side", "picturing", "ranking", "analysing"),
}
"""Modules of stages/ that serve one or more stages; a stage itself imports no other stage."""
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 40
FORBIDDEN_WORDS = ("utils", "helpers", "common", "misc")


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return "jobs" if parts[0] == "jobs" else parts[1]


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative imports hide the direction"
            found.add(node.module)
    return found


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=named)
def test_imports_go_downward_only(path):
    here = room(path)
    if here == "__init__":
        return
    for module in imports(path):
        parts = module.split(".")
        if parts[0] == "pipeline" and len(parts) > 1:
            assert parts[1] in MAY_IMPORT[here], f"{here} may not import {module}"
        assert here in ONLY_IN.get(parts[0], {here}), f"{module} may only be imported in {ONLY_IN.get(parts[0])}"
        assert not (here in NO_TORCH and parts[0] == "torch"), f"{here} stays free of torch"


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline" / "stages").glob("*.py")), ids=named)
def test_stages_do_not_import_each_other(path):
    used = {module.split(".")[2] for module in imports(path) if module.startswith("pipeline.stages.")}
    assert used <= STAGE_PARTS


@pytest.mark.parametrize("path", FILES, ids=named)
def test_files_and_functions_stay_small(path):
    source = path.read_text()
    assert len(source.splitlines()) <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno + 1 <= MAX_FUNCTION_LINES, f"{node.name} is too long"


@pytest.mark.parametrize("module", ["lane_reader", "unhurried", "ingest_phases", "board"])
def test_a_process_that_computes_nothing_imports_no_torch(module):
    """It costs seconds and 200 MB in each of them."""
    code = f"import pipeline.stages.{module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_verbs_are_parse_config_one_stage():
    shared = {"__init__.py", "__main__.py", "command.py"}
    for path in (ROOT / "jobs").glob("*.py"):
        if path.name not in shared:
            assert len(path.read_text().splitlines()) <= 40, f"{path.name}: a verb is at most 40 lines"


def test_names_say_what_is_inside():
    for path in FILES:
        assert not any(word in path.stem.split("_") for word in FORBIDDEN_WORDS), path


def test_only_the_store_builds_filesystems():
    builders = ("S3FileSystem", "LocalFileSystem", "PyFileSystem", "fsspec.filesystem")
    for path in FILES:
        if room(path) != "storage":
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

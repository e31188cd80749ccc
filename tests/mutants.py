"""Would the tests notice a wrong formula? Break `pipeline/diffusion` in one place at a time and see.

    python tests/mutants.py [--only schedule,forward_process] [--jobs 2] [--list]

Each mutant is one edit of one syntax tree: a number or a term tripled, a term or a factor dropped, an operator or a
pair of coefficients swapped, a function left out. The tree is compiled in memory (no file is touched) in a fork of a
process that has already imported torch, and the diffusion unit and oracle tests run on it until the first red one.
A mutant that leaves them green survives. Exit 1 if any does that `EQUIVALENT` does not list with a reason.
"""

import argparse
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mutations import Mutant, module_names, mutants_of

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
DEADLINE_SECONDS = 120

# The test files that speak most directly about a module go first; all others follow.
SAMPLING = ["unit/diffusion/test_sampler.py", "oracle/test_diffusion_gaussian.py", "oracle/test_diffusion_diffusers.py"]
NEAREST = {
    "clipping": ["unit/diffusion/test_reverse_process.py"],
    **dict.fromkeys(("timestep_grid", "sampler", "ancestral", "ddim", "dpm_solver", "heun"), SAMPLING),
}

# (module, source of the line, mutation) -> why no test can tell.
EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "schedule",
        "return _betas_of(((u + s) / (1.0 + s) * (math.pi / 2)).cos() ** 2)",
        "((u + s) / (1.0 + s) * (math.pi / 2)).cos() ** 2: tripled",
    ): "betas are ratios of alpha_bars: a constant factor cancels",
    (
        "variational_bound",
        "_EDGE = 1.0 - 1e-3  # a larger |x_0| is level 0 or 255, also after rounding errors",
        "0.001 -> 0.003",
    ): "the outermost levels are 0.0078 from their neighbours",
    (
        "variational_bound",
        "return torch.where(x_0.abs() > _EDGE, outer, inner)",
        "x_0.abs() > _EDGE: operator swapped",
    ): "no grey level lies at the threshold",
    ("noise", "word = _words(key, ids, step, 1)[0]", "1 -> 3"): "later blocks are made and not used",
}


class Replacing(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from a mutant's tree; every other import is left to the rest of the system."""

    def __init__(self, mutant: Mutant) -> None:
        self.name, self.tree = f"pipeline.diffusion.{mutant.module}", mutant.tree

    def find_spec(self, fullname, path, target=None):
        if fullname != self.name:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def exec_module(self, module) -> None:
        exec(compile(self.tree, f"<mutant of {self.name}>", "exec"), module.__dict__)


def test_modules(module: str) -> list[Path]:
    """The nearest tests of a module, then all the others."""
    unit, oracle = (TESTS / "unit/diffusion").glob("test_*.py"), (TESTS / "oracle").glob("test_diffusion_*.py")
    everything = [*sorted(unit), *sorted(oracle)]
    nearest = [TESTS / p for p in NEAREST.get(module, [f"unit/diffusion/test_{module}.py"] if module else [])]
    return nearest + [p for p in everything if p not in nearest]


def cases(function: Callable[..., None]) -> Iterator[dict[str, Any]]:
    """The keyword arguments of each case that `pytest.mark.parametrize` gives a test function."""
    axes = []
    for mark in getattr(function, "pytestmark", []):
        if mark.name == "parametrize":
            names, values = mark.args
            names = [n.strip() for n in names.split(",")] if isinstance(names, str) else list(names)
            axes.append([dict(zip(names, v if len(names) > 1 else [v], strict=True)) for v in values])
    for combination in itertools.product(*axes):
        yield {name: value for part in combination for name, value in part.items()}


def run_tests(module: str) -> int:
    """Run the tests in this process until one is red; how many were green. pytest itself costs a second a mutant."""
    passed = 0
    for path in test_modules(module):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        tests = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(tests)
        for name, function in vars(tests).items():
            if name.startswith("test_"):
                for arguments in cases(function):
                    function(**arguments)
                    passed += 1
    return passed


def run_in_fork(mutant: Mutant | None) -> int:
    """Start a child that exits 0 if the tests stay green; returns its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        if mutant is None:
            print(f"{run_tests('')} tests are green without any mutation", flush=True)
        else:
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            sys.meta_path.insert(0, Replacing(mutant))
            run_tests(mutant.module)
        code = 0
    except BaseException:
        if mutant is None:
            traceback.print_exc()
    finally:
        os._exit(code)


def survivors(mutants: list[Mutant], jobs: int) -> list[Mutant]:
    """Run all mutants, `jobs` at a time; those whose tests stayed green."""
    running: dict[int, tuple[Mutant, float]] = {}
    alive, queue = [], list(mutants)
    while queue or running:
        while queue and len(running) < jobs:
            mutant = queue.pop(0)
            running[run_in_fork(mutant)] = (mutant, time.monotonic())
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            mutant, _ = running.pop(pid)
            if os.waitstatus_to_exitcode(status) == 0:
                alive.append(mutant)
                print(f"  survives: {mutant.module}.py:{mutant.line}  {mutant.what}\n      {mutant.source}", flush=True)
            continue
        for pid, (_, started) in running.items():
            if time.monotonic() - started > DEADLINE_SECONDS:  # an endless loop is a red test
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return alive


def prepare() -> None:
    """Import once what every child needs; nothing of pipeline.diffusion."""
    import diffusers
    import pytest  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch

    import pipeline.config.root  # noqa: F401

    _ = diffusers.DDPMScheduler, diffusers.DDIMScheduler, diffusers.DPMSolverMultistepScheduler
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    gc.freeze()
    gc.disable()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="modules, comma separated")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--list", action="store_true", help="print the mutants, run nothing")
    options = parser.parse_args()
    modules = options.only.split(",") if options.only else module_names()
    mutants = [mutant for module in modules for mutant in mutants_of(module)]
    if options.list:
        print(*(f"{m.module}.py:{m.line}  {m.what}" for m in mutants), sep="\n")
        return 0
    sys.path.insert(0, str(ROOT))
    os.chdir(ROOT)
    prepare()
    if os.waitstatus_to_exitcode(os.waitpid(run_in_fork(None), 0)[1]) != 0:
        return 1
    started = time.monotonic()
    alive = survivors(mutants, options.jobs)
    excused = [m for m in alive if m.key in EQUIVALENT]
    print(
        f"{len(mutants)} mutants, {len(mutants) - len(alive)} killed, {len(excused)} equivalent, "
        f"{len(alive) - len(excused)} survive, {time.monotonic() - started:.0f} s"
    )
    return 1 if len(alive) > len(excused) else 0


if __name__ == "__main__":
    sys.exit(main())

"""`ddpm generate` against the bare sampling loop and against diffusers: same network, same weights, same steps.

    python benchmarks/generate.py [--quick] [--json] [--check] [--save]

The contenders make images in turn, round after round:

    bare       two processes of one thread: the sampling loop alone, without Ray, encoding or writing
    pipeline   `generate` with two actors: plan, Ray Data, PNG, Parquet, markers, seal, on local files
    diffusers  DDIMPipeline on the same model folder, its default threads and output (a quarter of the images)
    divided    the same in two processes of one thread, not diffusers' default: for information

Then the pipeline makes ten times as many (five times with --quick), for the cost of a sample in a large samples folder.
Method: README.md.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from digits_model import digits_config, train_digits
from outcome import parsed, tell
from steady import CpuClock, Steady, steady

from pipeline.cluster import cluster
from pipeline.config.generation import GenerateConfig
from pipeline.config.root import Config
from pipeline.config.storage import StorageConfig
from pipeline.generation.driver import generate
from pipeline.generation.generator import ShardGenerator
from pipeline.generation.make_plan import make_plan
from pipeline.model_store.load_model import find_model, load_unet
from pipeline.models.cpu import compute_on_one_core
from pipeline.storage.store import resolve

BARE_BAR, DIFFUSERS_BAR, COST_BAR = 0.95, 1.4, 0.03
ACTORS, SHARD, BATCH, STEPS = 2, 256, 256, 10
WIDTHS = (32, 64)  # the demo's network
Maker = Callable[[range], tuple[float, float]]


def settings(num_samples: int) -> GenerateConfig:
    return GenerateConfig(
        num_samples=num_samples, sampler="ddim", steps=STEPS, batch_size=BATCH, shard_size=SHARD, seed=7
    )


def bare(folder: str) -> Maker:
    """The sampling loop on shards of samples, in a process with the settings of an actor."""
    compute_on_one_core()
    found = find_model(folder, "ema", StorageConfig())
    generator = ShardGenerator(
        load_unet(found, StorageConfig()), make_plan(settings(2**40), found), torch.device("cpu")
    )

    def make(shards: range) -> None:
        for shard in shards:
            generator.shard(range(shard * SHARD, (shard + 1) * SHARD))

    return timed(make)


def diffusers(folder: str) -> Maker:
    from diffusers import DDIMPipeline

    pipeline = DDIMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)

    def make(shards: range) -> None:
        for _ in range(0, len(shards) * SHARD, BATCH):
            pipeline(batch_size=BATCH, num_inference_steps=STEPS)

    return timed(make)


def one_thread_diffusers(folder: str) -> Maker:
    torch.set_num_threads(1)
    return diffusers(folder)


def timed(make: Callable[[range], None]) -> Maker:
    def run(shards: range) -> tuple[float, float]:
        wall, cpu = time.monotonic(), time.process_time()
        make(shards)
        return time.monotonic() - wall, time.process_time() - cpu

    return run


def serve(build: Callable[[str], Maker], folder: str, pipe: Connection) -> None:
    """A process that loads the model once, then makes the requested shards; answers (wall seconds, CPU seconds)."""
    make = build(folder)
    make(range(1))  # warm
    pipe.send("ready")
    while (shards := pipe.recv()) is not None:
        pipe.send(make(shards))


class Contender:
    """Processes that make equal shares of the shards at the same time."""

    def __init__(self, build: Callable[[str], Maker], folder: str, processes: int) -> None:
        context, self._pipes = get_context("spawn"), []
        for _ in range(processes):
            mine, theirs = context.Pipe()
            context.Process(target=serve, args=(build, folder, theirs), daemon=True).start()
            self._pipes.append(mine)
        for pipe in self._pipes:
            assert pipe.recv() == "ready"

    def run(self, num_shards: int) -> Steady:
        share = num_shards // len(self._pipes)
        for number, pipe in enumerate(self._pipes):
            pipe.send(range(number * share, (number + 1) * share))
        took = [pipe.recv() for pipe in self._pipes]
        images = share * len(self._pipes) * SHARD
        return Steady(images, max(wall for wall, _ in took), sum(cpu for _, cpu in took), 0.0)


def pipeline(folder: str, out: Path, num_samples: int) -> Steady:
    """One `generate` in this process's cluster."""
    config = Config.model_validate({"generate": settings(num_samples).model_dump(), "ray": {"workers": ACTORS}})
    began = time.time()
    with CpuClock() as clock:
        generate(config, folder, str(out))
    log = resolve(str(out), StorageConfig()).read("metrics/shards.parquet")
    return steady(pq.read_table(pa.BufferReader(log)), ACTORS, began, clock)


def told(**runs: Steady) -> None:
    parts = (f"{name} {run.rate:.1f} img/s {1000 * run.cost:.2f} ms" for name, run in runs.items())
    print(*parts, sep=", ", file=sys.stderr, flush=True)


def measure(folder: str, out: Path, rounds: int, small: int, large: int) -> dict[str, Any]:
    loops, theirs = Contender(bare, folder, ACTORS), Contender(diffusers, folder, 1)
    divided = Contender(one_thread_diffusers, folder, ACTORS)
    found: dict[str, list[Steady]] = {"bare": [], "pipeline": [], "diffusers": [], "divided": []}
    big = Steady(1, 1, 1, 0)
    for number in range(rounds):
        found["bare"].append(loops.run(small // SHARD))
        found["pipeline"].append(pipeline(folder, out / f"small-{number}", small))
        found["diffusers"].append(theirs.run(small // SHARD // 4))
        found["divided"].append(divided.run(small // SHARD // 4))
        if number == rounds // 2:  # in the middle, so that a drift of the machine cancels
            big = pipeline(folder, out / "large", large)
        told(**{name: runs[-1] for name, runs in found.items()}, **({"large": big} if number == rounds // 2 else {}))

    def over(name: str, of: Callable[[Steady], float]) -> float:
        return statistics.median(of(a) / of(b) for a, b in zip(found["pipeline"], found[name], strict=True))

    def middle(name: str, of: Callable[[Steady], float]) -> float:
        return statistics.median(map(of, found[name]))

    cost = big.cost / middle("pipeline", lambda run: run.cost) - 1
    values: dict[str, tuple[float, float | None, bool]] = {
        "pipeline_over_bare": (over("bare", lambda run: run.rate), BARE_BAR, True),
        "pipeline_over_diffusers": (over("diffusers", lambda run: run.rate), DIFFUSERS_BAR, True),
        "cost_large_over_small": (abs(cost), COST_BAR, False),
        "pipeline_over_divided": (over("divided", lambda run: run.rate), None, True),
        "cpu_bare_over_pipeline": (1 / over("bare", lambda run: run.cost), None, True),
        **{f"{name}_img_s": (middle(name, lambda run: run.rate), None, True) for name in found},
        **{f"{name}_cpu_ms_a_sample": (1000 * middle(name, lambda run: run.cost), None, True) for name in found},
        f"pipeline_img_s_at_{large}": (big.rate, None, True),
        f"pipeline_cpu_ms_a_sample_at_{large}": (1000 * big.cost, None, True),
        "pipeline_startup_seconds": (middle("pipeline", lambda run: run.startup), None, True),
    }
    return {name: judged(*entry) for name, entry in values.items()}


def judged(value: float, bar: float | None, more_is_better: bool) -> dict[str, Any]:
    ok = bar is None or (value >= bar if more_is_better else value <= bar)
    return {"value": round(float(value), 4), "bar": bar, "ok": bool(ok)}


def main() -> int:
    options = parsed(__doc__, "generate", quick="2,048 and 10,240 samples instead of 10,240 and 102,400")
    torch.set_num_threads(1)
    rounds, small, large = (3, 8 * SHARD, 40 * SHARD) if options.quick else (5, 40 * SHARD, 400 * SHARD)
    with tempfile.TemporaryDirectory() as temporary:
        folder = train_digits(digits_config(*WIDTHS, conditional=False), Path(temporary) / "model", steps=50)
        with cluster(Config().ray, ACTORS + 1):
            result = measure(folder, Path(temporary), rounds, small, large)
    print(
        f"{WIDTHS} channels, 8x8x1, DDIM {STEPS} steps, batch {BATCH}; {rounds} rounds of {small:,}, one of {large:,}"
    )
    return tell(options, "generate", result)


if __name__ == "__main__":
    sys.exit(main())

"""Overhead of bulk generation over the sampling loop: `generate` and two common ways with Ray. Method: README.md.

    python benchmarks/overhead.py [--quick] [--json] [--check] [--save]

The same network, sampler, shards and Parquet rows four ways in turn, round after round, on two actors of one thread:

    bare       two processes with only the sampling loop, without encoding and writing (the ceiling)
    pipeline   `generate`: plan, Ray Data, commit beside the loop, markers, seal
    raydata    `ray.data.range(shards).map_batches(...).write_parquet(...)`: one file a block, no plan, no markers
    pool       `ray.util.ActorPool`: each actor makes a shard, encodes it and writes its file, then takes the next

Rates are measured over the stretch in which both actors work, and over the whole run with its start (on a running
cluster). After a crash neither peer knows the complete files or makes each sample exactly once.
"""

import shutil
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from digits_model import digits_config, train_digits
from generate import ACTORS, SHARD, STEPS, WIDTHS, Contender, bare, pipeline, settings
from outcome import at_least, known, parsed, tell
from steady import CpuClock, Steady, steady

from pipeline.cluster import cluster
from pipeline.config.root import Config
from pipeline.config.storage import StorageConfig
from pipeline.generation.generator import ShardGenerator, sample_table
from pipeline.generation.make_plan import make_plan
from pipeline.model_store.load_model import find_model, load_unet
from pipeline.models.cpu import compute_on_one_core
from pipeline.storage.files import parquet_bytes, viewer_rows

BARE_BAR = 0.96
WARM_UP = 16 * SHARD  # samples; with --quick a round is no longer
LOG = pa.schema([("shard", pa.int64()), ("rows", pa.int64()), ("started", pa.float64()), ("seconds", pa.float64())])


class Maker:
    """A peer's actor: makes shards of rows in SAMPLES and logs the times of each shard."""

    def __init__(self, folder: str, log: str) -> None:
        compute_on_one_core()
        found = find_model(folder, "ema", StorageConfig())
        self._plan = make_plan(settings(2**40), found)
        self._generator = ShardGenerator(load_unet(found, StorageConfig()), self._plan, torch.device("cpu"))
        self._log = Path(log) / uuid.uuid4().hex

    def __call__(self, batch: pa.Table) -> pa.Table:
        """For map_batches: column id (int64, one row) -> the rows of that shard."""
        return self._made(batch["id"][0].as_py())[0]

    def write(self, shard: int, out: str) -> None:
        """For ActorPool: as one file."""
        self._made(shard, lambda table: Path(out).joinpath(f"{shard}.parquet").write_bytes(_encoded(table)))

    def _made(self, shard: int, settle: Callable[[pa.Table], Any] = lambda table: None) -> tuple[pa.Table, Any]:
        started = time.time()
        images = self._generator.shard(range(shard * SHARD, (shard + 1) * SHARD))
        table = sample_table(self._plan, images)
        done = settle(table)
        with self._log.open("a") as file:
            print(shard, len(table), started, time.time() - started, file=file)
        return table, done


def _encoded(table: pa.Table) -> bytes:
    return parquet_bytes(table, viewer_rows(table))


def raydata(folder: str, out: Path, log: Path, shards: int) -> None:
    rows = ray.data.range(shards, override_num_blocks=shards).map_batches(
        Maker,
        fn_constructor_args=(folder, str(log)),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=ACTORS),
        num_cpus=1,
    )
    rows.write_parquet(str(out))


def pool(folder: str, out: Path, log: Path, shards: int) -> None:
    from ray.util import ActorPool

    actors = [ray.remote(num_cpus=1)(Maker).remote(folder, str(log)) for _ in range(ACTORS)]
    for _ in ActorPool(actors).map_unordered(lambda actor, shard: actor.write.remote(shard, str(out)), range(shards)):
        pass
    for actor in actors:
        ray.kill(actor)


def peer(run: Callable[[str, Path, Path, int], None], folder: str, out: Path, num_samples: int) -> Steady:
    log = out.with_name(f"{out.name}-log")
    for made in (out, log):
        made.mkdir()
    began = time.time()
    with CpuClock() as clock:
        run(folder, out, log, num_samples // SHARD)
    lines = [line.split() for file in log.iterdir() for line in file.read_text().splitlines()]
    columns = [[kind(line[at]) for line in lines] for at, kind in enumerate((int, int, float, float))]
    found = steady(pa.table([pa.array(column) for column in columns], schema=LOG), ACTORS, began, clock)
    written = sum(pq.read_metadata(file).num_rows for file in out.rglob("*.parquet"))
    assert written == num_samples, f"{written} of {num_samples} rows"
    return found


def timed(run: Callable[[], Steady], num_samples: int) -> tuple[Steady, float]:
    """Steady rates, and images a second of the whole run."""
    began = time.monotonic()
    found = run()
    return found, num_samples / (time.monotonic() - began)


def measure(folder: str, out: Path, rounds: int, num_samples: int) -> dict[str, dict[str, Any]]:
    loops = Contender(bare, folder, ACTORS)
    runs: dict[str, Callable[[Path, int], Steady]] = {
        "bare": lambda at, n: loops.run(n // SHARD),
        "pipeline": lambda at, n: pipeline(folder, at, n),
        "raydata": lambda at, n: peer(raydata, folder, at, n),
        "pool": lambda at, n: peer(pool, folder, at, n),
    }
    found: dict[str, list[Steady]] = {name: [] for name in runs}
    whole: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        samples = num_samples if number else WARM_UP
        for name, run in runs.items():
            at = out / f"{name}-{number}"
            made, rate = timed(lambda r=run, a=at, n=samples: r(a, n), samples)
            print(f"round {number} {name}: {made.rate:.1f} img/s, whole job {rate:.1f}", file=sys.stderr, flush=True)
            if number:
                found[name].append(made)
                whole[name].append(rate)
            shutil.rmtree(at, ignore_errors=True)
    return judged(found, whole)


def judged(found: dict[str, list[Steady]], whole: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    def over(one: list[float], other: list[float]) -> float:
        return round(statistics.median(a / b for a, b in zip(one, other, strict=True)), 4)

    rates = {name: [run.rate for run in runs] for name, runs in found.items()}
    costs = {name: [1000 * run.cost for run in runs] for name, runs in found.items()}
    return {
        "pipeline_over_bare": at_least(over(rates["pipeline"], rates["bare"]), BARE_BAR),
        "raydata_over_bare": known(over(rates["raydata"], rates["bare"])),
        "pool_over_bare": known(over(rates["pool"], rates["bare"])),
        "pipeline_over_raydata": known(over(rates["pipeline"], rates["raydata"])),
        "pipeline_over_pool": known(over(rates["pipeline"], rates["pool"])),
        "whole_pipeline_over_raydata": known(over(whole["pipeline"], whole["raydata"])),
        "whole_pipeline_over_pool": known(over(whole["pipeline"], whole["pool"])),
        **{f"{name}_img_s": known(round(statistics.median(values), 2)) for name, values in rates.items()},
        **{f"{name}_cpu_ms_a_sample": known(round(statistics.median(v), 4)) for name, v in costs.items()},
        **{f"{name}_whole_img_s": known(round(statistics.median(values), 2)) for name, values in whole.items()},
    }


def main() -> int:
    options = parsed(__doc__, "overhead", quick="one round of 4,096 samples instead of three of 10,240")
    torch.set_num_threads(1)
    rounds, num_samples = (1, WARM_UP) if options.quick else (3, 40 * SHARD)
    with tempfile.TemporaryDirectory() as temporary:
        folder = train_digits(digits_config(*WIDTHS, conditional=False), Path(temporary) / "model", steps=50)
        with cluster(Config().ray, ACTORS + 1):
            result = measure(folder, Path(temporary), rounds, num_samples)
    print(f"{WIDTHS} channels, 8x8x1, DDIM {STEPS} steps, {rounds} rounds of {num_samples:,}")
    return tell(options, "overhead", result)


if __name__ == "__main__":
    sys.exit(main())

"""CPU time and memory of planning for 10^9 samples and images. Method: README.md.

    python benchmarks/planning.py [--quick] [--json] [--check] [--save]

No image is stored or drawn. The driver's arithmetic runs at full size, each case in its own process. Documents (markers
in a manifest, shards in a dataset's manifest) have 20,000 and 100,000 entries, which gives the cost of one entry.
docs/scaling.md uses the figures.
"""

import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from outcome import at_most, known, parsed, tell
from synthetic import marker_of, peak_mb, plan_of, reset_peak

from pipeline.generation.manifest import SampleManifest
from pipeline.generation.sample_plan import PlannedSamples, missing_shards
from pipeline.ingest.manifest import DatasetManifest, ShardEntry
from pipeline.storage.documents import to_json
from pipeline.training.data_plan import TrainPlan

DECISION_BAR_SECONDS = 10.0
BILLION, QUICK_BILLION = 10**9, 10**7
SHARD_ROWS, LANES, MICRO_BATCH = 1024, 8, 16
FEW, MANY = 20_000, 100_000


def alone(work: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """Result of `work` in a new process, its CPU seconds, and the growth of the process in MB (1e6 bytes)."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (work, arguments))


def _measured(work: Callable[..., dict[str, float]], arguments: tuple[Any, ...]) -> dict[str, float]:
    before, cpu = reset_peak(), time.process_time()
    found = work(*arguments)
    return {"cpu_seconds": time.process_time() - cpu, "mb": peak_mb() - before, **found}


def generation(samples: int, shard_size: int) -> dict[str, float]:
    """Finds the missing shards when every thousandth is missing, and the shards of random samples."""
    plan = plan_of(-(-samples // shard_size), shard_size)
    layout = PlannedSamples(plan).layout
    committed = (shard for shard in range(layout.num_shards) if shard % 1000)
    missing = missing_shards(layout.num_shards, committed)
    assert len(missing) == -(-layout.num_shards // 1000)
    assert samples // 2 in layout.ids(layout.shard_of(samples // 2))
    return {"shards": layout.num_shards}


def epoch(images: int) -> dict[str, float]:
    """One epoch's plan, all lanes."""
    plan = TrainPlan("digest", (SHARD_ROWS,) * (images // SHARD_ROWS), LANES, MICRO_BATCH, 0)
    made = plan.epoch(1)
    return {"shards": len(plan.shard_rows), "batches": made.batches}


def markers(count: int) -> dict[str, float]:
    """A sealed manifest written and read."""
    marker = marker_of(plan_of(1), 0)
    entries = tuple(
        marker.model_copy(update={"shard": n, "key": f"data/shard-{n:09d}-{n:032x}.parquet", "sha256": f"{n:064x}"})
        for n in range(count)
    )
    data = to_json(SampleManifest(plan=f"{0:064x}", rows=count * 512, failed=0, shards=entries))
    assert len(SampleManifest.model_validate_json(data).shards) == count
    return {"bytes": len(data)}


def dataset(count: int) -> dict[str, float]:
    """A dataset's manifest written, read and hashed."""
    shard = ShardEntry(
        key="", bytes=1, sha256="", split="train", rows=SHARD_ROWS, first_id=0, keys=("0" * 16, "f" * 16)
    )
    entries = tuple(
        shard.model_copy(
            update={
                "key": f"data/train-000001-{n:06d}-{n:016x}.parquet",
                "sha256": f"{n:064x}",
                "bytes": 1_000_000 + n,
                "first_id": n * SHARD_ROWS,
            }
        )
        for n in range(count)
    )
    values: dict[str, Any] = {"source": "s", "source_rows": count * SHARD_ROWS, "image_size": 32, "channels": 3}
    values |= {"classes": None, "shards": entries, "rejects": (), "reject_counts": {}, "ingest": {}}
    manifest = DatasetManifest(**values, channel_mean=(0.0,) * 3, channel_std=(1.0,) * 3)
    data = to_json(manifest)
    assert DatasetManifest.model_validate_json(data).digest() == manifest.digest()
    return {"bytes": len(data)}


def each(work: Callable[[int], dict[str, float]], few: int, many: int) -> dict[str, float]:
    """Cost of one additional entry."""
    small, large = alone(work, few), alone(work, many)
    return {name: (large[name] - small[name]) / (many - few) for name in large}


def measure(quick: bool) -> dict[str, dict[str, Any]]:
    size = QUICK_BILLION if quick else BILLION
    few, many = (FEW // 20, MANY // 20) if quick else (FEW, MANY)
    result: dict[str, dict[str, Any]] = {}
    for shard_size in (64, 512, 4096):
        found = alone(generation, size, shard_size)
        result[f"missing_mb_shard_{shard_size}"] = known(round(found["mb"], 2))
        result[f"missing_cpu_seconds_shard_{shard_size}"] = known(round(found["cpu_seconds"], 3))
    usual = result["missing_cpu_seconds_shard_512"]["value"]
    result["missing_cpu_seconds"] = at_most(usual, DECISION_BAR_SECONDS)
    trained = alone(epoch, size)
    result["epoch_cpu_seconds"] = known(round(trained["cpu_seconds"], 3))
    result["epoch_mb"] = known(round(trained["mb"], 1))
    result["epoch_shards"] = known(int(trained["shards"]))
    for name, work in (("marker", markers), ("dataset_shard", dataset)):
        found = each(work, few, many)
        result[f"{name}_bytes"] = known(round(found["bytes"], 1))
        result[f"{name}_memory_bytes"] = known(round(1e6 * found["mb"]))
        result[f"{name}_cpu_us"] = known(round(1e6 * found["cpu_seconds"], 1))
    result["missing_bytes_a_shard"] = known(round(1e6 * result["missing_mb_shard_64"]["value"] / -(-size // 64), 2))
    return result


def main() -> int:
    options = parsed(__doc__, "planning", quick="ten million instead of a thousand million")
    result = measure(options.quick)
    return tell(options, "planning", result, samples=QUICK_BILLION if options.quick else BILLION)


if __name__ == "__main__":
    sys.exit(main())

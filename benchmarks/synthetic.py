"""Synthetic plans and markers, request counts and peak memory, without torch."""

import resource
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.config.model import DiffusionConfig
from pipeline.generation.manifest import Marker, SamplePlan
from pipeline.generation.sample_plan import PlannedSamples

SHARD_ROWS, SIZE, CHANNELS = 64, 32, 3


def plan_of(shards: int, shard_rows: int = SHARD_ROWS) -> SamplePlan:
    """A plan as written by `generate`, for a model that does not exist."""
    return SamplePlan(
        num_samples=shards * shard_rows,
        shard_size=shard_rows,
        batch_size=shard_rows,
        seed=0,
        model_uri="nowhere",
        model_digest="0" * 64,
        weights="ema",
        sampler="ddim",
        steps=50,
        eta=0.0,
        variance="fixed_small",
        clip=True,
        image_size=SIZE,
        channels=CHANNELS,
        num_classes=None,
        diffusion=DiffusionConfig().model_dump(mode="json"),
    )


def marker_of(plan: SamplePlan, shard: int) -> Marker:
    """A marker as written by commit_shard; its data file does not exist."""
    ids, attempt = PlannedSamples(plan).layout.ids(shard), f"{shard:032x}"
    return Marker(
        key=f"data/shard-{shard:09d}-{attempt}.parquet",
        bytes=221_179,
        sha256=f"{shard:064x}",
        shard=shard,
        rows=len(ids),
        first_id=ids.start,
        last_id=ids.stop - 1,
        failed=0,
        plan=plan.fingerprint,
        attempt=attempt,
    )


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Counts the S3 operations of this process, by their names in the S3 API."""
    from aiobotocore.client import AioBaseClient as client  # noqa: N813 - only a process that measures S3 pays for it

    counts: Counter[str] = Counter()
    original = client._make_api_call

    async def counting(self: Any, operation: str, parameters: Any) -> Any:
        counts[operation] += 1
        return await original(self, operation, parameters)

    client._make_api_call = counting
    try:
        yield counts
    finally:
        client._make_api_call = original


def reset_peak() -> float:
    """Reset the peak resident size, where the kernel allows it; returns the current size in MB."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()


def peak_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6

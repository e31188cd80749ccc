"""What a job of any size needs, from a few measured constants: pure arithmetic. The page is docs/scaling.md."""

import math
from dataclasses import dataclass

from pipeline.ingest.partitioning import Slots

__all__ = ["DatasetNeeds", "GenerationNeeds", "MeasuredCosts", "dataset_needs", "generation_needs"]

PAGE = 1000
"""Objects a listing gives at once, on S3."""
LISTINGS = 3
"""Of an undisturbed job: markers before the first round and after it, data files at the end."""
SORTED_RUN_BYTES, DEDUPLICATE_BYTES, GROUP_BYTES = 64 * 2**20, 64 * 2**20, 128 * 2**20
RECORD_BYTES = 268
"""What is known of one RGB image without its pixels, as `stages/ingest_phases.py` counts it."""
RANGES_TO_SETTLE, RANGES_TO_WRITE = 3, 4


@dataclass(frozen=True)
class MeasuredCosts:
    """Times in seconds, sizes in bytes, each of one thing."""

    images_a_core_second: float
    requests_a_shard: float
    driver_cpu_a_shard: float
    efficiency: float
    decision_a_shard: float
    seal_a_shard: float
    seal_memory_a_shard: float
    marker_bytes: float
    missing_bytes_a_shard: float
    dataset_shard_bytes: float
    dataset_shard_memory: float
    ingest_images_a_core_second: float
    driver_memory: float
    """Of a driver of a small job: what a large one adds comes on top."""


@dataclass(frozen=True)
class GenerationNeeds:
    """Of one job. seconds of the driver are CPU seconds on one core."""

    shards: int
    core_hours: float
    nodes: int
    requests: int
    listings: int
    manifest_bytes: int
    decision_seconds: float
    seal_seconds: float
    driver_memory: int
    driver_share: float
    """Of a core that the driver needs while all nodes work: above 1 it is the limit."""


def generation_needs(
    samples: int, shard_size: int, costs: MeasuredCosts, cores_a_node: int, hours: float
) -> GenerationNeeds:
    """Raises ValueError for no samples or no time."""
    if min(samples, shard_size, cores_a_node) < 1 or hours <= 0:
        raise ValueError("samples, shard_size, cores_a_node and hours must be positive")
    shards = -(-samples // shard_size)
    core_hours = samples / costs.images_a_core_second / 3600
    nodes = max(1, math.ceil(core_hours / (hours * cores_a_node * costs.efficiency)))
    pages = -(-shards // PAGE)
    seconds = core_hours * 3600 / (nodes * cores_a_node * costs.efficiency)
    return GenerationNeeds(
        shards=shards,
        core_hours=core_hours,
        nodes=nodes,
        requests=math.ceil(shards * costs.requests_a_shard) + LISTINGS * pages,
        listings=LISTINGS * pages,
        manifest_bytes=round(shards * costs.marker_bytes),
        decision_seconds=shards * costs.decision_a_shard,
        seal_seconds=shards * costs.seal_a_shard,
        driver_memory=round(costs.driver_memory + shards * (costs.seal_memory_a_shard + costs.missing_bytes_a_shard)),
        driver_share=shards * costs.driver_cpu_a_shard / seconds,
    )


@dataclass(frozen=True)
class DatasetNeeds:
    """Of an ingest, and of what training reads of it."""

    partitions: int
    runs: int
    shards: int
    core_hours: float
    between_requests: int
    """Ranges of the runs that the second pass reads: every one of its tasks reads from every run of its generation."""
    known_requests: int
    """Shards of earlier generations that are read to find duplicates; none with ingest.duplicates keep-all."""
    manifest_bytes: int
    manifest_memory: int


def dataset_needs(
    images: int,
    image_bytes: int,
    costs: MeasuredCosts,
    partition_rows: int,
    shard_rows: int,
    generations: int = 1,
) -> DatasetNeeds:
    """image_bytes: of a stored PNG. generations: equal parts that are ingested one after the other.

    Raises ValueError for nothing of something.
    """
    if min(images, image_bytes, partition_rows, shard_rows, generations) < 1:
        raise ValueError("images, image_bytes, partition_rows, shard_rows and generations must be positive")
    part = -(-images // generations)
    partitions, shards = -(-part // partition_rows), -(-part // shard_rows)
    runs = max(partitions, -(-part * image_bytes // SORTED_RUN_BYTES))
    slots = Slots.for_bytes(part * image_bytes, 0.0).train
    settling = min(slots, -(-part * RECORD_BYTES // DEDUPLICATE_BYTES))
    writing = -(-part * image_bytes // GROUP_BYTES)
    between = runs * (settling * RANGES_TO_SETTLE + writing * RANGES_TO_WRITE)
    return DatasetNeeds(
        partitions=generations * partitions,
        runs=generations * runs,
        shards=generations * shards,
        core_hours=images / costs.ingest_images_a_core_second / 3600,
        between_requests=generations * between,
        known_requests=shards * generations * (generations - 1) // 2,
        manifest_bytes=round(generations * shards * costs.dataset_shard_bytes),
        manifest_memory=round(generations * shards * costs.dataset_shard_memory),
    )

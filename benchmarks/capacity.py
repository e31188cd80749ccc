"""Resources that a samples folder or dataset of any size needs, from measured constants. Page: docs/scaling.md."""

import math
from dataclasses import dataclass

from pipeline.ingest.partitioning import Slots

PAGE = 1000
"""Objects in one page of a listing, on S3."""
LISTINGS = 3
"""Listings of an undisturbed `generate`: markers before and after generation, data files at the end."""
SORTED_RUN_BYTES, DEDUPLICATE_BYTES, GROUP_BYTES = 64 * 2**20, 64 * 2**20, 128 * 2**20
RECORD_BYTES = 268
"""Size of the record of one RGB image without pixels, as `ingest/phases.py` counts it."""
RANGES_TO_SETTLE, RANGES_TO_WRITE = 3, 4


@dataclass(frozen=True)
class MeasuredCosts:
    """Times in seconds, sizes in bytes, each for one image, shard or marker."""

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
    """Memory of the driver of a small samples folder; shards add to it."""


@dataclass(frozen=True)
class GenerationNeeds:
    """Resources of one samples folder. The driver's seconds are CPU seconds on one core."""

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
    """Share of one core that the driver uses while all nodes work. Above 1 the driver is the bottleneck."""


def generation_needs(
    samples: int, shard_size: int, costs: MeasuredCosts, cores_a_node: int, hours: float
) -> GenerationNeeds:
    """Resources to generate `samples` in `hours`. Raises ValueError unless all numbers are positive."""
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
    """Resources of ingest, and of readers of the dataset's manifest."""

    partitions: int
    sorted_files: int
    shards: int
    core_hours: float
    between_requests: int
    """Ranges that the second pass reads: each of its tasks reads from every sorted file of its dataset version."""
    known_requests: int
    """Shards of earlier versions that are read to find duplicates; none with ingest.duplicates keep-all."""
    manifest_bytes: int
    manifest_memory: int


def dataset_needs(
    images: int,
    image_bytes: int,
    costs: MeasuredCosts,
    partition_rows: int,
    shard_rows: int,
    dataset_versions: int = 1,
) -> DatasetNeeds:
    """image_bytes: size of a stored PNG. dataset_versions: number of equal ingests, one after the other.

    Raises ValueError unless all numbers are positive.
    """
    if min(images, image_bytes, partition_rows, shard_rows, dataset_versions) < 1:
        raise ValueError("images, image_bytes, partition_rows, shard_rows and dataset_versions must be positive")
    part = -(-images // dataset_versions)
    partitions, shards = -(-part // partition_rows), -(-part // shard_rows)
    sorted_files = max(partitions, -(-part * image_bytes // SORTED_RUN_BYTES))
    slots = Slots.for_bytes(part * image_bytes, 0.0).train
    settling = min(slots, -(-part * RECORD_BYTES // DEDUPLICATE_BYTES))
    writing = -(-part * image_bytes // GROUP_BYTES)
    between = sorted_files * (settling * RANGES_TO_SETTLE + writing * RANGES_TO_WRITE)
    return DatasetNeeds(
        partitions=dataset_versions * partitions,
        sorted_files=dataset_versions * sorted_files,
        shards=dataset_versions * shards,
        core_hours=images / costs.ingest_images_a_core_second / 3600,
        between_requests=dataset_versions * between,
        known_requests=shards * dataset_versions * (dataset_versions - 1) // 2,
        manifest_bytes=round(dataset_versions * shards * costs.dataset_shard_bytes),
        manifest_memory=round(dataset_versions * shards * costs.dataset_shard_memory),
    )

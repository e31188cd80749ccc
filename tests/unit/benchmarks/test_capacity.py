"""The cost model of docs/scaling.md against what the pipeline itself computes and what a small job really does."""

import dataclasses

import pytest
from capacity import DEDUPLICATE_BYTES, GROUP_BYTES, SORTED_RUN_BYTES, MeasuredCosts, dataset_needs, generation_needs
from synthetic import marker_of, plan_of

from pipeline.config.ingest import IngestConfig
from pipeline.config.storage import StorageConfig
from pipeline.generation.commit import committed_shards, create_plan, marker_key, seal
from pipeline.generation.sample_plan import PlannedSamples, missing_shards
from pipeline.ingest import map_tasks, phases
from pipeline.ingest.sorted_runs import RunFormat
from pipeline.storage.documents import to_json
from pipeline.storage.store import resolve

pytestmark = pytest.mark.unit

COSTS = MeasuredCosts(
    images_a_core_second=100.0,
    requests_a_shard=4.0,
    driver_cpu_a_shard=0.01,
    efficiency=1.0,
    decision_a_shard=1e-5,
    seal_a_shard=1e-3,
    seal_memory_a_shard=5000.0,
    marker_bytes=400.0,
    missing_bytes_a_shard=1.0,
    dataset_shard_bytes=350.0,
    dataset_shard_memory=3000.0,
    ingest_images_a_core_second=1000.0,
    driver_memory=5e8,
)


@pytest.mark.parametrize(("samples", "shard_size"), [(1, 64), (64, 64), (65, 64), (10**9, 512), (10**9 + 1, 512)])
def test_shards_are_those_of_the_plan(samples, shard_size):
    plan = plan_of(1, shard_size).model_copy(update={"num_samples": samples})
    needs = generation_needs(samples, shard_size, COSTS, cores_a_node=32, hours=24)
    assert needs.shards == plan.num_shards == PlannedSamples(plan).layout.num_shards


def test_nodes_finish_in_time_and_one_less_would_not():
    needs = generation_needs(10**9, 512, COSTS, cores_a_node=32, hours=24)
    assert needs.core_hours == pytest.approx(10**7 / 3600)
    assert needs.core_hours / (needs.nodes * 32) <= 24 < needs.core_hours / ((needs.nodes - 1) * 32)
    lossy = dataclasses.replace(COSTS, efficiency=0.5)
    assert generation_needs(10**9, 512, lossy, 32, 24).nodes in (2 * needs.nodes - 1, 2 * needs.nodes)


def test_driver_share_is_its_work_over_the_time_the_nodes_take():
    needs = generation_needs(3_600_000, 100, COSTS, cores_a_node=10, hours=1)
    assert needs.nodes == 1
    assert needs.driver_share == pytest.approx(36_000 * 0.01 / 3600)


def test_a_sealed_job_has_the_stated_size_and_markers(tmp_path):
    """The manifest of a real job of synthetic markers is as large as the model says from the size of one marker."""
    shards = 300
    job = resolve(str(tmp_path), StorageConfig())
    plan = create_plan(job, plan_of(shards))
    for shard in range(shards):
        job.put(marker_key(shard), to_json(marker_of(plan, shard)))
    assert not len(missing_shards(plan.num_shards, committed_shards(job)))
    seal(job, plan)
    one = len(to_json(marker_of(plan, 7)))
    costs = dataclasses.replace(COSTS, marker_bytes=one)
    stated = generation_needs(plan.num_samples, plan.shard_size, costs, 1, 1).manifest_bytes
    assert job.size("manifest.json") == pytest.approx(stated, rel=0.2)


def test_ingest_bounds_are_those_of_the_stages():
    assert (SORTED_RUN_BYTES, DEDUPLICATE_BYTES, GROUP_BYTES) == (
        map_tasks.SORTED_RUN_BYTES,
        phases.DEDUPLICATE_BYTES,
        phases.GROUP_BYTES,
    )
    assert RunFormat(1, 3).record.itemsize + phases.TEXT_BYTES == 268


def test_ingest_grows_with_the_square_and_dataset_versions_make_it_linear():
    usual = IngestConfig()
    few, many = (dataset_needs(n, 3000, COSTS, usual.partition_rows, usual.shard_rows) for n in (10**7, 10**9))
    assert many.between_requests > 5000 * few.between_requests
    parts = dataset_needs(10**9, 3000, COSTS, usual.partition_rows, usual.shard_rows, dataset_versions=100)
    assert parts.between_requests == 100 * few.between_requests
    assert parts.known_requests == few.shards * 100 * 99 // 2
    assert many.known_requests == 0


@pytest.mark.parametrize("wrong", [{"samples": 0}, {"shard_size": 0}, {"cores_a_node": 0}, {"hours": 0}])
def test_nothing_of_something_is_refused(wrong):
    asked = {"samples": 10, "shard_size": 2, "cores_a_node": 1, "hours": 1.0} | wrong
    with pytest.raises(ValueError, match="positive"):
        generation_needs(costs=COSTS, **asked)

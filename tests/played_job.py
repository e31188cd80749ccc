"""A generation job in miniature, played without Ray or a network, and what must be true when it has ended."""

import uuid
from collections.abc import Callable
from functools import cache

from invariants import check_invariants, created_once
from tiny_samples import sample_plan, shard_table

from pipeline.config.storage import StorageConfig
from pipeline.generation import commit
from pipeline.generation.manifest import SamplePlan
from pipeline.storage.files import parquet_bytes
from pipeline.storage.store import Store, resolve

PLAN = sample_plan()
MORE = sample_plan(num_samples=21)
"""The same job with 11 more samples, in shards 3, 4 and 5."""


def play(
    job: Store,
    wanted: SamplePlan = PLAN,
    variant: int = 0,
    tell: Callable[[str, int], object] = lambda when, shard: None,
) -> None:
    """The whole job, as `ddpm generate` does it: plan, what is missing, seal, collect.

    variant: other images from the second shard on, as of a machine whose arithmetic differs in the last bit.
    tell: hears "before" and "after" of every shard that is made.
    """
    plan = commit.create_plan(job, wanted)
    if not commit.is_sealed(job, plan):
        for shard in sorted(set(range(plan.num_shards)).difference(commit.committed_shards(job))):
            if job.exists(commit.marker_key(shard)):
                continue
            tell("before", shard)
            table = shard_table(plan, shard, variant if shard else 0)
            tell("after", shard)
            commit.commit_shard(job, plan, shard, table, uuid.uuid4().hex)
        commit.seal(job, plan)
    commit.collect_garbage(job, commit.read_manifest(job, plan.num_extensions))


def litter(job: Store, wanted: SamplePlan = PLAN, variant: int = 9) -> None:
    """Data files that earlier attempts at every new shard left behind, with other images in them."""
    plan = commit.join_plan(job, wanted) if job.exists(commit.PLAN) else wanted
    for shard in range(plan.first_new_shard, plan.num_shards):
        key = f"data/shard-{shard:09d}-{uuid.uuid4().hex}.parquet"
        job.put(key, parquet_bytes(shard_table(plan, shard, variant), 1000))


@cache
def undisturbed() -> dict[int, str]:
    """{sample id: sha256} of a job and its extension that nothing happened to."""
    job = resolve(f"memory://{uuid.uuid4().hex}", StorageConfig())
    play(job)
    play(job, MORE)
    return check_invariants(job)


def is_whole(job: Store, earlier: dict[str, bytes] | None = None, wanted: SamplePlan = PLAN) -> None:
    """Sealed, equal to the undisturbed job, every invariant kept, no file left over."""
    plan, manifest = commit.read_sealed(job)
    assert plan.num_samples == wanted.num_samples
    assert job.exists("_SUCCESS")
    hashes = check_invariants(job, earlier)
    assert hashes == {i: undisturbed()[i] for i in range(wanted.num_samples)}
    assert sorted(entry.key for entry in job.list("data/")) == sorted(marker.key for marker in manifest.shards)


def finishes(job: Store, wanted: SamplePlan = PLAN) -> None:
    """The state that a fault left keeps the invariants, and the same command makes it whole."""
    earlier = created_once(job)
    assert check_invariants(job).items() <= undisturbed().items()
    play(job, wanted)
    is_whole(job, earlier, wanted)

"""Cost of the commit protocol a shard, against one bare put, on an S3 server. Method: README.md.

    python benchmarks/commit.py [--quick] [--json] [--check] [--save]

The same rows are committed two ways in turn, shard after shard, to a SeaweedFS server on this machine:

    bare   the Parquet file is encoded and put: one request; a second put would replace the file
    ours   the work of an actor: look up the marker, encode, hash, put, create the marker

Then the folder is sealed as by `generate`. Every request that the client sends is counted by name.
"""

import os
import statistics
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from outcome import at_most, known, parsed, tell
from s3_server import SeaweedServer
from synthetic import CHANNELS, SHARD_ROWS, SIZE, counted, plan_of

from pipeline.config.storage import StorageConfig
from pipeline.generation.commit import collect_garbage, commit_shard, committed_shards, create_plan, marker_key, seal
from pipeline.generation.generator import GeneratedImages, sample_table
from pipeline.generation.manifest import SamplePlan
from pipeline.generation.sample_plan import PlannedSamples, missing_shards
from pipeline.storage.files import parquet_bytes, viewer_rows
from pipeline.storage.store import Store, resolve

REQUESTS_BAR = 4.1
"""A look-up, two puts, one read at the seal, and the folder's documents divided by a few hundred shards."""


def tables(plan: SamplePlan) -> Iterator[tuple[int, pa.Table]]:
    """Shards of noise, which PNG cannot compress: the largest files of such images."""
    assignments = PlannedSamples(plan)
    for shard in range(plan.num_shards):
        ids = assignments.layout.ids(shard)
        pixels = np.random.default_rng(shard).integers(0, 256, (len(ids), SIZE, SIZE, CHANNELS), np.uint8)
        yield shard, sample_table(plan, GeneratedImages(assignments.specs(ids), pixels, np.ones(len(ids), np.bool_)))


def took(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def bare(job: Store, shard: int, table: pa.Table) -> None:
    job.put(f"bare/shard-{shard:09d}.parquet", parquet_bytes(table, viewer_rows(table)))


def ours(job: Store, plan: SamplePlan, shard: int, table: pa.Table) -> None:
    assert not job.exists(marker_key(shard))
    attempt = uuid.uuid4().hex
    assert commit_shard(job, plan, shard, table, attempt).attempt == attempt


def commits(job: Store, plan: SamplePlan, warm_up: int) -> tuple[dict[str, list[float]], Counter[str], int]:
    """Seconds of both ways by shard, requests of our commit, bytes of a shard; without the first shards."""
    seconds: dict[str, list[float]] = {"bare": [], "ours": []}
    requests: Counter[str] = Counter()
    size = 0
    for shard, table in tables(plan):
        runs = {
            "bare": lambda s=shard, t=table: bare(job, s, t),
            "ours": lambda s=shard, t=table: ours(job, plan, s, t),
        }
        for name in sorted(runs, reverse=bool(shard % 2)):  # each way is first equally often
            with counted() as counts:
                spent = took(runs[name])
            if shard >= warm_up:
                seconds[name].append(spent)
                requests.update(counts if name == "ours" else {})
        size = job.size(f"bare/shard-{shard:09d}.parquet")
    return seconds, requests, size


def measure(job: Store, shards: int, warm_up: int) -> dict[str, dict[str, Any]]:
    plan = create_plan(job, plan_of(shards))
    seconds, made, size = commits(job, plan, warm_up)
    with counted() as settled:
        assert not len(missing_shards(plan.num_shards, committed_shards(job)))
        began = time.perf_counter()
        manifest = seal(job, plan)
        sealing = time.perf_counter() - began
        collect_garbage(job, manifest)
    per_shard, per_seal = made.total() / (shards - warm_up), settled.total() / shards
    ratio = statistics.median(a / b for a, b in zip(seconds["ours"], seconds["bare"], strict=True))
    middle = {name: 1000 * statistics.median(found) for name, found in seconds.items()}
    result = {
        "requests_a_shard": at_most(round(per_shard + per_seal, 3), REQUESTS_BAR),
        "commit_over_put": known(round(ratio, 3)),
        "commit_ms": known(round(middle["ours"], 3)),
        "put_ms": known(round(middle["bare"], 3)),
        "extra_ms": known(round(middle["ours"] - middle["bare"], 3)),
        "seal_ms_a_shard": known(round(1000 * sealing / shards, 3)),
        "requests_by_actor": known(round(per_shard, 3)),
        "requests_by_seal": known(round(per_seal, 3)),
        "shard_bytes": known(size),
    }
    return result | {f"actor_{name}": known(round(count / (shards - warm_up), 3)) for name, count in made.items()}


def main() -> int:
    options = parsed(__doc__, "commit", quick="60 shards instead of 400")
    shards, warm_up = (60, 10) if options.quick else (400, 20)
    with SeaweedServer() as server:
        os.environ.update(server.environment)
        result = measure(resolve(f"{server.uri}/job", StorageConfig(endpoint=server.endpoint)), shards, warm_up)
    return tell(options, "commit", result, rows=SHARD_ROWS, image=[SIZE, SIZE, CHANNELS])


if __name__ == "__main__":
    sys.exit(main())

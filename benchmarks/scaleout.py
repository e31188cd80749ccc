"""Efficiency of driver and Ray with up to 32 actors: generation on simulated nodes, with a network that sleeps.

    python benchmarks/scaleout.py [--quick] [--json] [--check] [--save]

The stage is the real one (rounds, Ray Data, actors, commit, markers, seal); only what makes the pixels sleeps. Nodes
are raylets of `ray.cluster_utils.Cluster` on this machine with four logical CPUs each; a sleeping actor uses none, so
two cores carry 32 actors as long as the rest is cheap, which is what is measured. Method: benchmarks/README.md.
"""

import os
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from outcome import at_least, known, parsed, tell
from synthetic import plan_of
from torment import resident_mb

from pipeline.cluster import cluster
from pipeline.config.root import Config
from pipeline.config.storage import StorageConfig
from pipeline.generation.commit import create_plan, seal
from pipeline.generation.distributed.actor import GenerateShards
from pipeline.generation.distributed.dispatcher import ShardDispatcher
from pipeline.generation.generator import GeneratedImages, SamplingProgress
from pipeline.generation.manifest import SamplePlan
from pipeline.generation.sample_plan import PlannedSamples
from pipeline.generation.shard_metrics import SHARD_METRICS_KEY
from pipeline.storage.store import Store, resolve

EFFICIENCY_BAR = 0.95
ACTORS, QUICK_ACTORS = (1, 4, 16, 32), (1, 4)
SHARD_SECONDS = 2.0
SHARDS_AN_ACTOR, QUICK_SHARDS_AN_ACTOR = 20, 5
SHARD_ROWS = 16
CPUS_A_NODE = 4
NODE_STORE_BYTES = 100 * 2**20
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


class SleepingGenerator:
    """Replaces ShardGenerator: one grey level an image, after SHARD_SECONDS."""

    def __init__(self, plan: SamplePlan) -> None:
        self._plan, self._assignments = plan, PlannedSamples(plan)

    def steps(self, ids: range) -> Generator[SamplingProgress, None, GeneratedImages]:
        plan = self._plan
        time.sleep(SHARD_SECONDS)
        levels = (np.arange(ids.start, ids.stop) % 256).astype(np.uint8)
        pixels = np.broadcast_to(
            levels[:, None, None, None], (len(ids), plan.image_size, plan.image_size, plan.channels)
        ).copy()
        yield SamplingProgress(len(ids), pixels)
        return GeneratedImages(self._assignments.specs(ids), pixels, np.ones(len(ids), np.bool_))


class SleepingShards(GenerateShards):
    """The worker of generation without a model."""

    def _loaded(self) -> Any:
        if self._generator is None:
            self._generator = SleepingGenerator(self._plan)  # type: ignore[assignment]
        return self._generator


@contextmanager
def simulated(actors: int) -> Iterator[None]:
    """This process connected to a cluster of enough nodes, the head among them without CPUs."""
    import ray
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": 2 * NODE_STORE_BYTES, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        for start in range(0, actors, CPUS_A_NODE):
            cpus = min(CPUS_A_NODE, actors - start)
            nodes.add_node(num_cpus=cpus, object_store_memory=NODE_STORE_BYTES)
        nodes.wait_for_nodes()
        ray.init(address=nodes.address, log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        nodes.shutdown()


def run(job: Store, actors: int, shards: int) -> dict[str, float]:
    """One `generate`; efficiency is the share of time that the actors sleep, while all actors work."""
    plan = create_plan(job, plan_of(shards, SHARD_ROWS))
    config = Config.model_validate({"ray": {"workers": actors, "address": "auto"}})
    with simulated(actors), cluster(config.ray, actors):
        wall, cpu = time.monotonic(), time.process_time()
        ShardDispatcher(config, job, plan, "nowhere", SleepingShards).finish()
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    assert len(seal(job, plan).shards) == shards
    log = pq.read_table(pa.BufferReader(job.read(SHARD_METRICS_KEY)))
    found = {"shards": shards, "seconds": wall, "driver_cpu_seconds": cpu, "driver_mb": resident_mb(os.getpid())}
    return found | asleep(log, actors)


def asleep(log: pa.Table, actors: int) -> dict[str, float]:
    """Share of sleep in the stretch from the start of the last actor to the end of the first actor without work.

    efficiency: sleeping seconds inside / (actors x length). whole_efficiency: of the time from the first shard's start
    to the last one's end, so with the wait for the slowest start and the last shards.
    """
    starts = log["started"].to_numpy()
    ends = starts + log["seconds"].to_numpy()
    marks = np.concatenate([np.stack([starts, np.ones(len(log))], 1), np.stack([ends, -np.ones(len(log))], 1)])
    marks = marks[np.lexsort((marks[:, 1], marks[:, 0]))]
    full = marks[np.cumsum(marks[:, 1]) >= actors, 0]
    if not len(full):
        raise RuntimeError(f"{actors} actors never worked at the same time")
    first, last = full[0], full[-1]
    inside = np.clip(np.minimum(ends, last) - np.maximum(starts, first), 0, None).sum()
    whole = (ends - starts).sum() / (actors * (ends.max() - starts.min()))
    return {"efficiency": float(inside / (actors * (last - first))), "whole_efficiency": float(whole)}


def figures(rows: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    last = rows[-1]
    each = {int(row["actors"]): row for row in rows}
    driver = {n: 1000 * row["driver_cpu_seconds"] / row["shards"] for n, row in each.items()}
    share = last["driver_cpu_seconds"] / last["seconds"]
    return {
        f"efficiency_{int(last['actors'])}_actors": at_least(round(last["efficiency"], 4), EFFICIENCY_BAR),
        **{f"efficiency_{n}": known(round(row["efficiency"], 4)) for n, row in each.items()},
        **{f"whole_efficiency_{n}": known(round(row["whole_efficiency"], 4)) for n, row in each.items()},
        **{f"driver_cpu_ms_a_shard_{n}": known(round(ms, 2)) for n, ms in driver.items()},
        "driver_cpu_ms_a_shard": known(round(driver[int(last["actors"])], 2)),
        "driver_cpu_share": known(round(share, 4)),
        "shards_a_second_a_driver_core": known(round(1000 / driver[int(last["actors"])], 1)),
    }


def main() -> int:
    options = parsed(__doc__, "scaleout", quick="1 and 4 actors of 5 shards each instead of 1 to 32 of 20")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for actors in QUICK_ACTORS if options.quick else ACTORS:
            job = resolve(f"{folder}/{actors}", StorageConfig())
            shards = actors * (QUICK_SHARDS_AN_ACTOR if options.quick else SHARDS_AN_ACTOR)
            rows.append({"actors": actors, **run(job, actors, shards)})
            print(*(f"{name} {value:.4g}" for name, value in rows[-1].items()), sep=", ", file=sys.stderr, flush=True)
    return tell(options, "scaleout", figures(rows), curve=rows, shard_seconds=SHARD_SECONDS, shard_rows=SHARD_ROWS)


if __name__ == "__main__":
    sys.exit(main())

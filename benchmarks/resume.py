"""Time to find missing shards, and to seal, against the number of shards. Method: README.md.

    python benchmarks/resume.py [--quick] [--json] [--check] [--save]

A samples folder of n shards gets synthetic markers for all shards but one, on local files and on a SeaweedFS server. A
new process then runs the first steps of `generate`: read the plan, list the markers, find the missing shards. After the
last marker is written, another new process seals the folder. Seconds start at the call (imports are a separate figure);
memory is the growth of the process's peak resident size.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from outcome import at_most, known, parsed, tell
from s3_server import SeaweedServer
from synthetic import counted, marker_of, peak_mb, plan_of, reset_peak

from pipeline.config.storage import StorageConfig
from pipeline.generation.commit import committed_shards, create_plan, marker_key, read_plan, seal
from pipeline.generation.manifest import SamplePlan
from pipeline.generation.sample_plan import missing_shards
from pipeline.storage.documents import to_json
from pipeline.storage.store import Store, resolve

DECISION_BAR_SECONDS = 10.0
LOCAL, QUICK_LOCAL = (100, 1_000, 10_000, 100_000), (100, 1_000, 5_000)
S3, QUICK_S3 = (100, 1_000, 10_000), (100, 1_000)
WRITERS = 16


def mark(job: Store, plan: SamplePlan, shards: range) -> None:
    """Write markers of these shards. On local files without the store, which would sync every file."""
    first = marker_of(plan, shards.start)  # all markers have the same plan fingerprint
    folder = Path(job.path("commits")) if job.kind == "local" else None
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)

    def write(shard: int) -> None:
        ids, attempt = range(shard * plan.shard_size, (shard + 1) * plan.shard_size), f"{shard:032x}"
        same = {"shard": shard, "first_id": ids.start, "last_id": ids.stop - 1, "attempt": attempt}
        key = f"data/shard-{shard:09d}-{attempt}.parquet"
        data = to_json(first.model_copy(update={**same, "key": key, "sha256": f"{shard:064x}"}))
        if folder is None:
            job.put(marker_key(shard), data)
        else:
            (folder / f"shard-{shard:09d}.json").write_bytes(data)

    with ThreadPoolExecutor(1 if folder else WRITERS) as pool:
        for _ in pool.map(write, shards):
            pass


def decide(job: Store) -> dict[str, float]:
    plan = read_plan(job)
    missing = missing_shards(plan.num_shards, committed_shards(job))
    assert missing.tolist() == [plan.num_shards - 1], "one shard has no marker"
    return {}


def finish(job: Store) -> dict[str, float]:
    plan = read_plan(job)
    assert len(seal(job, plan).shards) == plan.num_shards
    return {"manifest_bytes": job.size("manifest.json")}


def alone(work: Callable[[Store], dict[str, float]], job: Store) -> dict[str, float]:
    """Seconds, CPU seconds, requests and memory (MB, 1e6 bytes) of `work` in a process of its own."""
    context = get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_measured, args=(work, job, theirs))
    process.start()
    theirs.close()
    found: dict[str, float] = mine.recv()
    process.join()
    return found


def _measured(work: Callable[[Store], dict[str, float]], job: Store, pipe: Connection) -> None:
    job.exists("nothing")  # creates the client and opens the connection
    before = reset_peak()
    with counted() as requests:
        wall, cpu = time.perf_counter(), time.process_time()
        found = work(job)
        seconds, cpu = time.perf_counter() - wall, time.process_time() - cpu
    found |= {"seconds": seconds, "cpu_seconds": cpu, "requests": requests.total(), "mb": peak_mb() - before}
    pipe.send(found)


def curve(root: Store, counts: tuple[int, ...]) -> list[dict[str, float]]:
    """A row for each number of shards, ascending."""
    rows = []
    for shards in counts:
        job = root.child(f"job-{shards}")
        plan = create_plan(job, plan_of(shards))
        mark(job, plan, range(shards - 1))
        decision = alone(decide, job)
        mark(job, plan, range(shards - 1, shards))
        sealing = alone(finish, job)
        row = {f"decision_{name}": value for name, value in decision.items()}
        row |= {f"seal_{name}": value for name, value in sealing.items()}
        rows.append({"shards": shards, **row})
        told = ", ".join(f"{name} {value:.4g}" for name, value in rows[-1].items())
        print(f"{root.kind}: {told}", file=sys.stderr, flush=True)
    return rows


def figures(kind: str, rows: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Cost of the largest folder, and cost of one additional shard between the smallest and the largest."""
    first, last = rows[0], rows[-1]
    more = last["shards"] - first["shards"]

    def each(name: str) -> float:
        return (last[name] - first[name]) / more

    return {
        f"{kind}_decision_seconds": at_most(round(last["decision_seconds"], 3), DECISION_BAR_SECONDS),
        f"{kind}_shards": known(int(last["shards"])),
        f"{kind}_decision_us_a_shard": known(round(1e6 * each("decision_seconds"), 2)),
        f"{kind}_decision_cpu_us_a_shard": known(round(1e6 * each("decision_cpu_seconds"), 2)),
        f"{kind}_decision_bytes_a_shard": known(round(max(0.0, 1e6 * each("decision_mb")), 1)),
        f"{kind}_decision_mb": known(round(last["decision_mb"], 2)),
        f"{kind}_seal_seconds": known(round(last["seal_seconds"], 3)),
        f"{kind}_seal_us_a_shard": known(round(1e6 * each("seal_seconds"), 1)),
        f"{kind}_seal_cpu_us_a_shard": known(round(1e6 * each("seal_cpu_seconds"), 1)),
        f"{kind}_seal_bytes_a_shard": known(round(1e6 * each("seal_mb"))),
        f"{kind}_manifest_bytes_a_shard": known(round(each("seal_manifest_bytes"), 1)),
        f"{kind}_listings_a_thousand": known(round(1000 * each("decision_requests"), 3)),
    }


def main() -> int:
    options = parsed(__doc__, "resume", quick="up to 5,000 shards on local files and 1,000 on the server")
    with tempfile.TemporaryDirectory() as folder:
        local = curve(resolve(folder, StorageConfig()), QUICK_LOCAL if options.quick else LOCAL)
    with SeaweedServer() as server:
        os.environ.update(server.environment)
        store = resolve(server.uri, StorageConfig(endpoint=server.endpoint))
        s3 = curve(store, QUICK_S3 if options.quick else S3)
    result = figures("local", local) | figures("s3", s3)
    return tell(options, "resume", result, curves={"local": local, "s3": s3})


if __name__ == "__main__":
    sys.exit(main())

"""Model -> samples: Ray Data actors make the shards that have no marker yet, each exactly once.

    plan.json -> one row a missing shard -> actors: generate | encode and commit beside it -> a small row each -> seal

The driver holds no image. A worker that is lost costs the shards it had not committed; whatever else goes wrong, the
same command goes on from the markers.
"""

import pickle
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray.data

from pipeline.assignment import Assignments, missing_shards
from pipeline.config import Config, digest_of
from pipeline.errors import DataError, NotFound, PipelineError, Transient
from pipeline.manifests import SampleManifest, SamplePlan
from pipeline.progress import Progress
from pipeline.report.sample_card import sample_card
from pipeline.schema import STATUS_OK
from pipeline.stages.cluster import cluster
from pipeline.stages.job_plan import make_plan, want_job
from pipeline.stages.shard_actor import COMMITTED, ERROR, WORKING, GenerateShards
from pipeline.storage.models import find_model
from pipeline.storage.requests import load_requests
from pipeline.storage.samples import (
    CARD,
    PLAN,
    collect_garbage,
    committed_shards,
    create_plan,
    is_sealed,
    join_plan,
    read_manifest,
    seal,
)
from pipeline.storage.shard_log import ShardLog
from pipeline.storage.store import Store, resolve
from pipeline.storage.webdataset import read_samples

__all__ = ["generate", "make_plan", "shard_blocks"]

Shards = npt.NDArray[np.int64]
MAX_BLOCK_SHARDS = 16
LONGEST_PAUSE_SECONDS = 60.0
MAX_LISTED = 20
ROW_BYTES = 1
"""Block size that makes Ray Data hand every row to the driver at once."""


def generate(
    config: Config, model: str, out: str, dry_run: bool = False, requests: str | None = None
) -> dict[str, Any]:
    """Make the samples that are missing, then seal the job. requests: URI of a request table, for generate.num_samples.

    Raises ConfigError when `out` holds another job, DataError when there is no model, for requests that cannot
    be met, or when some samples could not be made (the rest is sealed).
    """
    began = time.monotonic()
    job = resolve(out, config.storage)
    found = find_model(model, config.generate.weights, config.storage)
    wanted = want_job(config.generate, job, found, requests)
    if dry_run:
        return _described(job, wanted.plan)
    plan = create_plan(job, wanted.plan, wanted.request_file)
    if is_sealed(job, plan):
        return _finished(job, plan, read_manifest(job, plan.generation), {"state": "already done"})
    with cluster(config.ray, config.ray.max_workers + 1):
        figures = _Run(config, job, plan, found.uri).finish()
    figures["seconds"] = round(time.monotonic() - began, 1)
    return _finished(job, plan, seal(job, plan), {"state": "generated", **figures})


def shard_blocks(shards: Shards, actors: int) -> list[Shards]:
    """Shards a task, in order: many while there are many, one at the end, so that all actors end together."""
    blocks, start = [], 0
    largest = max(MAX_BLOCK_SHARDS, len(shards) // 4096)
    while start < len(shards):
        size = max(1, min(largest, (len(shards) - start) // (4 * actors)))
        blocks.append(shards[start : start + size])
        start += size
    return blocks


def _described(job: Store, plan: SamplePlan) -> dict[str, Any]:
    if job.exists(PLAN):
        plan = join_plan(job, plan)
    shards = plan.num_shards
    missing = len(missing_shards(shards, committed_shards(job)))
    how = f"{plan.sampler}, {plan.steps} steps" if plan.requests is None else f"{plan.requests.rows:,} requests"
    return {
        "summary": f"would generate {plan.num_samples:,} samples in {shards:,} shards ({missing:,} missing) from "
        f"{plan.model_uri} with {how} -> {job.uri}"
    }


def _finished(job: Store, plan: SamplePlan, manifest: SampleManifest, figures: dict[str, Any]) -> dict[str, Any]:
    """What is left after the seal, at every invocation: an earlier one may have been stopped right before it."""
    if not _has_card(job, manifest):
        job.put(CARD, sample_card(plan, manifest).encode())
    collect_garbage(job, manifest)
    if manifest.failed:
        raise DataError(_failures(job, manifest))
    shards = len(manifest.shards)
    speed = f", {figures['images_per_second']:,.1f} img/s" if "images_per_second" in figures else ""
    return {
        **figures,
        "uri": job.uri,
        "samples": manifest.rows,
        "failed": manifest.failed,
        "shards": shards,
        "plan": manifest.plan,
        "digest": digest_of([marker.sha256 for marker in manifest.shards]),
        "model_digest": plan.model_digest,
        "summary": f"{figures['state']}: {manifest.rows:,} samples in {shards:,} shards{speed} -> {job.uri}",
    }


def _has_card(job: Store, manifest: SampleManifest) -> bool:
    """Whether the README is there and speaks of this set of samples: that of an extended job speaks of the old one."""
    try:
        return manifest.plan.encode() in job.read(CARD)
    except NotFound:
        return False


def _failures(job: Store, manifest: SampleManifest) -> str:
    lines = [f"{manifest.failed} of {manifest.rows} samples of {job.uri} could not be made; the others are sealed:"]
    for marker in (m for m in manifest.shards if m.failed):
        for row in read_samples(job, marker, ["sample_id", "status", "error"]).to_pylist():
            if row["status"] != STATUS_OK:
                lines.append(f"sample {row['sample_id']}: {row['error']}")
            if len(lines) > MAX_LISTED:
                return "\n".join([*lines, "..."])
    return "\n".join(lines)


class _Run:
    """The driver's part of one invocation: rounds over what is missing, until nothing is."""

    def __init__(self, config: Config, job: Store, plan: SamplePlan, model_uri: str) -> None:
        self._ray, self._job, self._plan, self._model_uri = config.ray, job, plan, model_uri
        self._layout = Assignments(plan, load_requests(job, plan)).layout
        self._log = ShardLog(job)
        self._working: dict[int, int] = {}  # images finished in shards that are not
        # Of the shards whose rows arrived; those of a block that was restarted may not.
        self._images, self._first_start, self._last_end = 0, float("inf"), 0.0
        self._done = 0

    def finish(self) -> dict[str, Any]:
        """Returns figures. Raises the error that used up ray.max_failures, or one that no repetition can cure."""
        missing = self._missing()
        before = self._made_before(missing)
        self._progress = Progress("generate", self._plan.num_samples, "images", before)
        failures, limit = 0, self._ray.max_failures
        while len(missing):
            try:
                if failures:
                    missing = self._missing()
                self._round(missing)
                # A restarted block repeats rows that Ray drops as known, so only markers say what was done.
                missing = self._missing()
                if len(missing):
                    raise Transient(f"{len(missing)} shards of {self._job.uri} were not committed")
            except Exception as error:
                failures += 1
                if _is_final(error) or 0 <= limit < failures:
                    raise _named(error, failures) from error
                print(f"generate: failure {failures} of {limit}, going on: {_first_line(error)}", file=sys.stderr)
                time.sleep(min(LONGEST_PAUSE_SECONDS, 2.0 ** (failures - 1)))
            finally:
                self._log.flush()
        self._progress.update(self._plan.num_samples)
        self._progress.close()
        figures: dict[str, Any] = {"images": self._plan.num_samples - before}
        if self._images:
            figures["images_per_second"] = round(self._images / max(self._last_end - self._first_start, 1e-9), 2)
        return figures

    def _missing(self) -> Shards:
        return missing_shards(self._plan.num_shards, committed_shards(self._job))

    def _made_before(self, missing: Shards) -> int:
        return self._plan.num_samples - self._layout.rows(missing)

    def _round(self, missing: Shards) -> None:
        """One pass over the missing shards, if any. Raises the last error of a shard, or Ray's own."""
        if not len(missing):
            return
        self._working.clear()
        self._done = self._made_before(missing)
        error: Exception | None = None
        row_errors = 0
        for row in self._rows(missing):
            if row["state"] != ERROR:
                row_errors = 0
                self._settle(row)
                continue
            error = pickle.loads(row["error"])
            row_errors += 1
            # When nothing succeeds any more, waiting helps and trying every other shard does not.
            if _is_final(error) or row_errors > 2 * self._ray.max_workers:
                break
        if error is not None:
            raise error

    def _rows(self, missing: Shards) -> Iterator[dict[str, Any]]:
        blocks = shard_blocks(missing, self._ray.max_workers)
        actors = min(self._ray.max_workers, len(blocks))
        dataset = ray.data.from_arrow([pa.table({"shard": pa.array(block, pa.int64())}) for block in blocks])
        rows = dataset.map_batches(
            GenerateShards,
            fn_constructor_kwargs={
                "job": self._job,
                "plan": self._plan,
                "model_uri": self._model_uri,
                "use_gpu": self._ray.use_gpu,
            },
            batch_size=None,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(min_size=min(self._ray.min_workers, actors), max_size=actors),
            num_cpus=1,
            num_gpus=1 if self._ray.use_gpu else 0,
        )
        rows.context.target_max_block_size = ROW_BYTES
        for table in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from table.to_pylist()

    def _settle(self, row: dict[str, Any]) -> None:
        shard = row["shard"]
        if row["state"] == WORKING:
            self._working[shard] = row["rows"]
        else:
            self._working.pop(shard, None)
            self._done += len(self._layout.ids(shard))
        if row["state"] == COMMITTED:
            self._log.add(row)
            self._images += row["rows"]
            self._first_start = min(self._first_start, row["started"])
            self._last_end = max(self._last_end, row["started"] + row["seconds"])
        self._progress.update(self._done + sum(self._working.values()))


def _is_final(error: Exception) -> bool:
    """Whether repetition cannot help: our own errors, except that a store was out of reach."""
    return isinstance(error, PipelineError) and not isinstance(error, Transient)


def _named(error: Exception, failures: int) -> Exception:
    """Our own errors as they are; others, from Ray or a defect, with what to do."""
    if isinstance(error, PipelineError):
        return error
    return PipelineError(
        f"generation failed {failures} times, more than ray.max_failures allows, the last time with "
        f"{type(error).__name__}: {_first_line(error)}; what is committed stays and the same command goes on from there"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

"""Driver of `ddpm generate`: passes over the shards without a marker, until every shard has one.

The driver holds no image and no list of samples. It receives rows of some 200 bytes: one per finished shard, and
progress rows of shards in work.
"""

import logging
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray.data

from pipeline.cluster import hide_restart_notice
from pipeline.config.root import Config
from pipeline.errors import PipelineError, Transient
from pipeline.generation.commit import committed_shards
from pipeline.generation.distributed.actor import COMMITTED, ERROR, MEASURED, WORKING, GenerateShards
from pipeline.generation.distributed.prometheus import Telemetry
from pipeline.generation.forecast import Forecast, progress_note
from pipeline.generation.manifest import SamplePlan
from pipeline.generation.request_table import load_requests
from pipeline.generation.sample_plan import PlannedSamples, missing_shards
from pipeline.generation.shard_metrics import ShardMetrics
from pipeline.log import replay
from pipeline.progress import Progress
from pipeline.storage.retry import retry
from pipeline.storage.store import Store

logger = logging.getLogger("ddpm.generation")

Shards = npt.NDArray[np.int64]
MAX_BLOCK_SHARDS = 16
LONGEST_PAUSE_SECONDS = 60.0
ROW_BYTES = 1
"""Block size that makes Ray Data pass every row to the driver immediately."""
FORECAST_SHARDS = 16
"""With fewer missing shards the run ends before a forecast helps."""


def shard_blocks(shards: Shards, actors: int) -> list[Shards]:
    """Shards per task, in order. Blocks shrink towards the end, so that all actors finish together."""
    blocks, start = [], 0
    largest = max(MAX_BLOCK_SHARDS, len(shards) // 4096)
    while start < len(shards):
        size = max(1, min(largest, (len(shards) - start) // (4 * actors)))
        blocks.append(shards[start : start + size])
        start += size
    return blocks


class ShardDispatcher:
    """Dispatches missing shards to actors in passes until every shard has a marker. actor: class that makes shards."""

    def __init__(
        self,
        config: Config,
        folder: Store,
        plan: SamplePlan,
        model_uri: str,
        actor: type[GenerateShards] = GenerateShards,
    ) -> None:
        self._actor = actor
        self._ray, self._folder, self._plan, self._model_uri = config.ray, folder, plan, model_uri
        self._price = config.generate.price_per_hour
        self._layout = PlannedSamples(plan, load_requests(folder, plan)).layout
        self._log = ShardMetrics(folder)
        self._working: dict[int, int] = {}  # finished images, by unfinished shard
        # Of shards whose rows arrived; rows of a restarted block may be missing.
        self._images, self._first_start, self._last_end = 0, float("inf"), 0.0
        self._done, self._failed, self._failures = 0, 0, 0
        self._speeds: dict[str, float] = {}  # of each actor's last shard, img/s
        self._forecast: Forecast | None = None
        self._telemetry = Telemetry(folder.uri)

    def finish(self) -> dict[str, Any]:
        """Returns figures for the result. Raises a final error, or the error that exceeded ray.max_failures."""
        missing = self._missing()
        before = self._plan.num_samples - self._layout.rows(missing)
        self._large = len(missing) >= FORECAST_SHARDS
        self._progress = Progress("generate", self._plan.num_samples, "images", before)
        if len(missing):
            retry(lambda: self._attempt(missing), self._next_delay)
        self._progress.update(self._plan.num_samples)
        self._progress.close()
        figures: dict[str, Any] = {"images": self._plan.num_samples - before}
        if self._forecast is not None:
            figures["forecast"] = self._forecast.figures()
        if self._images:
            figures["images_per_second"] = round(self._images / max(self._last_end - self._first_start, 1e-9), 2)
        return figures

    def _attempt(self, missing: Shards) -> None:
        """One pass over the missing shards. Raises Transient when some have no marker afterwards."""
        try:
            self._pass(self._missing() if self._failures else missing)
            # A restarted block repeats rows that Ray drops as known, so only markers tell which shards are done.
            if left := len(self._missing()):
                raise Transient(f"{left} shards of {self._folder.uri} were not committed")
        finally:
            self._log.flush()

    def _next_delay(self, error: Exception) -> float:
        """The wait before the next pass. Raises the error when it is final or uses up ray.max_failures."""
        self._failures += 1
        self._telemetry.error()
        failures, limit = self._failures, self._ray.max_failures
        if _is_final(error) or 0 <= limit < failures:
            if isinstance(error, PipelineError):
                raise error
            raise PipelineError(
                f"generation failed {failures} times, more than ray.max_failures allows, the last time with "
                f"{type(error).__name__}: {_first_line(error)}; committed shards stay, and the same command continues "
                "from them"
            ) from error
        logger.warning("generate: failure %d of %d, going on: %s", failures, limit, _first_line(error))
        return float(min(LONGEST_PAUSE_SECONDS, 2.0 ** (failures - 1)))

    def _missing(self) -> Shards:
        return missing_shards(self._plan.num_shards, committed_shards(self._folder))

    def _pass(self, missing: Shards) -> None:
        """One pass over the missing shards, if any. Raises the last error of a shard, or an error of Ray."""
        if not len(missing):
            return
        self._working.clear()
        self._done = self._plan.num_samples - self._layout.rows(missing)
        error: Exception | None = None
        row_errors = 0
        for row in self._rows(missing):
            if row["warnings"] is not None:
                replay(pickle.loads(row["warnings"]))
            if row["state"] != ERROR:
                row_errors = 0
                self._settle(row)
                continue
            error = pickle.loads(row["error"])
            self._telemetry.error()
            row_errors += 1
            # After errors only, stop the pass: waiting helps, trying more shards does not.
            if _is_final(error) or row_errors > 2 * self._ray.max_workers:
                break
        if error is not None:
            raise error

    def _rows(self, missing: Shards) -> Iterator[dict[str, Any]]:
        hide_restart_notice()
        blocks = shard_blocks(missing, self._ray.max_workers)
        actors = min(self._ray.max_workers, len(blocks))
        # Not from_arrow: it starts a one-CPU task per block, and the actors may hold all CPUs.
        dataset = ray.data.from_blocks([pa.table({"shard": pa.array(block, pa.int64())}) for block in blocks])
        rows = dataset.map_batches(
            self._actor,
            fn_constructor_args=(self._folder, self._plan, self._model_uri, self._ray.use_gpu),
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
        if row["state"] == MEASURED:
            self._make_forecast(row)
        elif row["state"] == WORKING:
            self._working[shard] = row["rows"]
        else:
            self._working.pop(shard, None)
            self._done += len(self._layout.ids(shard))
        if row["state"] == COMMITTED:
            self._log.add(row)
            self._images += row["rows"]
            self._failed += row["failed"]
            self._first_start = min(self._first_start, row["started"])
            self._last_end = max(self._last_end, row["started"] + row["seconds"])
            self._speeds[row["actor"]] = row["img_s"]
            self._telemetry.committed(row["rows"], row["failed"])
        done = self._done + sum(self._working.values())
        self._progress.update(done, progress_note(self._failed, self._speeds))
        self._telemetry.at(done, self._plan.num_samples, self._progress.rate)

    def _make_forecast(self, row: dict[str, Any]) -> None:
        """Log one forecast per invocation, from the first actor that measured."""
        if self._forecast is None and self._large:
            left = self._plan.num_samples - self._done
            actors = min(self._ray.max_workers, self._plan.num_shards)
            speed, size = row["rows"] / max(row["seconds"], 1e-9), row["bytes"] / max(row["rows"], 1)
            self._forecast = Forecast(left, speed, size, actors, self._price)
            logger.info("%s", self._forecast)


def _is_final(error: Exception) -> bool:
    """Whether a retry is useless: any PipelineError except Transient."""
    return isinstance(error, PipelineError) and not isinstance(error, Transient)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]

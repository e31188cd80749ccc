"""Stages of a night on Ray: each calls one driver of the pipeline with the night's settings and URIs.

    <root>/datasets/<name>  <root>/runs/<name>-<date>-<settings>  <root>/models/<name>  <root>/samples/<name>-vN-<plan>

Samples depend only on the version and the `generate` settings, so the champion's samples usually exist already.
"""

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.cluster import cluster
from pipeline.config.base import digest_of
from pipeline.config.root import Config
from pipeline.errors import ConfigError, PipelineError, Stopped
from pipeline.evaluation.context import MIN_IMAGES
from pipeline.model_store.checkpoint import RUN, checkpoint_key, latest_checkpoint
from pipeline.model_store.manifest import RunPlan
from pipeline.model_store.register import Export, register
from pipeline.model_store.registry import Registry, version_key
from pipeline.nightly import stage_results as results
from pipeline.nightly.compare import EvaluatedSamples, compare, too_few_heldout
from pipeline.nightly.ledger import Night
from pipeline.storage.documents import read_document
from pipeline.storage.files import remove_artefact
from pipeline.storage.store import Store
from pipeline.training.distributed.data_loader import READ_CPUS

Result = dict[str, Any]


@dataclass(frozen=True)
class Drivers:
    """Drivers that the stages call; injected because report stands above nightly in the import order."""

    ingest: Callable[[Config, str, str], Result]
    train: Callable[[Config, str, str], Result]
    export: Export
    generate: Callable[[Config, str, str], Result]
    evaluate: Callable[[Config, str, str], Result]
    report: Callable[[Config, Sequence[str]], Result]


@dataclass(frozen=True)
class NightStages:
    """`pipeline.nightly.run_night.Stages` on one storage root."""

    config: Config
    root: Store
    drivers: Drivers

    @property
    def _name(self) -> str:
        return self.config.nightly.name

    @property
    def _dataset(self) -> str:
        return self.root.location(f"datasets/{self._name}")

    @property
    def _registry(self) -> Registry:
        return Registry(self.root.child("models", self._name))

    def settings(self) -> str:
        """Digest of the settings that decide a night's model; data, date and champion are not among them."""
        bounds = self.config.nightly.model_dump(mode="json", include={"source", "steps", "images", "train_seconds"})
        return digest_of([self.config.digest(), bounds])

    def ready(self) -> AbstractContextManager[None]:
        """One connection to Ray, or one local cluster, for all stages."""
        reading = math.ceil(self.config.train.lanes * READ_CPUS)
        return cluster(self.config.ray, self.config.ray.max_workers + 1 + reading)

    def snapshot(self, night: Night) -> results.SnapshotResult:
        """Ingest new images of the source as the next version of the dataset.

        Raises DataError when it has too few held-out images for the gate.
        """
        source = self.config.nightly.source
        if source is None:
            raise ConfigError("ddpm nightly needs --source (nightly.source): the images to ingest")
        done = self.drivers.ingest(self.config, source, self._dataset)
        found = results.SnapshotResult(**{name: done[name] for name in results.SnapshotResult.model_fields})
        if found.heldout is not None and found.heldout < MIN_IMAGES:  # before the training: the gate comes last
            raise too_few_heldout(self._dataset, found.heldout)
        return found

    # --- training ----------------------------------------------------------------------------------------------------

    def train(self, night: Night) -> results.TrainResult:
        """Train from the champion, if any, for the night's steps or time."""
        key = f"runs/{night.name}-{night.date}-{night.settings[:8]}"
        run = self.root.child(key)
        with _time_limit(self.config.nightly.train_seconds) as is_over:
            try:
                state = self.drivers.train(self._night_config(night), self._dataset, run.uri)["state"]
            except Stopped:
                if not is_over():
                    raise
                state = "ended by nightly.train_seconds"
        checkpoint = latest_checkpoint(run)
        if checkpoint is None:
            raise PipelineError(f"{run.uri} has no checkpoint after nightly.train_seconds: allow more time")
        return results.TrainResult(
            run=key,
            checkpoint=run.location(checkpoint_key(checkpoint.step)),
            step=checkpoint.step,
            images=checkpoint.images,
            loss=checkpoint.loss,
            dataset_digest=read_document(run, RUN, RunPlan).dataset_digest,
            parent=night.champion,
            state=state,
        )

    def _night_config(self, night: Night) -> Config:
        """Settings with the night's own seed, so that noise and order differ by date.

        nightly.steps and nightly.images apply only to a night that starts from a champion.
        """
        settings, bounds = self.config.train, self.config.nightly
        changes: Result = {"seed": settings.seed + night.day.toordinal()}
        if night.champion is not None:
            steps = bounds.steps or settings.steps
            if bounds.images is not None:
                steps = math.ceil(bounds.images / settings.global_batch)
            changes |= {"steps": steps, "init_from": self._registry.folder(night.champion).uri}
        return self.config.model_copy(update={"train": settings.model_copy(update=changes)})

    # --- the model and its samples -----------------------------------------------------------------------------------

    def export(self, night: Night) -> results.ExportResult:
        """Register the night's checkpoint as a version."""
        trained = results.finished(night.done.train)
        facts = {"night": night.date, **trained.model_dump(include={"dataset_digest", "parent", "step", "images"})}
        version = register(self.config, self._registry, self.drivers.export, trained.checkpoint, facts)
        return results.ExportResult(version=version.number, digest=version.model_digest, sha256=version.sha256)

    def samples(self, night: Night) -> results.SamplesResult:
        """Draw samples of challenger and champion from the same seeds."""
        challenger = self._draw(results.finished(night.done.export).version)
        champion = None if night.champion is None else self._draw(night.champion)
        return results.SamplesResult(challenger=challenger, champion=champion)

    def _draw(self, version: int) -> str:
        key = f"samples/{self._name}-{version_key(version)}-{self.config.generate.digest()[:8]}"
        self.drivers.generate(self.config, self._registry.folder(version).uri, self.root.location(key))
        return key

    def evaluate(self, night: Night) -> results.Comparison:
        """Evaluate both samples folders and compare them."""
        drawn = results.finished(night.done.samples)
        challenger = self._evaluated(results.finished(night.done.export).version, drawn.challenger)
        champion = None
        if night.champion is not None and drawn.champion is not None:
            champion = self._evaluated(night.champion, drawn.champion)
        return compare(self.config, self._dataset, challenger, champion)

    def _evaluated(self, version: int, key: str) -> EvaluatedSamples:
        uri = self.root.location(key)
        self.drivers.evaluate(self.config, uri, self._dataset)
        return EvaluatedSamples(version_key(version), uri)

    # --- afterwards --------------------------------------------------------------------------------------------------

    def report(self, night: Night) -> results.ReportResult:
        """Write the HTML report beside the ledger; it covers the night's run and samples."""
        where = self.root.location(f"nightly/{night.name}/{night.date}")
        return results.ReportResult(uri=self.drivers.report(self.config, [where])["uri"])

    def retention(self, night: Night, old: list[Night]) -> results.RetentionResult:
        """Delete runs and samples of old nights; keep versions, ledgers, reports, and samples of aliased versions."""
        head = self._registry.head()
        kept = {results.finished(night.done.export).version, head.champion, head.challenger}
        removed = []
        for other in old:
            keys = [results.finished(other.done.train).run]
            if results.finished(other.done.export).version not in kept:
                keys.append(results.finished(other.done.samples).challenger)
            removed += [key for key in keys if remove_artefact(self.root.child(key))]
        return results.RetentionResult(removed=tuple(removed))


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[Callable[[], bool]]:
    """Send SIGTERM to this process after `seconds`: training then stops at a checkpoint. Yields whether it was sent."""
    if seconds is None:
        yield lambda: False
        return
    over = threading.Event()

    def end() -> None:
        over.set()
        os.kill(os.getpid(), signal.SIGTERM)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield over.is_set
    finally:
        timer.cancel()

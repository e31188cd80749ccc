"""The stages of a night on Ray: each calls one stage of the line with this night's settings and places.

    <root>/datasets/<name>  <root>/runs/<name>-<date>-<settings>  <root>/models/<name>  <root>/samples/<name>-vN-<plan>

The samples of a version are a function of the version and of `generate`, so those of the champion are mostly there.
"""

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from pipeline.cluster import cluster
from pipeline.config.base import digest_of
from pipeline.config.root import Config
from pipeline.errors import ConfigError, PipelineError, Stopped
from pipeline.model_store.checkpoint import RUN, checkpoint_key, latest_checkpoint
from pipeline.model_store.manifest import RunPlan
from pipeline.model_store.register import Export, register
from pipeline.model_store.registry import Registry, version_key
from pipeline.nightly.compare import compare
from pipeline.nightly.ledger import Night
from pipeline.storage.documents import read_document
from pipeline.storage.files import remove_artefact
from pipeline.storage.store import Store
from pipeline.training.distributed.data_loader import READ_CPUS

__all__ = ["Actions", "NightWork"]

Result = dict[str, Any]


class _Report(Protocol):
    def __call__(self, config: Config, uris: Sequence[str]) -> Result: ...


@dataclass(frozen=True)
class Actions:
    """The stages of the line, as in pipeline.stages."""

    ingest: Callable[[Config, str, str], Result]
    train: Callable[[Config, str, str], Result]
    export: Export
    generate: Callable[[Config, str, str], Result]
    evaluate: Callable[[Config, str, str], Result]
    report: _Report


@dataclass(frozen=True)
class NightWork:
    """`pipeline.nightly.run_night.Work` on one root."""

    config: Config
    root: Store
    actions: Actions

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
        """Digest of all that decides a night's model besides its data, its date and its champion."""
        bounds = self.config.nightly.model_dump(mode="json", include={"source", "steps", "images", "train_seconds"})
        return digest_of([self.config.digest(), bounds])

    def ready(self) -> AbstractContextManager[None]:
        """One connection to Ray, or one local cluster, for all stages."""
        reading = math.ceil(self.config.train.lanes * READ_CPUS)
        return cluster(self.config.ray, self.config.ray.max_workers + 1 + reading)

    def snapshot(self, night: Night) -> Result:
        """What is new in the source becomes the next generation of the dataset."""
        source = self.config.nightly.source
        if source is None:
            raise ConfigError("ddpm nightly needs --source (nightly.source): where images come from")
        done = self.actions.ingest(self.config, source, self._dataset)
        return {name: done[name] for name in ("digest", "generation", "train", "heldout", "state", "uri")}

    # --- training ----------------------------------------------------------------------------------------------------

    def train(self, night: Night) -> Result:
        """From the champion, if there is one, for this night's steps or time."""
        key = f"runs/{night.name}-{night.date}-{night.settings[:8]}"
        run = self.root.child(key)
        with _time_bound(self.config.nightly.train_seconds) as is_over:
            try:
                state = self.actions.train(self._bounded(night), self._dataset, run.uri)["state"]
            except Stopped:
                if not is_over():
                    raise
                state = "ended by nightly.train_seconds"
        checkpoint = latest_checkpoint(run)
        if checkpoint is None:
            raise PipelineError(f"{run.uri} has no checkpoint after nightly.train_seconds: allow more time")
        return {
            "run": key,
            "checkpoint": run.location(checkpoint_key(checkpoint.step)),
            "step": checkpoint.step,
            "images": checkpoint.images,
            "loss": checkpoint.loss,
            "dataset_digest": read_document(run, RUN, RunPlan).dataset_digest,
            "parent": night.champion,
            "state": state,
        }

    def _bounded(self, night: Night) -> Config:
        """Each night draws other noise and another order; a first night, without a champion, trains as train says."""
        settings, bounds = self.config.train, self.config.nightly
        changes: Result = {"seed": settings.seed + night.day.toordinal()}
        if night.champion is not None:
            steps = bounds.steps or settings.steps
            if bounds.images is not None:
                steps = math.ceil(bounds.images / settings.global_batch)
            changes |= {"steps": steps, "init_from": self._registry.folder(night.champion).uri}
        return self.config.model_copy(update={"train": settings.model_copy(update=changes)})

    # --- the model and its samples -----------------------------------------------------------------------------------

    def export(self, night: Night) -> Result:
        trained = night.done["train"]
        facts = {"night": night.date, **{k: trained[k] for k in ("dataset_digest", "parent", "step", "images")}}
        version = register(self.config, self._registry, self.actions.export, trained["checkpoint"], facts)
        return {"version": version.number, "digest": version.model_digest, "sha256": version.sha256}

    def samples(self, night: Night) -> Result:
        """Of challenger and champion, from the same seeds; keys relative to the root."""
        pair = {"challenger": night.done["export"]["version"], "champion": night.champion}
        return {role: None if version is None else self._draw(version) for role, version in pair.items()}

    def _draw(self, version: int) -> str:
        key = f"samples/{self._name}-{version_key(version)}-{self.config.generate.digest()[:8]}"
        self.actions.generate(self.config, self._registry.folder(version).uri, self.root.location(key))
        return key

    def evaluate(self, night: Night) -> Result:
        drawn, versions = night.done["samples"], (night.done["export"]["version"], night.champion)
        named = [
            (version_key(version), self.root.location(drawn[role]))
            for role, version in zip(("challenger", "champion"), versions, strict=True)
            if version is not None
        ]
        for _, uri in named:
            self.actions.evaluate(self.config, uri, self._dataset)
        found = compare(self.config, self._dataset, named[0], named[1] if len(named) > 1 else None)
        sections = {"challenger": found.challenger, "champion": found.champion, "difference": found.difference}
        return {
            **{
                name: None if section is None else section.model_dump(mode="json") for name, section in sections.items()
            },
            "metrics": found.metrics,
        }

    # --- afterwards --------------------------------------------------------------------------------------------------

    def report(self, night: Night) -> Result:
        """The ledger's own page: it brings the run and the samples."""
        where = self.root.location(f"nightly/{night.name}/{night.date}")
        page = self.actions.report(self.config, [where])["uri"]
        return {"uri": page}

    def retention(self, night: Night, old: list[Night]) -> Result:
        """Runs and samples of old nights go; versions, ledgers and reports stay, and so do the samples of an alias."""
        head = self._registry.head()
        kept = {night.done["export"]["version"], head.champion, head.challenger}
        removed = []
        for other in old:
            keys = [other.done["train"]["run"]]
            if other.done["export"]["version"] not in kept:
                keys.append(other.done["samples"]["challenger"])
            removed += [key for key in keys if remove_artefact(self.root.child(key))]
        return {"removed": removed}


@contextmanager
def _time_bound(seconds: float | None) -> Iterator[Callable[[], bool]]:
    """SIGTERM to this process after some time: training then ends with a checkpoint. Yields whether it was sent."""
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

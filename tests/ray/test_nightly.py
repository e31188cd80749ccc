"""Two real nights on digits that become more: dataset, runs, versions, samples, scores, champion, report."""

import hashlib
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from pipeline.config.root import Config
from pipeline.evaluation.driver import evaluate
from pipeline.generation.commit import read_plan
from pipeline.generation.driver import generate
from pipeline.images.png import encode_png
from pipeline.ingest.dataset import read_dataset
from pipeline.ingest.driver import ingest
from pipeline.model_store.export import export
from pipeline.model_store.manifest import RunPlan
from pipeline.model_store.registry import Registry
from pipeline.nightly.driver import nightly
from pipeline.nightly.ledger_store import Ledgers
from pipeline.nightly.night_stages import Drivers, NightStages
from pipeline.nightly.run_night import Effects
from pipeline.nightly.stage_results import Comparison
from pipeline.report.driver import report
from pipeline.storage.documents import parse
from pipeline.storage.store import Store, resolve
from pipeline.training.driver import train
from tiny import config

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

DRIVERS = Drivers(ingest, train, export, generate, evaluate, report)


def add_images(folder: Path, first: int, last: int) -> None:
    digits = load_digits()
    for k in range(first, last):
        file = folder / str(digits.target[k]) / f"{k:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_png((digits.images[k][..., None] * 255 / 16).round().astype(np.uint8)))


def settings(source: Path) -> Config:
    return config(
        train={"steps": 24, "checkpoint_every": 12, "grid_every": 24},
        generate={"num_samples": 64},
        evaluate={"classifier_epochs": 3, "classifier_width": 8},
        gate={"tolerance": 1e3, "ceiling": 1e6},  # of models that hardly trained any will do
        nightly={"name": "digits", "source": str(source), "steps": 12, "keep_nights": 1},
    )


def run(root: Store, source: Path, day: int) -> dict:
    values, told = settings(source), []
    effects = Effects(
        now=lambda: datetime(2026, 11, day, 3, tzinfo=UTC), notify=lambda _, event: told.append(event["event"])
    )
    result = nightly(values, root.uri, NightStages(values, root, DRIVERS), date(2026, 11, day), effects)
    return {**result, "told": told}


def test_two_nights_and_one_with_nothing_new(tmp_path: Path):
    source, root = tmp_path / "images", resolve(str(tmp_path / "root"), config().storage)
    registry, ledgers = Registry(root.child("models/digits")), Ledgers(root.child("nightly/digits"))
    add_images(source, 0, 400)
    first = run(root, source, 1)
    assert (first["state"], first["champion"], first["told"], first["warnings"]) == ("promoted", 1, ["success"], [])
    assert root.read("nightly/digits/2026-11-01/report.html").startswith(b"<!doctype html>")
    night = ledgers.read(date(2026, 11, 1))
    assert night.done.train.step == 24

    add_images(source, 400, 600)
    second = run(root, source, 2)
    assert (second["state"], second["champion"], second["warnings"]) == ("promoted", 2, [])
    night = ledgers.read(date(2026, 11, 2))
    assert (night.done.snapshot.generation, night.done.train.step) == (2, 12)
    _warm_start_and_data_are_pinned(root, night.done.train.run, registry)
    _both_were_measured_alike(night.done.evaluate)
    assert "95 % interval" in second["reason"]

    assert night.done.retention.removed == (
        ledgers.read(date(2026, 11, 1)).done.train.run,
        ledgers.read(date(2026, 11, 1)).done.samples.challenger,
    )
    assert not list(root.list("runs/digits-2026-11-01"))
    assert registry.versions() == [1, 2], "a version is for good"
    again, third = run(root, source, 2), run(root, source, 3)
    assert (again["state"], again["told"]) == ("promoted", [])
    assert (third["state"], third["told"]) == ("skipped", ["skipped"])
    assert len(list(root.list("runs/"))) == len(list(root.list("runs/digits-2026-11-02")))

    asked = generate(settings(source), f"{registry.store.uri}@champion", root.location("samples/asked"), dry_run=True)
    assert f"from {registry.folder(2).uri} with" in asked["summary"]
    drawn = read_plan(root.child(night.done.samples.challenger))
    assert (drawn.model_uri, drawn.model_digest) == (registry.folder(2).uri, registry.version(2).model_digest)


def _warm_start_and_data_are_pinned(root: Store, key: str, registry: Registry) -> None:
    plan = parse(RunPlan, root.child(key).read("run.json"), key)
    assert plan.init_digest == registry.version(1).sha256
    assert (
        plan.init_digest
        == hashlib.sha256(registry.folder(1).read("unet/diffusion_pytorch_model.safetensors")).hexdigest()
    )
    assert plan.dataset_digest == read_dataset(root.child("datasets/digits")).digest()
    assert registry.version(2).facts["parent"] == 1


def _both_were_measured_alike(found: Comparison) -> None:
    one, other, difference = found.challenger, found.champion, found.difference
    assert (one.protocol, one.floor, one.ceilings) == (other.protocol, other.floor, other.ceilings)
    assert one.protocol["samples.seed"] == 0
    assert difference.low < difference.value < difference.high
    # groups estimate the same thing as the scores; they differ in how subsets are drawn
    assert difference.value == pytest.approx(one.value - other.value, abs=difference.high - difference.low)
    assert found.metrics[one.metric] == one.value

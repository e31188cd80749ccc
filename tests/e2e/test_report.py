"""What is at rest arrives on the page: every picture as a PNG that decodes, every curve with the run's own numbers."""

import base64
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from drawn import points
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.config import Config, StorageConfig
from pipeline.engine.images import decode_pixels, encode_png, grid
from pipeline.errors import ConfigError, DataError
from pipeline.manifests import CheckpointManifest, DatasetManifest, SamplePlan, ShardEntry
from pipeline.metrics.sketch import Score
from pipeline.report.scales import figures
from pipeline.schema import DATASET, IMAGE, SAMPLES
from pipeline.stages.report import report
from pipeline.storage.checkpoints import write_checkpoint
from pipeline.storage.evaluations import write_evaluation
from pipeline.storage.metrics import write_metrics
from pipeline.storage.samples import commit_shard, create_plan, read_plan, seal
from pipeline.storage.shard_log import ShardLog
from pipeline.storage.shards import parquet_bytes, put_file, write_dataset
from pipeline.storage.store import Store, resolve

pytestmark = pytest.mark.e2e

STEPS, BATCH = 250, 32
GRID_STEPS = (100, 200, 250)
CONFIG = Config.model_validate({"train": {"steps": STEPS, "lr": 3e-4}})
FAILED = 3
DIGITS = (load_digits().images * 255 / 16).round().astype(np.uint8)[..., None]
ROOT = Path(__file__).parent.parent.parent


def loss_at(step: int) -> float:
    return 1 / step


def make_run(store: Store, steps: int = STEPS) -> None:
    rows = [
        {
            "step": step,
            "images": step * BATCH,
            "epoch": 0,
            "loss": loss_at(step),
            "lr": 3e-4 * min(step / 10, 1),
            "grad_norm": 2 + step % 5,
            "step_seconds": 0.5 if step > 1 else 60.0,
            "data_wait_seconds": 0.05,
            "world_size": 2,
        }
        for step in range(1, steps + 1)
    ]
    parts = [write_metrics(store, rows[:100]), write_metrics(store, rows[100:])]
    write_metrics(store, [{**rows[-1], "step": 999, "loss": 77.0}])  # of an attempt that no checkpoint names
    write_checkpoint(
        store,
        CheckpointManifest(
            step=steps,
            images=steps * BATCH,
            epoch=0,
            batches=steps,
            world_size=2,
            dataset_digest="d" * 64,
            image_size=8,
            channels=1,
            classes=None,
            config=CONFIG.model_dump(mode="json"),
            config_digest="c" * 64,
            lane_digests=("x",),
            metric_parts=tuple(parts),
            ema=("ema",),
            files=(),
        ),
    )
    for step in GRID_STEPS:
        store.put(f"grids/step-{step:09d}.png", grid_png(step))


def grid_png(step: int) -> bytes:
    return encode_png(grid(DIGITS[step : step + 9], 3, 2, 2))


def make_samples(store: Store, num: int = 150) -> None:
    plan = SamplePlan(
        num_samples=num,
        shard_size=64,
        batch_size=16,
        seed=5,
        model_uri="m",
        model_digest="e" * 64,
        weights="ema",
        sampler="ddim",
        steps=10,
        eta=0.0,
        variance="fixed_large",
        clip=True,
        image_size=8,
        channels=1,
        num_classes=None,
        diffusion={},
    )
    create_plan(store, plan)
    for shard, first in enumerate(range(0, num, 64)):
        rows = [sample(i) for i in range(first, min(first + 64, num))]
        commit_shard(store, plan, shard, pa.Table.from_pylist(rows, schema=SAMPLES), "a")
    seal(store, plan)
    log = ShardLog(store)
    for i, rows, started, seconds in SHARDS:
        speed = {"started": started, "seconds": seconds, "img_s": rows / seconds}
        log.add({"shard": i, "rows": rows, "failed": 0, "node": "n", **speed})
    log.flush()


SHARDS = ((0, 64, 1000.0, 2.0), (1, 64, 1001.0, 4.0), (2, 22, 9000.0, 2.0))
"""Two actors for 5 seconds, and much later a rerun for the last shard."""


def sample(sample_id: int) -> dict:
    failed = sample_id == FAILED
    image = None if failed else {"bytes": encode_png(DIGITS[sample_id]), "path": None}
    return {
        "sample_id": sample_id,
        "image": image,
        "seed": 5,
        "model_digest": "e" * 64,
        "ema": "ema",
        "sampler": "ddim",
        "steps": 10,
        "eta": 0.0,
        "width": 8,
        "height": 8,
        "status": "failed" if failed else "ok",
    }


def make_scores(store: Store, value: float = 5.25, warnings: tuple[str, ...] = ()) -> None:
    values = {"samples": value, "floor": 1.0625, "blurred": 46.5, "noise": 78.875}
    scores = [Score(metric="FD-class-cnn", kind=k, value=v, n=140, reference_n=900) for k, v in values.items()]
    scores += [
        Score(metric="KD-class-cnn", kind=k, value=v / 100, spread=0.004321, n=140, reference_n=900)
        for k, v in values.items()
    ]
    protocol = {
        "id": hashlib.sha256(str(value).encode()).hexdigest(),
        "dataset_digest": "d" * 64,
        "samples_plan": read_plan(store).fingerprint,
        "reference": "train",
        "n": 140,
        "failed": 1,
        "extractor": "class-cnn",
        "weights_sha256": "ab12" * 16,
        "preprocessing": "uint8 8x8x1 / 127.5 - 1, no resize",
        "feature_dim": 128,
        "heldout_accuracy": 0.973,
        "warnings": warnings,
    }
    write_evaluation(store, tuple(scores), protocol)


def make_dataset(store: Store) -> None:
    rows = DIGITS[:120]
    images = pa.array([{"bytes": encode_png(image), "path": None} for image in rows], IMAGE)
    size, ids = pa.array(np.full(len(rows), 8, np.int32)), np.arange(len(rows))
    table = pa.table([ids, images, pa.nulls(len(rows), pa.int32()), size, size, ["h"] * len(rows)], schema=DATASET)
    file = put_file(store, "data/train-00000.parquet", parquet_bytes(table, 50))
    manifest = DatasetManifest(
        source="digits",
        source_rows=len(rows) + 2,
        image_size=8,
        channels=1,
        classes=None,
        shards=(ShardEntry(**file.model_dump(), split="train", rows=len(rows), first_id=0),),
        rejects=(),
        reject_counts={"truncated": 2},
        channel_mean=(0.0,),
        channel_std=(1.0,),
        ingest={},
    )
    write_dataset(store, manifest)


def pictures(html: str) -> list[bytes]:
    return [base64.b64decode(data, validate=True) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', html)]


def described(html: str, title: str) -> str:
    return re.search(rf'aria-label="{re.escape(title)}\. ([^"]*)"', html)[1]


@pytest.fixture
def base(tmp_path: Path) -> Store:
    return resolve(str(tmp_path), StorageConfig())


def test_a_run_and_its_samples_on_one_page(base: Store, tmp_path: Path):
    run, samples, dataset = base.child("runs/digits"), base.child("samples/digits"), base.child("datasets/digits")
    make_run(run)
    make_samples(samples)
    make_scores(samples)
    make_dataset(dataset)
    out = tmp_path / "copies" / "page.html"
    result = report(CONFIG, [run.uri, samples.uri, dataset.uri], str(out), "verified: 150 samples, no gap")
    html = run.read("report.html").decode()
    assert out.read_text() == html
    assert (result["uri"], result["out"]) == (run.location("report.html"), str(out))
    assert result["summary"] == f"report: {run.location('report.html')} and {out}"

    usable = [i for i in range(150) if i != FAILED][:100]
    found = pictures(html)
    assert len(found) == result["pictures"] == 2 + len(GRID_STEPS)
    np.testing.assert_array_equal(decode_pixels(found[0], 10**6), grid(DIGITS[usable], 10, 8, 2))
    np.testing.assert_array_equal(decode_pixels(found[1], 10**6), grid(DIGITS[:100], 10, 8, 2))
    assert found[2:] == [grid_png(step) for step in GRID_STEPS]
    assert all(Image.open(io.BytesIO(png)).size > (0, 0) for png in found)

    texts = "FD-class-cnn", "5.25", "1.062", "46.5", "78.88", "n = 140", "ab12ab12", "dddddddd", "900 real images"
    for text in texts:
        assert text in html, text
    assert "FID" not in re.sub(r"base64,[^\"]+", "", html)
    assert "150, 1 failed" in html
    assert "verified: 150 samples, no gap" in html
    assert "97.3% right on held-out images" in html
    assert "Rejected images" in html
    assert "lr: 0.0003" in html
    assert "shard_size: 64" in html
    assert f"{figures(150 / 7)} img/s" in html, "rows over the seconds in which any actor worked"
    assert f"3 shards on 1 node, one actor {figures(150 / 8)} img/s" in html
    assert "shard 2, one actor" in html
    assert not re.search(r'(?:src|href)="(?!data:)', html)


def test_every_curve_has_the_runs_own_numbers(base: Store):
    make_run(base)
    report(CONFIG, [base.uri])
    html = base.read("report.html").decode()
    assert "77" not in described(html, "Loss"), "a part that no checkpoint names"
    assert points(html, "Loss") == [250, 84]  # every step, and means of 3
    every, means = described(html, "Loss").split("mean of 3 steps: ")
    assert "250 points, from 1 at step 1 to 0.004 at 250, lowest 0.004, highest 1." in every
    first = np.mean([loss_at(1), loss_at(2), loss_at(3)])
    assert f"84 points, from {figures(first)} at step 3 to 0.004 at 250" in means
    assert points(html, "Learning rate") == [250]
    assert f"from {figures(3e-5)} at step 1 to {figures(3e-4)} at 250" in described(html, "Learning rate")
    assert points(html, "Gradient norm") == [250, 84]
    assert "lowest 2, highest 6." in described(html, "Gradient norm")
    speed = described(html, "Training speed")
    assert f"from {figures(3 * BATCH / 61)} at step 3 to {figures(BATCH / 0.5)} at 250" in speed
    waited = described(html, "Time spent waiting for data")
    assert f"from {figures(100 * 0.15 / 61)} at step 3 to 10 at 250" in waited
    assert "64 img/s" in html, "the first step waits for everything to start, and is no part of the rate"
    assert "2 workers, 10.0% waiting for data" in html


def test_runs_of_the_same_name_are_told_apart(base: Store):
    one, two = base.child("a/run"), base.child("b/run")
    make_run(one)
    make_run(two, steps=150)
    report(CONFIG, [one.uri, two.uri, one.uri])
    html = one.read("report.html").decode()
    assert "run a/run · run b/run" in html
    assert points(html, "Loss") == [84, 75]
    assert described(html, "Loss").index("a/run: 84 points") < described(html, "Loss").index("b/run: 75 points")
    assert "b/run: Training" in html


@pytest.mark.parametrize(
    ("value", "warnings", "kind"),
    [(5.0, (), "good"), (5.0, ("few images",), "warning"), (60.0, (), "warning"), (79.0, (), "bad")],
)
def test_the_verdict_is_where_the_samples_stand(base: Store, value: float, warnings: tuple[str, ...], kind: str):
    make_samples(base)
    make_scores(base, value, warnings)
    report(CONFIG, [base.uri])
    html = base.read("report.html").decode()
    line = re.search(r'<p class="verdict (\w+)">(.*?)</p>', html)
    assert line[1] == kind
    assert f"FD-class-cnn {figures(value)} at n = 140" in line[2]
    assert ("Few images." in line[2]) == bool(warnings)


def test_samples_without_anything_else_are_a_page_too(base: Store):
    make_samples(base)
    base.delete("metrics/shards.parquet")
    first = report(CONFIG, [base.uri])
    page = base.read("report.html")
    assert report(CONFIG, [base.uri]) == first
    assert base.read("report.html") == page, "equal stores give an equal page"
    assert len(pictures(page.decode())) == 1


def test_what_cannot_be_reported_is_one_clear_error(base: Store):
    with pytest.raises(DataError, match="nothing to report at"):
        report(CONFIG, [base.child("nothing").uri])
    with pytest.raises(ConfigError, match="needs a URI"):
        report(CONFIG, [])
    make_samples(base.child("samples"))
    with pytest.raises(ConfigError, match="names no file"):
        report(CONFIG, [base.child("samples").uri], out=f"{base.uri}/")
    base.child("samples").delete("manifest.json")
    with pytest.raises(DataError, match="not sealed"):
        report(CONFIG, [base.child("samples").uri])
    base.put("run/config.yaml", b"{}")
    with pytest.raises(DataError, match="no checkpoint yet"):
        report(CONFIG, [base.child("run").uri])


def test_the_command_writes_the_page_to_s3(s3_uri: str, tmp_path: Path):
    run = resolve(f"{s3_uri}/run", StorageConfig())
    make_run(run)
    out = tmp_path / "page.html"
    words = [sys.executable, "-m", "jobs", "report", run.uri, "--out", str(out), "--json"]
    done = subprocess.run(words, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["uri"] == f"{run.uri}/report.html"
    assert run.read("report.html") == out.read_bytes()
    assert len(pictures(out.read_text())) == result["pictures"] == len(GRID_STEPS)
    missing = subprocess.run(
        [*words[:4], f"{s3_uri}/no"], cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=120
    )
    assert missing.returncode == 3
    assert missing.stderr.splitlines() == [
        f"error: nothing to report at {s3_uri}/no: give a run, a samples folder or a dataset"
    ]


def test_scores_of_other_samples_make_no_verdict(base: Store):
    """The folder was made again from another plan: what was measured of the old samples is not of these."""
    make_samples(base)
    make_scores(base)
    for entry in [e for e in base.list() if not e.key.startswith("metrics/evaluation")]:
        base.delete(entry.key)
    make_samples(base, num=100)
    report(CONFIG, [base.uri])
    assert 'class="verdict' not in base.read("report.html").decode()

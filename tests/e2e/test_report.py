"""The page shows the stored data: every picture is a valid PNG, every curve has the numbers of its run."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from drawn import points
from PIL import Image
from reported import (
    BATCH,
    CONFIG,
    DIGITS,
    FAILED,
    GRID_STEPS,
    grid_png,
    loss_at,
    make_dataset,
    make_run,
    make_samples,
    make_scores,
)

from pipeline.config.storage import StorageConfig
from pipeline.errors import ConfigError, DataError
from pipeline.images.convert import grid
from pipeline.images.png import decode_pixels
from pipeline.report.driver import report
from pipeline.report.render.scales import figures
from pipeline.storage.store import Store, resolve

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parent.parent.parent


def pictures(html: str) -> list[bytes]:
    return [base64.b64decode(data, validate=True) for data in re.findall(r'src="data:image/png;base64,([^"]+)"', html)]


def described(html: str, title: str) -> str:
    return re.search(rf'aria-label="{re.escape(title)}\. ([^"]*)"', html)[1]


def cut(sheet: np.ndarray) -> np.ndarray:
    """The 100 images of a sheet of 8x8 images, enlarged 8 times, with gaps of 2 pixels: uint8 [100, 8, 8, 1]."""
    return np.stack([sheet[y : y + 64 : 8, x : x + 64 : 8] for y in range(0, 660, 66) for x in range(0, 660, 66)])


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

    found = pictures(html)
    assert len(found) == result["pictures"] == 2 + len(GRID_STEPS)
    cells = cut(decode_pixels(found[0], 10**6))
    drawn = [int((DIGITS[:150] == cell).all((1, 2, 3)).argmax()) for cell in cells]
    np.testing.assert_array_equal(cells, DIGITS[drawn])
    assert drawn == sorted(set(drawn))
    assert drawn != list(range(100)), "at random, not the first"
    assert FAILED not in drawn
    assert "100 uncurated samples of digits, from 149 random ones in 3 of 3 shards." in html
    np.testing.assert_array_equal(decode_pixels(found[1], 10**6), grid(DIGITS[:100], 10, 8, 2))
    assert found[2:] == [grid_png(step) for step in GRID_STEPS]
    assert all(Image.open(io.BytesIO(png)).size > (0, 0) for png in found)

    texts = "FD-class-cnn", "5.25", "1.062", "46.5", "78.88", "n = 140", "ab12ab12", "dddddddd", "900 real images"
    for text in texts:
        assert text in html, text
    assert "FID" not in re.sub(r"base64,[^\"]+", "", html)
    assert "150, 1 failed" in html
    assert "verified: 150 samples, no gap" in html
    assert "97.3% accuracy on held-out images" in html
    assert "Rejected images" in html
    assert "lr: 0.0003" in html
    assert "shard_size: 64" in html
    assert f"{figures(150 / 7)} img/s" in html, "rows over the seconds in which any actor worked"
    assert f"3 shards on 1 node, one actor {figures(150 / 8)} img/s" in html
    assert "shard 2, one actor" in html
    assert not re.search(r'(?:src|href)="(?!data:)', html)


def test_every_curve_has_the_numbers_of_its_run(base: Store):
    make_run(base)
    report(CONFIG, [base.uri])
    html = base.read("report.html").decode()
    assert "77" not in described(html, "Loss"), "a part that no checkpoint lists"
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


def test_runs_of_the_same_name_get_distinct_names(base: Store):
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
def test_the_verdict_uses_floor_and_ceilings(base: Store, value: float, warnings: tuple[str, ...], kind: str):
    make_samples(base)
    make_scores(base, value, warnings)
    report(CONFIG, [base.uri])
    html = base.read("report.html").decode()
    line = re.search(r'<p class="verdict (\w+)">(.*?)</p>', html)
    assert line[1] == kind
    assert f"FD-class-cnn {figures(value)} at n = 140" in line[2]
    assert ("Few images." in line[2]) == bool(warnings)


def test_a_page_with_samples_only(base: Store):
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
        f"error: nothing to report at {s3_uri}/no: pass a run, a samples folder, a dataset or a night"
    ]


def test_scores_of_other_samples_make_no_verdict(base: Store):
    """The folder was generated again from another plan: scores of the old samples do not apply."""
    make_samples(base)
    make_scores(base)
    for entry in [e for e in base.list() if not e.key.startswith("metrics/evaluation")]:
        base.delete(entry.key)
    make_samples(base, num=100)
    report(CONFIG, [base.uri])
    assert 'class="verdict' not in base.read("report.html").decode()

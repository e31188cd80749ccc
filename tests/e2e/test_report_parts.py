"""Parts of a page besides curves and scores: settings, stragglers, restarts, cost, verification, nights, comparison."""

import base64
import json
import re
from html import unescape
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from drawn import points
from reported import CONFIG, GRID_STEPS, STEPS, make_run, make_samples, make_scores
from tiny_samples import write_samples

from jobs.__main__ import main
from pipeline.config.root import Config
from pipeline.config.storage import StorageConfig
from pipeline.errors import ConfigError, DataError
from pipeline.images.png import decode_pixels, encode_png
from pipeline.nightly.ledger import Night
from pipeline.nightly.ledger_store import Ledgers
from pipeline.nightly.night_stages import Drivers, NightStages
from pipeline.report.comparison import final_loss
from pipeline.report.driver import compare, report
from pipeline.report.render.scales import figures
from pipeline.report.run_section import read_run
from pipeline.storage.store import Store, resolve

pytestmark = pytest.mark.e2e


@pytest.fixture
def base(tmp_path: Path) -> Store:
    return resolve(str(tmp_path), StorageConfig())


def table(html: str, name: str) -> list[list[str]]:
    """Cells of the table with this title; the header comes first."""
    inside = re.search(rf'aria-label="{re.escape(name)}"[^>]*>\s*<table>(.*?)</table>', html, re.S)[1]
    rows = re.findall(r"<tr>(.*?)</tr>", inside, re.S)
    return [[unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)] for row in rows]


def test_settings_stragglers_starts_and_cost(base: Store):
    run, samples = base.child("run"), base.child("samples")
    make_run(run)
    make_samples(samples)
    for step, when in ((0, "09"), (100, "10")):
        start = {"step": step, "world_size": 2, "node": "10.0.0.7", "started": f"2026-11-01T{when}:00:00Z"}
        run.put_json(f"attempts/step-{step:09d}-aa.json", start)
    priced = CONFIG.model_copy(update={"generate": CONFIG.generate.model_copy(update={"price_per_hour": 36.0})})
    report(priced, [run.uri, samples.uri])
    html = run.read("report.html").decode()

    assert table(html, "Settings of run that differ from the defaults")[1:] == [
        ["train.steps", str(STEPS), "800000"],
        ["train.lr", "0.0003", "0.0002"],
    ]
    starts = table(html, "Starts of run")
    assert starts[1:] == [
        ["2026-11-01 09:00:00", "0", "2", "10.0.0.7"],
        ["2026-11-01 10:00:00", "100", "2", "10.0.0.7"],
    ]
    assert "Restarted 1 time." in html
    (node,) = table(html, "Shards of samples")[1:]
    assert node == ["n", "3", figures(64 / 4), figures(11), "0"]
    assert "1 pause, as between two commands." in html, "the last shard came two hours later"
    _, training, generation = table(html, "Cost")
    hours = 2 * (60 + 0.5 * (STEPS - 1)) / 3600
    assert training == ["Training, run", "8,000", figures(hours), figures(hours * 3600 / 8000), f"{hours * 36:,.2f}"]
    assert generation[-1] == f"{8 / 3600 * 36:,.2f}"


def test_settings_are_compared_with_the_nearest_recipe(base: Store):
    assert main(["train", "--recipe", "digits", "--print-config"]) == 0
    from pipeline.config.layers import recipe_layer
    from pipeline.config.layers import resolve as resolve_config

    digits = resolve_config([recipe_layer("digits")])
    make_run(base, config=digits.model_copy(update={"train": digits.train.model_copy(update={"lr": 0.25})}))
    report(CONFIG, [base.uri])
    html = base.read("report.html").decode()
    rows = next(table(html, name) for name in re.findall(r'aria-label="(Settings of [^"]*)"', html))
    assert rows[0] == ["Setting", "This run", "Recipe digits", "Default"]
    assert ["train.lr", "0.25", "0.002", "0.0002"] in rows
    assert ["model.block_out_channels", "32,64", "32,64", "128,256,256,256"] in rows
    assert "Differs from recipe digits in train.lr." in html


def test_a_sheet_has_one_row_per_class(base: Store):
    make_samples(base, num_classes=3)
    report(CONFIG, [base.uri])
    html = base.read("report.html").decode()
    assert " by class, one per row: " in html
    sheets = re.findall(r'src="data:image/png;base64,([^"]+)" alt="([^"]+)"', html)
    assert [alt.partition(", ")[2] for _, alt in sheets][1] == "one row for each of 3 classes"


def test_the_verification_is_on_the_page_and_in_the_exit_code(base: Store, capsys: pytest.CaptureFixture[str]):
    sound, unsound = write_samples(base.child("sound")), base.child("unsound")
    assert main(["report", sound.uri, "--verify"]) == 0
    html = sound.read("report.html").decode()
    assert "All stored objects match the manifests." in html
    assert re.search(r"<dt>samples sound</dt><dd>[^<]*10 samples", html)
    make_samples(unsound)  # its rows lack the hashes of their images
    assert main(["report", unsound.uri, "--verify", "--json"]) == 6
    said = json.loads(capsys.readouterr().out.splitlines()[-1])["summary"]
    html = unsound.read("report.html").decode()
    contradictions = re.search(r"([\d,]+ contradictions) with the manifests\.", html)[1]
    assert contradictions in said
    assert re.search(rf'class="verdict bad">.*Verification failed: {contradictions}', html)
    assert re.search(r'<ul class="findings">\s*<li>[^<]*sample', html)
    assert main(["report", sound.uri]) == 0
    assert "Verification" not in sound.read("report.html").decode(), "no verification was requested"


TRAINED = f"run runs/digits-2026-11-01, checkpoint c, step 250, images 16,000, dataset digest {'d' * 12}, parent 1"


def test_the_page_of_a_night_includes_its_run_and_both_samples_folders(base: Store):
    make_run(base.child("runs/digits-2026-11-01"))
    for version in (1, 2):
        make_samples(base.child(f"samples/v{version}"), model_digest=f"{version}" * 64)
        make_scores(base.child(f"samples/v{version}"), 5.0 + version)
    anchors = {"floor": 0.001, "ceilings": {"blurred": 0.5, "noise": 0.75}, "n": 140, "protocol": {}}
    night = Night(
        name="digits",
        date="2026-11-01",
        state="promoted",
        reason="v2 is better beyond doubt",
        champion=1,
        attempts=2,
        began="2026-11-01T03:00:00+00:00",
        ended="2026-11-01T03:30:00+00:00",
        done={
            "snapshot": {"digest": "d" * 64, "train": 900},
            "train": {
                "run": "runs/digits-2026-11-01",
                "checkpoint": "c",
                "step": 250,
                "images": 16000,
                "dataset_digest": "d" * 64,
                "parent": 1,
            },
            "export": {"version": 2},
            "samples": {"challenger": "samples/v2", "champion": "samples/v1"},
            "evaluate": {
                "challenger": {"model": "v2", "metric": "KD-x", "value": 0.0125, **anchors},
                "champion": {"model": "v1", "metric": "KD-x", "value": 0.25, **anchors},
                "difference": {"value": -0.2375, "low": -0.3, "high": -0.2, "confidence": 0.95, "groups": 20},
                "metrics": {"KD-x": 0.0125},
            },
            "promote": {"state": "promoted", "reason": "", "champion": 2},
        },
        warnings=("report: a thing",),
    )
    Ledgers(base.child("nightly/digits")).write(night)
    where = base.child("nightly/digits/2026-11-01")
    unused = cast(Any, None)
    drivers = Drivers(unused, unused, unused, unused, unused, report)
    assert NightStages(CONFIG, base, drivers).report(night).uri == where.location("report.html")
    html = where.read("report.html").decode()
    assert re.search(r'<p class="verdict good">.*Promoted: v2 is better beyond doubt\.', html)
    rows = table(html, "Champion against challenger")
    assert rows[0] == ["", "Challenger v2", "Champion v1"]
    assert rows[1] == ["KD-x", "0.0125", "0.25"]
    assert "95 % interval −0.3 to −0.2 (jackknife over 20 groups" in html
    assert ["train", TRAINED] in table(html, "Stages")
    assert "30.0 min" in html
    assert "Warning: report: a thing." in html
    assert points(html, "Loss") == [250, 84]
    assert "100 uncurated samples of v2" in html
    assert "100 uncurated samples of v1" in html
    assert re.findall(r"<dt>[^<]*(?:Sampler|Model digest)</dt><dd>[^<]*", html) == [
        "<dt>Sampler</dt><dd>ddim, 10 steps, eta 0",
        "<dt>v2: Model digest</dt><dd>2222222222222222",
        "<dt>v1: Model digest</dt><dd>1111111111111111",
    ]

    for key in [entry.key for entry in base.list("samples/v1/")] + [entry.key for entry in base.list("runs/")]:
        base.delete(key)
    report(CONFIG, [where.uri])
    html = where.read("report.html").decode()
    assert "100 uncurated samples of v1" not in html, "retention deleted the samples"
    assert "100 uncurated samples of v2" in html


def test_runs_side_by_side(base: Store, capsys: pytest.CaptureFixture[str]):
    one, two = base.child("runs/one"), base.child("runs/two")
    make_run(one)
    make_run(two, steps=150, config=Config.model_validate({"train": {"steps": 150, "lr": 1e-3}}))
    make_samples(base.child("samples"), model_uri=f"{two.uri}/checkpoints/step-000000150")
    make_scores(base.child("samples"))
    assert main(["report", base.child("samples").uri, "--runs", one.uri, two.uri]) == 0
    html = one.read("comparison.html").decode()
    assert points(html, "Loss") == [84, 75]
    lowest = final_loss(read_run(one)[1])
    assert lowest == pytest.approx(np.mean([1 / step for step in range(226, 251)]))
    assert f"one has the lowest final loss, {figures(lowest)}" in html
    assert 'class="verdict warning"' in html, "they are not equally long"
    head, first, second = table(html, "Final figures")
    assert (head[0], head[-2:]) == ("Run", ["FD-class-cnn", "KD-class-cnn"])
    assert first[:4] == ["one", "250", "8,000", figures(lowest)]
    assert (first[-1], second[-2]) == ("–", "5.25 (n = 140)")
    assert table(html, "Settings that differ")[1:] == [["train.steps", "250", "150"], ["train.lr", "0.0003", "0.001"]]
    assert len(re.findall("<img", html)) == 2, "the last grid of each"
    assert main(["report", "--runs", one.uri]) == 2
    assert "two runs or more" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="two runs"):
        compare(CONFIG, [one.uri, one.uri])


@pytest.mark.parametrize(
    ("fields", "text"), [({"extractor": "other"}, "extractor: 'class-cnn' and 'other'"), ({"n": 9}, "n = 9")]
)
def test_runs_with_scores_of_different_protocols_are_not_compared(base: Store, fields: dict[str, Any], text: str):
    one, two = base.child("runs/one"), base.child("runs/two")
    folders = [base.child(f"samples/{name}") for name in ("one", "two")]
    for run, folder in zip((one, two), folders, strict=True):
        make_run(run)
        make_samples(folder, model_uri=f"{run.uri}/checkpoints/step-000000250")
    make_scores(folders[0])
    make_scores(folders[1], **fields)
    with pytest.raises(DataError, match=text) as error:
        compare(CONFIG, [one.uri, two.uri], [folder.uri for folder in folders])
    assert str(error.value).startswith("one and two: ")
    compare(CONFIG, [one.uri, two.uri], [folders[1].uri])


def test_losses_of_different_datasets_or_targets_are_not_ranked(base: Store):
    one, two = base.child("one"), base.child("two")
    make_run(one)
    make_run(two, config=Config.model_validate({"diffusion": {"prediction": "v"}}), dataset_digest="e" * 64)
    compare(CONFIG, [one.uri, two.uri])
    html = one.read("comparison.html").decode()
    assert "The losses are not comparable: the runs differ in dataset, diffusion.prediction." in html


def test_a_large_job_is_a_small_page(base: Store):
    """Many steps, many large grids and large samples: less than 20 MB, with every picture."""
    make_run(base, steps=30_000)
    noise = np.random.default_rng(0).integers(0, 256, (1600, 1600, 3), dtype=np.uint8)
    large = encode_png(noise)
    for step in range(1000, 31_000, 1000):
        base.put(f"grids/step-{step:09d}.png", large)
    result = report(CONFIG, [base.uri])
    html = base.read("report.html").decode()
    assert result["bytes"] < 20 * 2**20
    pictures = re.findall(r'alt="Samples of [^"]* after ([\d,]+) steps', html)
    assert pictures[0] == f"{GRID_STEPS[0]}"
    assert pictures[-1] == "30,000"
    assert 2 <= len(pictures) < 30
    assert max(points(html, "Loss")) <= 1000
    last = base64.b64decode(re.findall(r'src="data:image/png;base64,([^"]+)"', html)[-1])
    assert decode_pixels(last, 10**7).shape == (533, 533, 3)

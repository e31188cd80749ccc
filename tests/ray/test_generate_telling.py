"""A large job says what it will take; every job leaves figures of its shards and serves counters."""

import time
import urllib.request

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from tiny_model import write_model

from pipeline.config.storage import StorageConfig
from pipeline.generation.commit import read_manifest
from pipeline.generation.driver import generate
from pipeline.generation.shard_metrics import SHARD_METRICS
from pipeline.images.png import decode_pixels
from pipeline.storage.files import read_parquet
from pipeline.storage.store import resolve
from tiny import config

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

LARGE = {"generate": {"num_samples": 400, "price_per_hour": 3.6}, "ray": {"workers": 2}}


def served(job):
    """{name: value} of the driver's metrics with this tag, as Prometheus reads them."""
    port = ray.nodes()[0]["MetricsExportPort"]
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    lines = [line for line in text.splitlines() if line.startswith("ray_ddpm_") and f'job="{job}"' in line]
    return {line.partition("{")[0].removeprefix("ray_"): float(line.rpartition(" ")[2]) for line in lines}


def test_a_large_job_is_foretold_logged_and_counted(tmp_path, caplog):
    caplog.set_level("INFO", "ddpm")
    write_model(str(tmp_path / "run"), config())
    result = generate(config(**LARGE), str(tmp_path / "run"), str(tmp_path / "samples"))
    told = result["forecast"]
    assert told["actors"] == 2
    assert 300 < told["images"] <= 400
    assert told["images_per_second"] > 0
    assert told["seconds"] == pytest.approx(told["images"] / told["images_per_second"] / 2, abs=0.1)
    assert told["cost"] == pytest.approx(told["images"] / told["images_per_second"] * 0.001, rel=0.01)
    lines = [line for line in caplog.messages if line.startswith("forecast: ")]
    assert len(lines) == 1
    assert "2 actors" in lines[0]

    job = resolve(result["uri"], StorageConfig())
    manifest = read_manifest(job)
    pngs = [row["image"]["bytes"] for row in read_parquet(job, manifest.shards[3]).to_pylist()]
    assert told["bytes_per_image"] == pytest.approx(np.mean([len(png) for png in pngs]), rel=0.2)
    log = pq.read_table(job.path("metrics/shards.parquet"))
    assert log.schema.equals(SHARD_METRICS)
    shard = log.to_pylist()[3]
    pixels = np.stack([decode_pixels(png, 64) for png in pngs])
    assert shard["pixel_mean"] == pytest.approx(pixels.mean(), rel=1e-9)
    assert shard["pixel_std"] == pytest.approx(pixels.std(), rel=1e-9)
    assert shard["saturated_share"] == pytest.approx(((pixels == 0) | (pixels == 255)).mean(), rel=1e-9)

    deadline = time.monotonic() + 60
    while (found := served(job.uri)).get("ddpm_generate_samples_done") != 400 and time.monotonic() < deadline:
        time.sleep(1)
    assert found["ddpm_generate_samples_total"] == 400
    assert found["ddpm_generate_shards_total"] == 25
    assert found["ddpm_generate_samples_planned"] == 400
    assert found.get("ddpm_generate_failed_total", 0) == 0
    assert found["ddpm_generate_images_per_second"] > 0


def test_a_small_job_is_not_foretold(tmp_path, caplog):
    caplog.set_level("INFO", "ddpm")
    write_model(str(tmp_path / "run"), config())
    result = generate(config(ray={"workers": 1}), str(tmp_path / "run"), str(tmp_path / "samples"))
    assert "forecast" not in result
    assert "forecast" not in caplog.text


def test_a_dry_run_warns_of_much_padding(tmp_path):
    write_model(str(tmp_path / "run"), config(model={"num_classes": 3}, train={"label_dropout": 0.1}))
    rows = "".join(f"r{i},1,{i % 2}\n" for i in range(32))
    (tmp_path / "mixed.csv").write_text("request_id,count,guidance\n" + rows)
    told = generate(
        config(), str(tmp_path / "run"), str(tmp_path / "s"), dry_run=True, requests=str(tmp_path / "mixed.csv")
    )
    assert told["padding"] == 1 - 1 / 8  # a batch of 8 for every row
    assert "88% of the network's work is batch padding" in told["summary"]
    plain = generate(config(), str(tmp_path / "run"), str(tmp_path / "s"), dry_run=True)
    assert plain["padding"] == 0
    assert "padding" not in plain["summary"]

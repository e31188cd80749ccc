"""Reproducing a stored sample: identical, rounding difference, or failed verification."""

import hashlib

import numpy as np
import pytest
import torch
from tiny_model import write_model

from jobs.__main__ import main
from pipeline.config.storage import StorageConfig
from pipeline.errors import ConfigError, DataError, VerificationFailed
from pipeline.generation.commit import commit_shard, create_plan, read_manifest, seal
from pipeline.generation.generator import ShardGenerator, sample_table
from pipeline.generation.make_plan import make_plan
from pipeline.generation.reproduce import reproduce
from pipeline.generation.sample_plan import PlannedSamples
from pipeline.images.png import decode_pixels, encode_png
from pipeline.model_store.load_model import find_model, load_unet
from pipeline.schema import SAMPLES
from pipeline.storage.store import resolve
from tiny import config

pytestmark = pytest.mark.unit

CONFIG = config(
    model={"num_classes": 3},
    train={"label_dropout": 0.1},
    generate={"num_samples": 26, "guidance": 2.0, "eta": 0.5, "steps": 3},
)
SPOILT = 21


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A model, and 26 samples of it in shards of 16 and 10, as actors make them."""
    folder = tmp_path_factory.mktemp("reproduce")
    write_model(f"{folder}/run", CONFIG)
    return folder


def write(root, name, change=lambda table: table):
    """The samples, with rows changed before they are committed."""
    torch.set_num_threads(1)
    found = find_model(f"{root}/run", "ema", StorageConfig())
    job = resolve(f"{root}/{name}", StorageConfig())
    plan = create_plan(job, make_plan(CONFIG.generate, found))
    generator = ShardGenerator(load_unet(found, StorageConfig()), plan, torch.device("cpu"))
    for shard in range(plan.num_shards):
        table = sample_table(plan, generator.shard(PlannedSamples(plan).layout.ids(shard)))
        commit_shard(job, plan, shard, change(table), "attempt")
    seal(job, plan)
    return job


def edited(**values):
    """A change of one row; `shift` adds levels to its first pixel."""

    def change(table):
        rows = table.to_pylist()
        for row in (row for row in rows if row["sample_id"] == SPOILT):
            if "shift" in values:
                pixels = decode_pixels(row["image"]["bytes"], 64).copy()
                pixels[0, 0, 0] = pixels[0, 0, 0] + values["shift"] * (1 if pixels[0, 0, 0] < 128 else -1)
                png = encode_png(pixels)
                row |= {"image": {"bytes": png, "path": None}, "sha256": hashlib.sha256(png).hexdigest()}
            row |= {name: value for name, value in values.items() if name != "shift"}
        return table.from_pylist(rows, schema=SAMPLES)

    return change


@pytest.mark.parametrize("sample_id", [0, 15, 16, SPOILT, 25])
def test_a_sample_is_equal_to_the_bit(root, sample_id):
    """First and last of their shards, in the middle, and in a padded batch."""
    if not (root / "whole").exists():
        write(root, "whole")
    result = reproduce(CONFIG, f"{root}/whole", sample_id)
    assert (result["state"], result["max_difference"]) == ("equal", 0)
    assert result["sha256"] == result["made_sha256"]


def test_a_difference_of_rounding_is_told_and_a_larger_one_is_a_contradiction(root, capsys):
    write(root, "rounded", edited(shift=1))
    result = reproduce(CONFIG, f"{root}/rounded", SPOILT)
    assert (result["state"], result["max_difference"]) == ("close", 1)
    assert result["summary"].startswith("warning: ")
    assert main(["reproduce", "--samples", f"{root}/rounded", "--id", str(SPOILT)]) == 0
    write(root, "altered", edited(shift=2))
    with pytest.raises(VerificationFailed, match="up to 2 of 255 levels"):
        reproduce(CONFIG, f"{root}/altered", SPOILT)
    assert main(["reproduce", "--samples", f"{root}/altered", "--id", str(SPOILT)]) == 6
    assert reproduce(CONFIG, f"{root}/altered", SPOILT + 1)["state"] == "equal"


@pytest.mark.parametrize("values", [{"seed": 5}, {"label": 2}, {"guidance": 3.0}])
def test_a_row_that_says_something_else_than_its_plan(root, values):
    name = next(iter(values))
    write(root, name, edited(**values))
    with pytest.raises(VerificationFailed, match=f"differs from its plan in {name}"):
        reproduce(CONFIG, f"{root}/{name}", SPOILT)


def test_a_failure_that_does_not_come_back_is_a_contradiction(root):
    write(root, "failed", edited(status="failed", image=None, sha256=None, error="NaN"))
    with pytest.raises(VerificationFailed, match="stored NaN, now an image"):
        reproduce(CONFIG, f"{root}/failed", SPOILT)


def test_what_is_not_there(root, tmp_path):
    job = write(root, "there")
    assert read_manifest(job).rows == 26
    for sample_id in (26, -1):
        with pytest.raises(ConfigError, match=r"0\.\.25"):
            reproduce(CONFIG, job.uri, sample_id)
    with pytest.raises(DataError, match="no samples at"):
        reproduce(CONFIG, str(tmp_path), 0)
    assert main(["reproduce", "--samples", job.uri, "--id", "x"]) == 2


def test_the_model_may_have_moved_and_must_be_the_same(root, tmp_path):
    job = write(root, "moved")
    (root / "run").rename(root / "elsewhere")
    try:
        with pytest.raises(DataError, match="--model URI"):
            reproduce(CONFIG, job.uri, 3)
        assert reproduce(CONFIG, job.uri, 3, f"{root}/elsewhere")["state"] == "equal"
    finally:
        (root / "elsewhere").rename(root / "run")
    write_model(str(tmp_path / "other"), CONFIG, step=2)
    with pytest.raises(VerificationFailed, match="is not the model"):
        reproduce(CONFIG, job.uri, 3, str(tmp_path / "other"))


def test_a_seed_moves_every_pixel_so_equality_means_something(root):
    job = resolve(f"{root}/whole", StorageConfig()) if (root / "whole").exists() else write(root, "whole")
    first, second = (reproduce(CONFIG, job.uri, i)["sha256"] for i in (3, 4))
    assert first != second
    assert np.all([len(sha) == 64 for sha in (first, second)])

"""Figures 6 to 8: end cells equal samples, and noise added later changes the image less."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny_explorer import CPU, MODEL, network
from tiny_model import write_model

from jobs.__main__ import main
from pipeline.analysis.explore import explore
from pipeline.analysis.figures import Explorer, _between
from pipeline.config.generation import ExploreConfig, GenerateConfig
from pipeline.config.model import DiffusionConfig
from pipeline.config.root import Config
from pipeline.errors import ConfigError, DataError
from pipeline.generation.generator import ShardGenerator, plan_sampler
from pipeline.generation.make_plan import make_plan
from pipeline.images.png import decode_pixels
from pipeline.model_store.load_model import StoredModel
from pipeline.schema import EXPLORED
from pipeline.storage.store import resolve
from tiny import config

pytestmark = pytest.mark.unit


def plan(**settings):
    found = StoredModel("m", "ema", "0" * 64, MODEL, DiffusionConfig(), 8, 1, 0.1)
    defaults = {"num_samples": 8, "shard_size": 8, "batch_size": 8, "sampler": "ddim", "steps": 6, "seed": 5}
    return make_plan(GenerateConfig(**{**defaults, **settings}), found)


def samples(a_plan):
    return ShardGenerator(network(), a_plan, CPU).shard(range(8)).pixels.astype(int)


def close(picture, sample):
    """Equal up to rounding, which differs between batch shapes."""
    return np.abs(picture.pixels.astype(int) - sample).max() <= 1


@pytest.mark.parametrize("settings", [{}, {"guidance": 2.0}, {"sampler": "ddpm"}, {"sampler": "heun"}])
def test_predictions_on_the_way_end_in_the_sample(settings):
    a_plan = plan(**settings)
    pictures = Explorer(network(), a_plan, CPU).progressive([3, 6], 3)
    assert [(p.row, p.column) for p in pictures] == [(r, c) for r in range(2) for c in range(3)]
    assert [p.sample_id for p in pictures] == [3] * 3 + [6] * 3
    assert [p.label for p in pictures] == [0] * 6
    ts = [p.t for p in pictures[:3]]
    assert ts == sorted(ts, reverse=True)
    assert ts[-1] == min(plan_sampler(a_plan).timesteps)
    expected = samples(a_plan)
    assert close(pictures[2], expected[3])
    assert close(pictures[5], expected[6])
    assert not close(pictures[0], expected[3])


def test_more_columns_than_steps_is_every_step():
    assert len(Explorer(network(), plan(), CPU).progressive([0], 20)) == 6


@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_an_interpolation_has_the_two_samples_at_its_ends_wherever_it_begins(sampler):
    a_plan = plan(sampler=sampler)
    pictures = Explorer(network(), a_plan, CPU).interpolate(1, 5, 5, 3)
    assert [(p.row, p.column, p.share) for p in pictures] == [(r, c, c / 4) for r in range(3) for c in range(5)]
    assert [p.t for p in pictures[::5]] == sorted({p.t for p in pictures}, reverse=True)
    assert pictures[0].t == 999
    assert [p.label for p in pictures[:5]] == [1, 1, 2, 2, 2]
    expected = samples(a_plan)
    for row in range(3):
        first, *between, last = pictures[5 * row : 5 * row + 5]
        assert close(first, expected[1])
        assert close(last, expected[5])
        assert not any(close(p, expected[i]) for p in between[1:2] for i in (1, 5))


def test_noise_between_two_noises_has_their_length():
    first, second = torch.randn(2, 1, 4000, generator=torch.Generator().manual_seed(0))
    for share in (0.25, 0.5, 0.9):
        middle = _between(first, second, share)
        assert float(middle.norm()) == pytest.approx(float(first.norm()), rel=0.05)
        ahead = float((middle * second).sum() / middle.norm() / second.norm())
        assert ahead == pytest.approx(np.sin(share * np.pi / 2), abs=0.05)
    assert torch.equal(_between(first, second, 0.0), first)
    assert torch.equal(_between(first, second, 1.0), second)
    assert torch.allclose(_between(first, first, 0.5), first)


@pytest.mark.parametrize("settings", [{"sampler": "ddpm"}, {"eta": 1.0}])
def test_a_shared_latent_decides_more_the_later_it_is_shared(settings):
    a_plan = plan(steps=12, **settings)
    pictures = Explorer(network(), a_plan, CPU).shared(3, 4, 4)
    expected = samples(a_plan)[3]
    spread = []
    for row in range(4):
        cells = pictures[4 * row : 4 * row + 4]
        assert [p.noise_id for p in cells] == [3, 4, 5, 6]
        assert close(cells[0], expected)
        spread.append(np.mean([np.abs(p.pixels.astype(int) - expected).mean() for p in cells[1:]]))
    assert spread == sorted(spread, reverse=True)
    assert spread[-1] < 0.7 * spread[0]


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpm++2m"])
def test_without_noise_there_is_nothing_to_share(sampler):
    with pytest.raises(ConfigError, match="adds no noise"):
        Explorer(network(), plan(sampler=sampler), CPU).shared(0, 3, 2)


def test_nan_is_no_picture():
    unet = network()
    unet.conv_out.bias.data[:] = torch.nan
    with pytest.raises(DataError, match="NaN"):
        Explorer(unet, plan(), CPU).progressive([0], 2)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"mode": "shared"}, r"must be 1 in mode 'shared' \(got 2\)"),
        ({"mode": "interpolate", "ids": [1]}, r"must be 2 in mode 'interpolate' \(got 1\)"),
        ({"ids": [0, -1]}, "must not be negative"),
    ],
)
def test_ids_must_suit_the_mode(settings, reason):
    with pytest.raises(ValueError, match=reason):
        ExploreConfig(**settings)


@pytest.mark.parametrize("mode", ["progressive", "interpolate", "shared"])
def test_the_sheet_and_its_rows_are_written(tmp_path, mode):
    settings = config(
        model={"num_classes": 3}, explore={"mode": mode, "ids": [2, 7][: 1 + (mode != "shared")], "rows": 2}
    )
    settings = settings.model_copy(update={"generate": settings.generate.model_copy(update={"eta": 0.5})})
    write_model(str(tmp_path / "run"), settings)
    assert "would write" in explore(settings, str(tmp_path / "run"), str(tmp_path / "x"), dry_run=True)["summary"]
    result = explore(settings, str(tmp_path / "run"), str(tmp_path / "out"))
    store = resolve(str(tmp_path / "out"), Config().storage)
    table = pq.read_table(pa.BufferReader(store.read(f"{mode}.parquet")))
    assert table.schema.equals(EXPLORED)
    columns = 5 if mode == "progressive" else 10  # five steps are all there are
    assert result["pictures"] == table.num_rows == 2 * columns
    sheet = decode_pixels(store.read(f"{mode}.png"), 10**7)
    assert sheet.shape == (2 * 64 + 2, columns * 66 - 2, 1)
    cell = decode_pixels(table["image"][columns + 1].as_py()["bytes"], 64)
    assert np.array_equal(sheet[66::8, 66 : 66 + 64 : 8], cell)


def test_the_verb_says_what_is_wrong_in_one_line(tmp_path, capsys):
    write_model(str(tmp_path / "run"), config())
    words = ["explore", "--model", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    assert main([*words, "--mode", "shared"]) == 2
    assert "must be 1 in mode 'shared'" in capsys.readouterr().err
    few = ["--ids", "1,2", "--explore.columns", "3", "--generate.steps", "2"]
    assert main([*words, "--mode", "interpolate", *few]) == 0
    written = [f"interpolate.{ending}" for ending in ("html", "parquet", "png")]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == written
    assert main([*words, "--mode", "frechet"]) == 2
    assert "needs --dataset" in capsys.readouterr().err
    assert main([*words, "--mode", "progressive", "--dataset", "d"]) == 2
    assert "uses no dataset" in capsys.readouterr().err

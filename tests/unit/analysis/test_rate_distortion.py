"""Rate and distortion do not depend on the batch size, and predictions have the reported error."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from reported import make_dataset
from tiny_explorer import CPU, MODEL, network
from tiny_model import write_model

from jobs.__main__ import main
from pipeline.analysis.rate_distortion import ProgressiveCoder
from pipeline.config.generation import GenerateConfig
from pipeline.config.model import DiffusionConfig
from pipeline.config.root import Config
from pipeline.errors import DataError
from pipeline.generation.make_plan import make_plan
from pipeline.model_store.load_model import StoredModel
from pipeline.schema import RATE_DISTORTION
from pipeline.storage.store import resolve
from tiny import config

pytestmark = pytest.mark.unit

T = 12
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
IDS, LABELS = np.array([4, 9, 2, 30, 7]), np.array([0, 1, 2, 0, 1])


def coder(unet=None):
    unet = network() if unet is None else unet
    diffusion = DiffusionConfig(num_timesteps=T, beta_end=0.4)
    found = StoredModel("m", "ema", "0" * 64, MODEL, diffusion, 8, 1)
    return ProgressiveCoder(unet, make_plan(GenerateConfig(num_samples=64, seed=5), found), CPU)


def test_the_code_is_a_mean_over_images_whatever_the_batches():
    whole, parts = coder().code(IMAGES, IDS, LABELS, 5), coder().code(IMAGES, IDS, LABELS, 2)
    for one, other in zip(whole, parts, strict=True):
        assert one.shape == (T,)
        np.testing.assert_allclose(one, other, rtol=1e-5)
    order = np.array([3, 0, 4, 2, 1])
    shuffled = coder().code(IMAGES[order], IDS[order], LABELS[order], 5)
    np.testing.assert_allclose(whole.distortion, shuffled.distortion, rtol=1e-5)


def test_each_rate_is_the_one_before_and_what_was_sent_since():
    rate, _, term = coder().code(IMAGES, IDS, LABELS, 5)
    np.testing.assert_allclose(np.diff(rate), term[:-1], rtol=1e-9)
    assert (term[:-1] > 0).all()


def test_the_distortion_is_that_of_the_guesses_which_are_clipped():
    distortion = coder().code(IMAGES, IDS, LABELS, 5).distortion
    guesses = coder().guesses(IMAGES, IDS, LABELS, range(T - 1, -1, -1))
    for told, guess in zip(distortion, guesses, strict=True):
        seen = np.sqrt(np.square(guess.astype(float) - IMAGES).mean())
        assert told == pytest.approx(seen, abs=0.5), "but for the rounding to grey levels"
    assert distortion.max() <= 255
    assert max(guess.max() for guess in guesses) == 255


def test_nan_has_no_rate():
    unet = network()
    unet.conv_out.bias.data[:] = torch.nan
    with pytest.raises(DataError, match="NaN"):
        coder(unet).code(IMAGES, IDS, LABELS, 5)


def test_table_sheet_and_page_of_a_model(tmp_path, capsys):
    settings = config(diffusion={"num_timesteps": 20})
    model = write_model(str(tmp_path / "run"), settings)
    data, out = resolve(str(tmp_path / "data"), Config().storage), tmp_path / "out"
    make_dataset(data, heldout=12)
    words = ["explore", "--mode", "rate-distortion", "--model", model, "--dataset", data.uri, "--out", str(out)]
    assert main([*words, "--num-images", "8", "--explore.columns", "4", "--explore.rows", "2"]) == 0
    table = pq.read_table(pa.BufferReader((out / "rate-distortion.parquet").read_bytes()))
    assert table.schema.equals(RATE_DISTORTION)
    assert table["reverse_time"].to_pylist() == list(range(1, 21))
    assert table["t"].to_pylist() == list(range(19, -1, -1))
    assert set(table["images"].to_pylist()) == {8}
    page = (out / "rate-distortion.html").read_text()
    for time in (1, 5, 10, 15, 20):
        assert f'<th scope="row" class="right">{time}</th>' in page
    assert page.count("<svg") == 3
    assert page.count("<img") == 1
    assert (out / "rate-distortion.png").stat().st_size > 100
    assert main([*words, "--num-images", "13"]) == 3
    assert "has 12 held-out images" in capsys.readouterr().err

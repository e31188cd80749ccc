"""Dropout masks: keep rate, independence, and no dependence on the batch."""

import pytest
import torch

from pipeline.models.dropout import DropoutKey, dropout_mask

pytestmark = pytest.mark.unit

KEY = (2**63 + 5, 17)
SHAPE = (32, 16, 16)  # C, H, W


def dropped(ids, layer=0, rate=0.3, key=KEY, step=3, shape=SHAPE):
    ids = torch.as_tensor(ids)
    words = DropoutKey(ids, key, step).words(8)[layer]
    return dropout_mask(words, torch.Size((len(ids), *shape)), rate) == 0


def correlation(a, b, rate=0.3):
    """Standardised: about N(0, 1) for independent masks."""
    n = a.numel()
    covariance = ((a.double() - rate) * (b.double() - rate)).sum()
    return abs(float(covariance)) / (rate * (1 - rate) * n**0.5)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.3, 0.5, 0.9])
def test_keep_rate_is_binomial_overall_and_per_sample(rate):
    mask = dropped(range(1000), rate=rate)
    n = mask[0].numel()
    assert abs(mask.double().mean() - rate) < 4 * (rate * (1 - rate) / mask.numel()) ** 0.5 + 2**-17
    spread = mask.double().mean((1, 2, 3)).std() / (rate * (1 - rate) / n) ** 0.5
    assert 0.9 < spread < 1.1  # neither stratified nor clumped
    per_element = mask.double().mean(0).std() / (rate * (1 - rate) / 1000) ** 0.5
    assert 0.97 < per_element < 1.03  # no element is favoured


def test_kept_values_are_scaled_so_that_the_mean_is_one():
    mask = dropout_mask(DropoutKey(torch.arange(500), KEY, 0).words(1)[0], torch.Size((500, *SHAPE)), 0.2)
    assert mask.dtype == torch.float32
    assert mask.is_contiguous(memory_format=torch.channels_last)
    assert sorted(mask.unique().tolist()) == [0.0, 1.25]
    assert abs(mask.mean().item() - 1) < 1e-3


@pytest.mark.parametrize(
    "other",
    [
        {"ids": range(1, 201)},
        {"ids": range(2**40, 2**40 + 200)},
        {"layer": 1},
        {"layer": 7},
        {"step": 4},
        {"step": 3 + 2**32},
        {"key": (KEY[0], 18)},
        {"key": (KEY[0] - 2**32, 17)},
        {"key": (17, KEY[0])},
    ],
    ids=str,
)
def test_masks_that_differ_in_one_word_are_independent(other):
    base = dropped(range(200))
    assert correlation(base, dropped(**({"ids": range(200)} | other))) < 4.5


@pytest.mark.parametrize("lag", [1, 2, 3, 32, 64, 512, 4096])
def test_elements_of_one_mask_are_independent(lag):
    flat = dropped(range(200)).permute(0, 2, 3, 1).flatten(1)
    assert correlation(flat[:, lag:], flat[:, :-lag]) < 4.5


def test_triples_of_samples_are_independent():
    # A multiplicative hash can be pairwise right and fail jointly.
    masks = dropped(range(600), rate=0.5).flatten(1).double().view(200, 3, -1) - 0.5
    product = masks.prod(1) * 8
    assert abs(product.sum()) / product.numel() ** 0.5 < 4.5


def test_a_mask_does_not_depend_on_the_batch():
    whole = dropped([5, 9, 2**50, 7])
    assert torch.equal(dropped([7, 2**50]), whole[[3, 2]])
    assert torch.equal(dropped([5]), whole[:1])


def test_odd_sizes_and_the_element_order_are_channels_last():
    small = dropped([1], shape=(3, 1, 1)).flatten()
    assert torch.equal(dropped([1], shape=(3, 5, 5))[0, :, 0, 0], small)


def test_masks_stay_as_they_are():
    bits = dropped([0, 1], rate=0.5, key=(1, 2), step=0, shape=(16, 1, 1)).flatten(1).int().tolist()
    assert ["".join(map(str, row)) for row in bits] == ["1100110101101001", "0010101100010001"]

"""Each check passes sound input and names the fault in other input."""

import pytest
import torch

from pipeline.config.model import DiffusionConfig
from pipeline.errors import ConfigError, DataError, PipelineError
from pipeline.ingest.manifest import DatasetManifest
from pipeline.training.sanity_checks import (
    check_average_moved,
    check_finite,
    check_images,
    check_prior,
    check_replicas,
    weights_digest,
)

pytestmark = pytest.mark.unit


def weights():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(5, 3, generator=generator) for name in ("a", "b")} | {"n": torch.tensor(3.0)}


def changed(edit):
    one = weights()
    edit(one)
    return weights_digest(one)


def test_a_digest_is_of_names_and_values_not_of_layout():
    assert weights_digest(weights()) == weights_digest(dict(reversed(weights().items())))
    image = torch.arange(96.0).reshape(2, 3, 4, 4)
    assert weights_digest({"w": image}) == weights_digest({"w": image.contiguous(memory_format=torch.channels_last)})
    assert weights_digest({}) == weights_digest({})


def test_any_change_changes_the_digest():
    zeros = weights() | {"a": torch.zeros(5, 3)}
    swapped = weights()
    swapped["a"].view(-1)[:2] = swapped["a"].view(-1)[:2].flip(0)
    digests = [
        weights_digest(weights()),
        changed(lambda w: w["a"].view(torch.int32)[2, 1].bitwise_xor_(1)),
        weights_digest(zeros),
        weights_digest(zeros | {"a": -torch.zeros(5, 3)}),
        weights_digest(swapped),
        changed(lambda w: w.update(a=w["b"], b=w["a"])),
        changed(lambda w: w["n"].add_(1)),
        changed(lambda w: w.update(c=w.pop("b"))),
    ]
    assert len(set(digests)) == len(digests)


def test_replicas_must_be_equal_and_the_odd_one_is_named():
    check_replicas(["x", "x", "x"], 7)
    check_replicas(["x"], 7)
    with pytest.raises(PipelineError, match=r"step 7 .* rank 1 of 3"):
        check_replicas(["x", "y", "x"], 7)
    with pytest.raises(PipelineError, match=r"rank 1, 3 of 4"):
        check_replicas(["x", "y", "x", "z"], 7)


def test_an_average_that_stands_still_is_named():
    check_average_moved({"ema": "1", "slow": "2"}, {"ema": "3", "slow": "4"}, 10)
    check_average_moved({}, {"ema": "1"}, 10)
    with pytest.raises(PipelineError, match=r"average slow .* step 10"):
        check_average_moved({"ema": "1", "slow": "2"}, {"ema": "3", "slow": "2"}, 10)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_named(value):
    check_finite({"model": weights(), "ema": weights()}, 3)
    check_finite({}, 3)
    bad = weights()
    bad["b"][4, 2] = value
    with pytest.raises(PipelineError, match=r"step 3 tensor 'b' of 'ema'"):
        check_finite({"model": weights(), "ema": bad}, 3)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"schedule": "cosine"},
        {"schedule": "cosine", "num_timesteps": 4},
        {"schedule": "sigmoid", "num_timesteps": 100},
        {"schedule": "quadratic"},
        {"num_timesteps": 500},
        {"num_timesteps": 100, "beta_end": 0.2},
        {"num_timesteps": 50, "zero_terminal_snr": True, "prediction": "v"},
    ],
    ids=str,
)
def test_schedules_that_end_in_noise_pass(settings):
    check_prior(DiffusionConfig(**settings))


@pytest.mark.parametrize(
    "settings", [{"num_timesteps": 400}, {"beta_end": 0.008}, {"schedule": "quadratic", "num_timesteps": 500}], ids=str
)
def test_a_schedule_that_leaves_the_image_is_refused_with_what_to_change(settings):
    with pytest.raises(ConfigError, match=r"diffusion\.num_timesteps or diffusion\.beta_end.*zero_terminal_snr"):
        check_prior(DiffusionConfig(**settings))


def test_the_prior_is_told_in_numbers():
    """T = 100: alpha_bar_T = 0.3638, so 60 % of the amplitude, and -0.5 log2(1 - 0.3638) = 0.33 bits."""
    with pytest.raises(
        ConfigError, match=r"'linear' \(num_timesteps 100, beta_end 0.02\) leaves 60\.3 % .* 0\.33 bits"
    ):
        check_prior(DiffusionConfig(num_timesteps=100))


def dataset(*stats, channels=None):
    return DatasetManifest(
        source="s",
        source_rows=0,
        image_size=8,
        channels=channels or len(stats),
        classes=None,
        shards=(),
        rejects=(),
        reject_counts={},
        channel_mean=tuple(mean for mean, _ in stats),
        channel_std=tuple(std for _, std in stats),
        ingest={},
    )


def test_statistics_of_images_pass():
    check_images(dataset((-0.74, 0.62)))  # MNIST
    check_images(dataset((-0.02, 0.49), (-0.04, 0.49), (-0.11, 0.52)))  # CIFAR-10
    check_images(dataset((0.0, 1.0)))  # black and white in equal shares: the widest there is


@pytest.mark.parametrize(
    ("stats", "message"),
    [
        ((127.5, 64.0), "impossible for images"),  # grey levels that nobody scaled
        ((0.9, 0.5), "impossible for images"),
        ((float("nan"), 0.5), "impossible for images"),
        ((-0.998, 0.004), "almost constant"),  # [0, 1] stored as grey levels
        ((0.2, 0.0), "almost constant"),
    ],
)
def test_statistics_that_no_images_have_are_refused_by_channel(stats, message):
    with pytest.raises(DataError, match=f"channel 1 .*{message}"):
        check_images(dataset((0.0, 0.5), stats))


def test_statistics_must_be_of_every_channel():
    with pytest.raises(DataError, match="3 channels but statistics of 1"):
        check_images(dataset((0.0, 0.5), channels=3))

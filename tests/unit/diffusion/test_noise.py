"""Philox against its published vectors, and the layout of the counter: another layout would change all samples."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pipeline.diffusion.noise import SampleNoise, _box_muller, integers, normal, philox_4x32, stream_key, uniform

pytestmark = pytest.mark.unit

KEY = (0xA4093822, 0x299F31D0)
IDS = torch.tensor([0, 7, 2**32 + 7, 2**62 + 5])

# Random123's kat_vectors, philox4x32 10: counter, key, result.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words_of(text):
    return [int(word, 16) for word in text.split()]


def words_at(key, sample_id, step, block):
    return philox_4x32(torch.tensor([block, step, sample_id & 0xFFFFFFFF, sample_id >> 32]), key).tolist()


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter, key, expected):
    k0, k1 = words_of(key)
    assert philox_4x32(torch.tensor(words_of(counter)), (k0, k1)).tolist() == words_of(expected)


def test_philox_of_many_counters_is_philox_of_each():
    counters = torch.tensor([[words_of(c) for c, _, _ in KNOWN_ANSWERS]] * 2)
    got = philox_4x32(counters, (0, 0))
    assert got.shape == (2, 3, 4)
    for row in range(3):
        assert got[1, row].tolist() == philox_4x32(counters[0, row], (0, 0)).tolist()


def test_stream_keys_are_pinned_and_tell_seeds_and_streams_apart():
    assert stream_key(0, "x_T") == (0xCC20595D, 0xF6DD625F)  # sha256sum of "0:x_T" starts 5d5920cc 5f62ddf6
    assert len({stream_key(s, n) for s in (0, 1, 2**63) for n in ("x_T", "sampling", "flip")}) == 9


def test_uniforms_are_the_words_of_counter_block_step_id():
    got = uniform(KEY, IDS, 9, 6)
    assert got.dtype == torch.float64
    for row, sample_id in enumerate(IDS.tolist()):
        words = words_at(KEY, sample_id, 9, 0) + words_at(KEY, sample_id, 9, 1)[:2]
        assert got[row].tolist() == [word / 2**32 for word in words]
    assert got.min() >= 0
    assert got.max() < 1


def test_normals_are_box_muller_of_the_same_words():
    got = normal(KEY, IDS, 3, (2, 3))
    assert got.shape == (4, 2, 3)
    assert got.dtype == torch.float32
    for row, sample_id in enumerate(IDS.tolist()):
        expected = []
        for block in (0, 1):
            w = words_at(KEY, sample_id, 3, block)
            for radius_word, angle_word in ((w[0], w[1]), (w[2], w[3])):
                radius = math.sqrt(-2 * math.log((radius_word + 1) / 2**32))
                angle = 2 * math.pi * angle_word / 2**32
                expected += [radius * math.cos(angle), radius * math.sin(angle)]
        np.testing.assert_allclose(got[row].flatten(), expected[:6], rtol=1e-6, atol=1e-7)


def test_box_muller_at_the_ends_of_its_words():
    words = torch.tensor([0, 1, 2**32 - 1])
    z, _ = _box_muller(words, torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(z, torch.tensor([math.sqrt(64 * math.log(2)), math.sqrt(62 * math.log(2)), 0.0]))


def test_integers_are_a_multiply_and_shift_of_the_first_word():
    got = integers(KEY, IDS, 5, 1000)
    assert got.tolist() == [words_at(KEY, i, 5, 0)[0] * 1000 >> 32 for i in IDS.tolist()]
    assert integers(KEY, IDS, 5, 1).tolist() == [0] * 4
    assert integers(KEY, IDS, 5, 2**31).tolist() == [words_at(KEY, i, 5, 0)[0] >> 1 for i in IDS.tolist()]


def test_a_step_per_row_equals_the_steps_one_by_one():
    steps = torch.tensor([0, 1, 999, 2**32 - 1])
    together = normal(KEY, IDS, steps, (5,))
    for row, step in enumerate(steps.tolist()):
        assert torch.equal(together[row], normal(KEY, IDS[row : row + 1], step, (5,))[0])


def test_a_row_does_not_depend_on_the_batch_bitwise():
    ids = torch.arange(37)
    whole = normal(KEY, ids, 4, (3, 7, 5))
    for part in (slice(0, 1), slice(5, 6), slice(3, 37)):
        assert torch.equal(whole[part], normal(KEY, ids[part], 4, (3, 7, 5)))
    assert torch.equal(whole.flip(0), normal(KEY, ids.flip(0), 4, (3, 7, 5)))


def test_normals_are_normal():
    z = normal(stream_key(1, "test"), torch.arange(64), 0, (4096,)).double()
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 0.01
    rows, columns = z.mean(1).numpy() * 64, z.mean(0).numpy() * 8
    assert stats.kstest(rows, "norm").pvalue > 0.01
    assert stats.kstest(columns, "norm").pvalue > 0.01
    # The two halves of a Box-Muller pair are uncorrelated, and so are their squares: 131072 pairs, 4 sigma.
    first, second = z[:, 0::2].flatten(), z[:, 1::2].flatten()
    assert abs((first * second).mean()) < 4 / 131072**0.5
    assert abs(((first**2 - 1) * (second**2 - 1)).mean()) < 4 * 2 / 131072**0.5


def test_streams_steps_and_ids_give_unrelated_noise():
    draws = [
        normal(stream_key(0, "a"), torch.tensor([1]), 2, (4096,)),
        normal(stream_key(0, "b"), torch.tensor([1]), 2, (4096,)),
        normal(stream_key(1, "a"), torch.tensor([1]), 2, (4096,)),
        normal(stream_key(0, "a"), torch.tensor([2]), 2, (4096,)),
        normal(stream_key(0, "a"), torch.tensor([2**32 + 1]), 2, (4096,)),
        normal(stream_key(0, "a"), torch.tensor([1]), 1, (4096,)),
    ]
    correlation = np.corrcoef(torch.cat(draws).numpy()) - np.eye(len(draws))
    assert np.abs(correlation).max() < 5 / 4096**0.5


def test_traces_without_a_graph_break_and_gives_the_same_integers():
    compiled = torch.compile(philox_4x32, fullgraph=True, backend="eager")
    counter = torch.tensor([words_of(c) for c, _, _ in KNOWN_ANSWERS])
    assert torch.equal(compiled(counter, KEY), philox_4x32(counter, KEY))


def test_sample_noise_is_its_two_streams():
    noise = SampleNoise(11, IDS, (1, 4, 4))
    assert torch.equal(noise.initial(), normal(stream_key(11, "x_T"), IDS, 0, (1, 4, 4)))
    assert torch.equal(noise.at(17), normal(stream_key(11, "sampling"), IDS, 17, (1, 4, 4)))


@pytest.mark.parametrize("step", [-1, 2**32])
def test_refuses_a_step_that_is_not_a_word(step):
    with pytest.raises(ValueError, match="step"):
        normal(KEY, IDS, step, (1,))


def test_takes_the_largest_step():
    assert normal(KEY, IDS, 2**32 - 1, (1,)).isfinite().all()
    assert normal(KEY, IDS, 0, (1,)).isfinite().all()


@pytest.mark.parametrize("high", [0, 2**31 + 1])
def test_refuses_an_integer_range_it_cannot_fill(high):
    with pytest.raises(ValueError, match="high"):
        integers(KEY, IDS, 0, high)


def test_a_seed_a_row_equals_the_seeds_one_by_one():
    ids = torch.tensor([4, 9, 2**40])
    each = SampleNoise((1, 2, 1), ids, (1, 3, 3))
    alone = [SampleNoise(seed, ids[i : i + 1], (1, 3, 3)) for i, seed in enumerate((1, 2, 1))]
    assert torch.equal(each.initial(), torch.cat([noise.initial() for noise in alone]))
    assert torch.equal(each.at(7), torch.cat([noise.at(7) for noise in alone]))
    assert torch.equal(SampleNoise((5, 5, 5), ids, (1, 3, 3)).at(7), SampleNoise(5, ids, (1, 3, 3)).at(7))

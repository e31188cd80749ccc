"""Dropout with masks that depend on the sample id, not on the batch.

A mask bit depends on (key, sample id, step, layer, element) only. So a sample has the same mask in any batch, on any
worker, after any restart, and when gradient checkpointing recomputes activations. No random generator is used.

The hash has two levels. Per (sample, layer), once a step: a 64-bit finaliser (the multiply-xorshift rounds of
splitmix64) over all the words gives an odd multiplier `a` and an offset `b`. Per pair of elements: a fixed table of
hashed element indices goes through `(table ^ b) * a`, one xorshift and one more multiplication, all in int32; each
half of the result decides one element. That is five passes over 2 bytes an element. The quality is enough for dropout
(tests cover keep rate and independence of samples, layers, steps and neighbours), not for sampling noise.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed 64-bit word
_MIX_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MIX_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
_MIX_32 = 0x7FEB352D


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 words; torch's own shift copies the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """int64 [...] -> int64 [...], a bijection in which every input bit reaches every output bit."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _signed(word: int) -> int:
    """The 64-bit word with the value of `word` modulo 2^64, as torch stores it."""
    return (word + 2**63) % 2**64 - 2**63


@functools.lru_cache(maxsize=64)
def _element_table(num_words: int, device: torch.device) -> Tensor:
    """Hashed element indices, int32 [num_words]: neighbouring elements get unrelated words."""
    index = torch.arange(num_words, dtype=torch.int64, device=device)
    return _shift_right(_mix((index + 1) * _GOLDEN), 32).to(torch.int32)


@dataclass(frozen=True)
class DropoutKey:
    """Inputs of the dropout masks of one training step; equal inputs give equal masks.

    ids: int64 [B], global sample ids. key: two words that identify run and stream. step: epoch or optimiser step.
    """

    ids: Tensor
    key: tuple[int, int]
    step: int

    def words(self, num_layers: int) -> Tensor:
        """int32 [num_layers, B, 2]: an odd multiplier and an offset for each layer and sample."""
        layers = torch.arange(num_layers, dtype=torch.int64, device=self.ids.device)
        state = self.ids.to(torch.int64)
        for word in (*self.key, self.step):
            state = _mix((state ^ _signed(word)) + _GOLDEN)
        state = _mix(state[None, :] ^ _mix((layers[:, None] + 1) * _GOLDEN))
        return torch.stack([state.to(torch.int32) | 1, _shift_right(state, 32).to(torch.int32)], dim=-1)


def dropout_mask(words: Tensor, shape: torch.Size, rate: float) -> Tensor:
    """Inverted dropout: float32 [B, C, H, W] (channels last in memory), 0 with probability `rate`, else 1/(1-rate).

    words: int32 [B, 2], one layer of `DropoutKey.words`. The rate is met to within 2^-17.
    """
    batch, channels, height, width = shape
    size = channels * height * width
    table = _element_table((size + 1) // 2, words.device)
    bits = (table ^ words[:, 1:]) * words[:, :1]
    bits ^= bits >> 16
    bits *= _MIX_32
    halves = bits.view(torch.int16)[:, :size]
    threshold = round(rate * 2**16) - 2**15
    mask = (halves >= threshold).to(torch.float32).mul_(1.0 / (1.0 - rate))
    return mask.view(batch, height, width, channels).permute(0, 3, 1, 2)

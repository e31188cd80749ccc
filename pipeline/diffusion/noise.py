"""Counter-based noise: a number is a pure function of (seed, stream, id, step, element).

Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) maps a 128-bit counter and a
64-bit key to 128 random bits. There is no state, so the noise of a sample does not depend on its batch, its worker or
earlier attempts. The counter's four 32-bit words are

    (element block, step, low half of id, high half of id)

and element e of a sample takes word e mod 4 of block e // 4. Everything is int64 arithmetic on words in [0, 2^32):
torch has no unsigned 64-bit product, but the wrapped signed product holds the same 64 bits. Integers are equal on CPU
and GPU, eager and compiled.

Two draws under one key share words where their counters agree, so each purpose needs a stream of its own.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

Key = tuple[int, int]
_Keys = tuple[int, int] | tuple[Tensor, Tensor]
"""Two key words, for all rows or int64 [B, 1] each."""

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_INV_2_32 = 2.0**-32


@lru_cache(maxsize=1024)
def stream_key(seed: int, stream: str) -> Key:
    """Two 32-bit key words from sha256 of the seed (any int) and the stream's name (any text)."""
    digest = hashlib.sha256(f"{seed}:{stream}".encode()).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:8], "little")


def _rounds(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, key: _Keys) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox on four broadcastable int64 word tensors in [0, 2^32); returns words in [0, 2^32)."""
    k0: int | Tensor
    k1: int | Tensor
    k0, k1 = key
    for _ in range(_ROUNDS):
        product_0, product_1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        # c1, c3 and the keys have extra bits above bit 31 (full products and sums); the mask after the xor drops them.
        c0 = ((product_1 >> 32) ^ c1 ^ k0) & _MASK
        c2 = ((product_0 >> 32) ^ c3 ^ k1) & _MASK
        c1, c3 = product_1, product_0
        k0, k1 = k0 + _WEYL[0], k1 + _WEYL[1]
    return c0, c1 & _MASK, c2, c3 & _MASK


def philox_4x32(counter: Tensor, key: Key) -> Tensor:
    """Philox 4x32-10 of int64 [..., 4] words in [0, 2^32) under two 32-bit key words; int64 [..., 4], same range."""
    c0, c1, c2, c3 = counter.unbind(-1)
    return torch.stack(_rounds(c0, c1, c2, c3, key), dim=-1)


def _words(key: _Keys, ids: Tensor, step: int | Tensor, blocks: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four int64 [B, blocks] word tensors. `ids` int64 [B]; `step` an int or int64 [B], 0 <= step < 2^32."""
    if isinstance(step, int):
        if not 0 <= step <= _MASK:
            raise ValueError(f"step must lie in [0, 2^32), got {step}")
        step = torch.full_like(ids, step)
    block = torch.arange(blocks, device=ids.device)[None, :]
    column = ids[:, None]
    return _rounds(block, step[:, None], column & _MASK, column >> 32, key)


def _interleave(words: list[Tensor], num: int) -> Tensor:
    """Four [B, blocks] tensors -> [B, num], word by word within each block."""
    return torch.stack(words, dim=-1).flatten(1)[:, :num]


def _box_muller(radius_word: Tensor, angle_word: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent standard normals a pair of words, float32. (word + 1) / 2^32 in (0, 1] has a finite logarithm."""
    radius = ((radius_word + 1).double() * _INV_2_32).log_().mul_(-2.0).sqrt_()
    angle = angle_word.double() * (2.0 * math.pi * _INV_2_32)
    return (radius * angle.cos()).float(), (radius * angle.sin()).float()


def normal(key: _Keys, ids: Tensor, step: int | Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normals, float32 [B, *shape], |z| < 6.67; `ids` int64 [B], `step` an int or int64 [B] in [0, 2^32).

    Box-Muller runs in float64 and the result is rounded to float32: CPU, GPU and compiled code use different libraries
    for log and cos, and rounding removes their last-bit differences in all but about one value in 10^8.
    """
    num = math.prod(shape)
    w0, w1, w2, w3 = _words(key, ids, step, -(-num // 4))
    values: list[Tensor] = []
    for radius_word, angle_word in ((w0, w1), (w2, w3)):
        values += _box_muller(radius_word, angle_word)
    return _interleave(values, num).reshape(ids.shape[0], *shape)


def uniform(key: Key, ids: Tensor, step: int | Tensor, num: int) -> Tensor:
    """Uniforms in [0, 1), float64 [B, num], on the grid of 2^-32.

    float64 because it holds every 32-bit word exactly; float32 would round the largest words up to 1.
    """
    words = _words(key, ids, step, -(-num // 4))
    return _interleave(list(words), num).double() * _INV_2_32


def integers(key: Key, ids: Tensor, step: int | Tensor, high: int) -> Tensor:
    """Integers in [0, high), int64 [B], 1 <= high <= 2^31.

    Multiply and shift: each value's probability is within 2^-32 of 1/high (relative 2.4e-7 at high = 1000).
    """
    if not 1 <= high <= 2**31:
        raise ValueError(f"high must lie in [1, 2^31], got {high}")
    word = _words(key, ids, step, 1)[0]
    return (word[:, 0] * high) >> 32


@dataclass(frozen=True)
class SampleNoise:
    """All noise of a batch of samples; row i depends on (seed, ids[i]) alone.

    seed: any int, or one a row; ids: int64 [B] sample ids; shape: of one sample, e.g. (C, H, W).
    """

    seed: int | tuple[int, ...]
    ids: Tensor
    shape: tuple[int, ...]

    def initial(self) -> Tensor:
        """x_T, float32 [B, *shape]."""
        return normal(self._keys("x_T"), self.ids, 0, self.shape)

    def at(self, step: int) -> Tensor:
        """The noise added when leaving timestep index `step` (0..T-1), float32 [B, *shape]."""
        return normal(self._keys("sampling"), self.ids, step, self.shape)

    def _keys(self, stream: str) -> _Keys:
        if isinstance(self.seed, int):
            return stream_key(self.seed, stream)
        words = torch.tensor([stream_key(seed, stream) for seed in self.seed], device=self.ids.device)
        return words[:, :1], words[:, 1:]

"""Importance-sampled timesteps: Nichol & Dhariwal 2021 (arXiv 2102.09672), section 3.3.

The terms of the bound differ by orders of magnitude over t. Drawing t with p_t ~ sqrt(E[L_t^2]) and weighting the loss
by 1 / (T p_t) keeps the expectation of the loss and lowers its variance. An all-reduce adds the loss tallies of all
workers, and every worker absorbs the same sum, so all workers draw from one distribution.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_MEMORY = 10  # losses averaged a timestep, as in the paper; p_t is uniform until every timestep has this many
_UNIFORM_SHARE = 1e-3  # keeps every p_t above zero and every weight below 1 / _UNIFORM_SHARE


@dataclass(frozen=True)
class LossTally:
    """Losses of one step by timestep: count and sum of squares, float64 [T]. Tallies add, in any order."""

    count: Tensor
    square_sum: Tensor

    @classmethod
    def of(cls, t: Tensor, loss: Tensor, num_timesteps: int) -> "LossTally":
        """The tally of a batch: t int64 [B], unweighted loss floating [B]."""
        zero = torch.zeros(num_timesteps, dtype=torch.float64, device=t.device)
        loss = loss.detach().double()
        return cls(zero.index_add(0, t, torch.ones_like(loss)), zero.index_add(0, t, loss.square()))

    def __add__(self, other: "LossTally") -> "LossTally":
        return LossTally(self.count + other.count, self.square_sum + other.square_sum)


@dataclass(frozen=True)
class ImportanceTimesteps:
    """Running estimate of E[L_t^2]: number of losses and their moving mean square, float64 [T] each."""

    seen: Tensor
    mean_square: Tensor

    @classmethod
    def fresh(cls, num_timesteps: int) -> "ImportanceTimesteps":
        zero = torch.zeros(num_timesteps, dtype=torch.float64)
        return cls(zero, zero)

    def to(self, device: torch.device) -> "ImportanceTimesteps":
        return ImportanceTimesteps(self.seen.to(device), self.mean_square.to(device))

    def absorb(self, tally: LossTally) -> "ImportanceTimesteps":
        """The state after one more step. A timestep's old mean square keeps the share (1 - 1/memory)^count."""
        seen = self.seen + tally.count
        # Until n = _MEMORY losses, the mean is a plain average: the new losses have the weight count / n.
        fading = 1.0 - (1.0 - 1.0 / _MEMORY) ** tally.count
        share = torch.maximum(fading, tally.count / seen.clamp(min=1.0))
        new = tally.square_sum / tally.count.clamp(min=1.0)
        return ImportanceTimesteps(seen, self.mean_square + share * (new - self.mean_square))

    def probabilities(self) -> Tensor:
        """p_t, float64 [T], sums to 1."""
        uniform = torch.full_like(self.seen, 1.0 / len(self.seen))
        if (self.seen < _MEMORY).any():
            return uniform
        root = self.mean_square.sqrt()
        total = root.sum()
        return uniform if total == 0 else (1.0 - _UNIFORM_SHARE) * root / total + _UNIFORM_SHARE * uniform

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """t int64 [B] and loss weights 1 / (T p_t), float32 [B], for `noise.uniform`'s u: float64 [B] in [0, 1)."""
        p = self.probabilities()
        # u is at most 1 - 2^-32; rounding moves the last edge of the cumulative sum by far less than 2^-32.
        t = torch.searchsorted(p.cumsum(0), u, right=True)
        return t, (1.0 / (len(p) * p[t])).float()

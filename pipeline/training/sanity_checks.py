"""Checks for failures that a loss curve hides: diverged replicas, frozen averages, a bad noise schedule, bad images.

Each check raises an error that names the problem, its place and the remedy.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from pipeline.config.model import DiffusionConfig
from pipeline.diffusion.forward_process import Process
from pipeline.diffusion.schedule import make_schedule
from pipeline.diffusion.variational_bound import prior_term
from pipeline.errors import ConfigError, DataError, PipelineError
from pipeline.ingest.manifest import DatasetManifest

_GOLDEN = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed 64-bit word
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
MAX_PRIOR = 1e-2
"""Bits/dim of L_T. Ho et al. 2020: 3e-5; latent diffusion's schedule: 3e-3; beta_end = 0.02 at T = 400: 1.3e-2."""
MIN_STD = 0.02
"""Of images in [-1, 1]: 2.5 grey levels. Floats of [0, 1] mistaken for grey levels have at most 0.004."""
_ROUNDING = 1e-6


def _local(tensor: Tensor) -> Tensor:
    part: Tensor = tensor.detach()
    return part.to_local() if isinstance(part, DTensor) else part


def _checksum(tensor: Tensor) -> Tensor:
    """int64 []: sum over elements of bit pattern times an odd word of the index, modulo 2^64.

    A change of any one element changes the sum.
    """
    flat = _local(tensor).reshape(-1)
    words = flat.view(_WORDS[flat.element_size()]).to(torch.int64)
    return (words * (torch.arange(len(words), device=words.device) * _GOLDEN | 1)).sum()


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Hex digest of names and exact values; of this worker's shard with fsdp. Costs one host synchronisation."""
    names = sorted(tensors)
    sums = torch.stack([_checksum(tensors[name]) for name in names]).tolist() if names else []
    return hashlib.sha256(repr(list(zip(names, sums, strict=True))).encode()).hexdigest()


def check_replicas(digests: Sequence[str], step: int) -> None:
    """digests: `weights_digest` of the model by rank. Raises PipelineError naming the ranks that differ."""
    (usual, _), *others = Counter(digests).most_common()
    if others:
        odd = [str(rank) for rank, digest in enumerate(digests) if digest != usual]
        raise PipelineError(
            f"at step {step} the weights of rank {', '.join(odd)} of {len(digests)} differ from the others': "
            "gradients did not reach every worker, or memory is faulty. Checkpoints since the last passed check may "
            "hold wrong weights: remove them, and train on other nodes"
        )


def check_average_moved(before: Mapping[str, str], after: Mapping[str, str], step: int) -> None:
    """before, after: `weights_digest` of each average, some steps apart. Raises PipelineError naming unchanged ones."""
    still = [name for name, digest in after.items() if before.get(name) == digest]
    if still:
        raise PipelineError(
            f"the average {', '.join(still)} did not change up to step {step}: it gets no updates, or the weights get "
            "none (with train.precision fp16: every step skipped; use bf16). Look at grad_norm and lr "
            "in the run's metrics; samples of such an average show untrained weights"
        )


def check_finite(groups: Mapping[str, Mapping[str, Tensor]], step: int) -> None:
    """groups: group -> named tensors of this worker. Raises PipelineError naming the first tensor with inf or NaN."""
    places = [(group, name) for group, tensors in groups.items() for name in tensors]
    if not places:
        return
    good = torch.stack([_local(groups[group][name]).isfinite().all() for group, name in places]).tolist()
    if not all(good):
        group, name = places[good.index(False)]
        raise PipelineError(
            f"at step {step} tensor '{name}' of '{group}' has values that are not finite: lower train.lr or "
            "train.grad_clip; the checkpoint before this step is good"
        )


def check_prior(config: DiffusionConfig) -> None:
    """Raises ConfigError when x_T keeps so much of x_0 that N(0, I) is a wrong start for sampling.

    The measure is L_T of Ho et al. 2020, Eq. 5, at its maximum |x_0| = 1: -0.5 log2(1 - alpha_bar_T).
    """
    schedule = make_schedule(config)
    prior = float(prior_term(Process(schedule), torch.ones(1, 1, dtype=torch.float64)))
    if prior > MAX_PRIOR:
        left = 100 * math.sqrt(float(schedule.alpha_bars[-1]))
        betas = f", beta_end {config.beta_end:g}" if config.schedule in ("linear", "quadratic") else ""
        raise ConfigError(
            f"diffusion.schedule '{config.schedule}' (num_timesteps {config.num_timesteps}{betas}) leaves "
            f"{left:.1f} % of the image in x_T: L_T is {prior:.2g} bits/dim, "
            f"not below {MAX_PRIOR:g}, so sampling would start from a distribution that training never saw. Raise "
            "diffusion.num_timesteps or diffusion.beta_end, take diffusion.schedule 'cosine', or set "
            "diffusion.zero_terminal_snr with diffusion.prediction 'v'"
        )


def check_images(manifest: DatasetManifest) -> None:
    """Raises DataError when a channel's mean or standard deviation is impossible or unlikely for images in [-1, 1]."""
    stats = list(zip(manifest.channel_mean, manifest.channel_std, strict=True))
    if len(stats) != manifest.channels:
        raise DataError(f"the dataset has {manifest.channels} channels but statistics of {len(stats)}: ingest it again")
    for channel, (mean, std) in enumerate(stats):
        # Values in [-1, 1] have a mean square of at most 1.
        if not mean**2 + std**2 <= 1.0 + _ROUNDING:
            raise DataError(
                f"channel {channel} of the dataset has mean {mean:.4g}, standard deviation {std:.4g}: impossible for "
                "images in [-1, 1] (was 0..255 read as [-1, 1]?); ingest it again"
            )
        if std < MIN_STD:
            raise DataError(
                f"channel {channel} of the dataset has mean {mean:.4g}, standard deviation {std:.2g} in [-1, 1]: "
                "the channel is almost constant (floats of [0, 1] stored as grey levels, or an empty channel?); "
                "look at the images, and ingest values of 0..255 or set ingest.channels 1"
            )

"""Weights that somebody else trained: read from a file without running code that is in it, and fitted to our layers."""

import io
from collections.abc import Mapping

import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.errors import DataError

__all__ = ["fit", "tensors_of"]

_SHOWN = 3


def tensors_of(data: bytes, what: str) -> dict[str, Tensor]:
    """A state dict, from safetensors or from a PyTorch file (tensors only). Raises DataError naming `what`."""
    length = int.from_bytes(data[:8], "little")
    try:
        if data[8:9] == b"{" and 8 + length <= len(data):
            return safetensors.torch.load(data)
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle or archive fails in any way there is
        raise DataError(
            f"{what}: {len(data):,} bytes that are neither safetensors nor a PyTorch file of tensors "
            f"({type(error).__name__})"
        ) from error
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise DataError(f"{what} holds a {type(loaded).__name__}, not a state dict: save model.state_dict()")
    return dict(loaded)


def fit(network: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Give `network`, made on the meta device, these weights as float32. A batch norm's step counter may be missing.

    Raises one DataError that names missing and unknown layers and wrong shapes.
    """
    wanted = {k: v.shape for k, v in network.state_dict().items() if not k.endswith(".num_batches_tracked")}
    given = {k: v for k, v in tensors.items() if not k.endswith(".num_batches_tracked")}
    wrong = [
        f"{k} is {list(given[k].shape)}, not {list(shape)}"
        for k, shape in wanted.items()
        if k in given and given[k].shape != shape
    ]
    problems = [
        *_listed("lacks", [k for k in wanted if k not in given]),
        *_listed("has unknown", [k for k in given if k not in wanted]),
        *_listed("has", wrong),
    ]
    if problems:
        raise DataError(f"{what} does not have the layers of this network: it {'; it '.join(problems)}")
    counters = {k: torch.zeros((), dtype=torch.int64) for k in network.state_dict() if k not in wanted}
    floats = {k: given[k].detach().to(torch.float32).clone() for k in wanted}
    network.load_state_dict({**counters, **floats}, assign=True)
    network.eval().requires_grad_(False)


def _listed(verb: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{verb} {', '.join(names[:_SHOWN])}{more}"]

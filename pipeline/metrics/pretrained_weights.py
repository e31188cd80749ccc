"""Reads third-party weight files without executing code from them, and loads the weights into a network."""

import io
from collections.abc import Mapping

import safetensors.torch
import torch
from torch import Tensor, nn

from pipeline.errors import DataError

_SHOWN = 3


def read_state_dict(data: bytes, what: str) -> dict[str, Tensor]:
    """The state dict of a safetensors or PyTorch file (tensors only). Raises DataError naming `what`."""
    length = int.from_bytes(data[:8], "little")
    try:
        if data[8:9] == b"{" and 8 + length <= len(data):
            return safetensors.torch.load(data)
        loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle or archive can raise any exception
        raise DataError(
            f"{what}: the {len(data):,} bytes are neither safetensors nor a PyTorch file of tensors "
            f"({type(error).__name__})"
        ) from error
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise DataError(f"{what} holds a {type(loaded).__name__}, not a state dict: save model.state_dict()")
    return dict(loaded)


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], what: str) -> None:
    """Load the weights into `network` (on the meta device) as float32, and set evaluation mode.

    Step counters of batch norms may be missing. Raises one DataError that names missing layers, unknown layers and
    wrong shapes.
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

"""One model on several workers: whole on each (ddp), or split over them with its optimiser and averages (fsdp).

Split or whole, a tensor at rest is whole: `whole` and `take` lie between, so any number of workers of either kind
loads what another one stored.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from pipeline.config.root import TrainConfig
from pipeline.models.layers import Attention, ResnetBlock

__all__ = ["discard_gathered", "gradient_sync", "is_split", "parallelise", "take", "whole"]


def parallelise(model: nn.Module, settings: TrainConfig, world_size: int, device: torch.device) -> nn.Module:
    """The module to call in training, which averages gradients over the workers of the default process group.

    With fsdp `model` itself is changed: its parameters become those parts that this worker keeps.
    """
    split = settings.sharding == "fsdp" and world_size > 1
    if split:
        _split(model, world_size, device)
    network: nn.Module = torch.compile(model, dynamic=False) if settings.compile else model  # type: ignore[assignment]
    if split or world_size == 1:
        return network
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True)


def _split(model: nn.Module, world_size: int, device: torch.device) -> None:
    """Blocks first: each is gathered just before it runs; what is in none of them belongs to the root."""
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # rows are dealt out, so a row must lie together
    mesh = init_device_mesh(device.type, (world_size,))
    for module in list(model.modules()):
        if isinstance(module, ResnetBlock | Attention):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_split(model: nn.Module) -> bool:
    """Whether every worker keeps only a part of this model."""
    return isinstance(model, FSDPModule)


@contextmanager
def gradient_sync(model: nn.Module, network: nn.Module, last: bool) -> Iterator[None]:
    """Around forward and backward of one micro-batch of a step: workers exchange gradients in the last one only."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        yield
    elif isinstance(network, DistributedDataParallel) and not last:
        with network.no_sync():
            yield
    else:
        yield


def discard_gathered(model: nn.Module) -> None:
    """After parts have changed other than by the optimiser: what was put together from them is out of date."""
    if isinstance(model, FSDPModule):
        model.reshard()  # only the root keeps its weights after a forward pass


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor: itself, or its parts put together. Every worker calls it together."""
    if isinstance(tensor, DTensor):
        full: Tensor = tensor.full_tensor()
        return full
    return tensor


def take(tensor: Tensor, value: Tensor) -> Tensor:
    """What a worker keeps of `value` where it keeps `tensor`, of the same whole shape: all of it, or its part."""
    if not isinstance(tensor, DTensor):
        return value
    mesh, value = tensor.device_mesh, value.contiguous()
    parts = value.chunk(mesh.size())  # by rows; with more workers than rows the last ones have none
    rank = mesh.get_local_rank()
    mine = (parts[rank] if rank < len(parts) else value[:0]).to(tensor.device)
    return DTensor.from_local(mine, mesh, tensor.placements, run_check=False, shape=value.shape, stride=value.stride())

"""One model on several workers: replicated (ddp), or sharded together with its optimiser and averages (fsdp).

Checkpoints hold full tensors in either case: `full_tensor` gathers and `local_shard` distributes them, so a checkpoint
loads on any number of workers of either kind.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from pipeline.config.training import TrainConfig
from pipeline.models.layers import Attention, ResnetBlock


def parallelise(model: nn.Module, settings: TrainConfig, world_size: int, device: torch.device) -> nn.Module:
    """The module to call in training; it averages gradients over the workers of the default process group.

    With fsdp `model` itself changes: its parameters become this worker's shards.
    """
    sharded = settings.sharding == "fsdp" and world_size > 1
    if sharded:
        _shard(model, world_size, device)
    network: nn.Module = torch.compile(model, dynamic=False) if settings.compile else model  # type: ignore[assignment]
    if sharded or world_size == 1:
        return network
    ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=ids, gradient_as_bucket_view=True)


def _shard(model: nn.Module, world_size: int, device: torch.device) -> None:
    """Shard each block, then the rest as the root module: FSDP gathers a block just before the block runs."""
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP shards by rows, so rows must be contiguous
    mesh = init_device_mesh(device.type, (world_size,))
    for module in list(model.modules()):
        if isinstance(module, ResnetBlock | Attention):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether every worker keeps only a shard of this model."""
    return isinstance(model, FSDPModule)


@contextmanager
def gradient_sync(model: nn.Module, network: nn.Module, last: bool) -> Iterator[None]:
    """Around forward and backward of one micro-batch: workers exchange gradients only in the last one of a step."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last)
        yield
    elif isinstance(network, DistributedDataParallel) and not last:
        with network.no_sync():
            yield
    else:
        yield


def discard_gathered(model: nn.Module) -> None:
    """Drop gathered weights after shards were changed by anything but the optimiser."""
    if isinstance(model, FSDPModule):
        model.reshard()  # after a forward pass only the root holds gathered weights


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor itself, or its gathered shards. With fsdp a collective: every worker must call."""
    if isinstance(tensor, DTensor):
        full: Tensor = tensor.full_tensor()
        return full
    return tensor


def local_shard(tensor: Tensor, value: Tensor) -> Tensor:
    """`value` sharded like `tensor`, which has the same full shape; `value` itself when `tensor` is not sharded."""
    if not isinstance(tensor, DTensor):
        return value
    mesh, value = tensor.device_mesh, value.contiguous()
    parts = value.chunk(mesh.size())  # by rows; with more workers than rows the last workers get none
    rank = mesh.get_local_rank()
    mine = (parts[rank] if rank < len(parts) else value[:0]).to(tensor.device)
    return DTensor.from_local(mine, mesh, tensor.placements, run_check=False, shape=value.shape, stride=value.stride())

"""Mixed precision: forward and backward in bf16 or fp16; weights, optimiser, averages, noise and losses stay float32.

fp16 has a small exponent range, so gradients are those of scale * loss. A step whose gradients overflow is skipped:
the step counts (data, learning rate and averages advance), weights and optimiser stay unchanged, and the scale is
halved. Gradients are summed over the workers before the check, so all workers skip the same steps. No step waits for
the host: the optimiser's kernel reads the overflow flag on the device.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.models.layers import Conv3x3

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Autocast and loss scaling for one model on one device; at fp32 every method is the identity."""

    def __init__(self, name: Literal["fp32", "bf16", "fp16"], device: torch.device, model: nn.Module) -> None:
        self._dtype, self._device = _DTYPES.get(name), device
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
        if self._dtype is not None:
            for module in model.modules():
                if isinstance(module, Conv3x3):
                    module.fast = False  # Winograd's algorithm loses too many digits in half precision

    def forward(self) -> AbstractContextManager[object]:
        """Autocast context for the forward pass of the network only."""
        return nullcontext() if self._dtype is None else torch.autocast(self._device.type, self._dtype)

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of scale * loss."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradients by the scale, so that they can be clipped."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Step the optimiser unless a gradient is not finite, then update the scale."""
        self.scaler.step(optimizer)
        self.scaler.update()

    def tensors(self) -> dict[str, Tensor]:
        """The scale, float64 [], and the steps since it changed, int64 []; empty when nothing is scaled."""
        state = self.scaler.state_dict()
        if not state:
            return {}
        return {
            "scale": torch.tensor(state["scale"], dtype=torch.float64),
            "growth_tracker": torch.tensor(state["_growth_tracker"]),
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore the state that `tensors()` returned."""
        state = self.scaler.state_dict()
        if state:
            state |= {"scale": float(tensors["scale"]), "_growth_tracker": int(tensors["growth_tracker"])}
            self.scaler.load_state_dict(state)

"""Forward and backward in half precision; weights, optimiser, averages, noise, targets and losses stay float32.

fp16 has no exponents to spare, so its gradients are those of scale * loss, and a step whose gradients overflow is
skipped: it counts as a step (data, learning rate and averages go on), but weights and optimiser stay as they are and
the scale is halved. Gradients are summed over the workers first, so all of them skip together. Nothing waits for the
host: the optimiser's kernel reads a flag on the device.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.models.layers import Conv3x3

__all__ = ["Precision"]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """How one model is trained on one device. At fp32 everything here does nothing."""

    def __init__(self, name: Literal["fp32", "bf16", "fp16"], device: torch.device, model: nn.Module) -> None:
        self._dtype, self._device = _DTYPES.get(name), device
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")
        if self._dtype is not None:
            for module in model.modules():
                if isinstance(module, Conv3x3):
                    module.fast = False  # Winograd's algorithm loses digits that half precision does not have

    def forward(self) -> AbstractContextManager[object]:
        """Around the network's forward pass, and nothing else."""
        return nullcontext() if self._dtype is None else torch.autocast(self._device.type, self._dtype)

    def backward(self, loss: Tensor) -> None:
        """Gradients of scale * loss."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradients become those of the loss, where they can be clipped."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimiser's step, unless a gradient is not finite; then the scale of the next step."""
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
        """Go on from what `tensors()` gave."""
        state = self.scaler.state_dict()
        if state:
            state |= {"scale": float(tensors["scale"]), "_growth_tracker": int(tensors["growth_tracker"])}
            self.scaler.load_state_dict(state)

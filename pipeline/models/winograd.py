"""Winograd 3x3 convolutions in plain torch, with a quarter of the multiplications (Lavin & Gray 2016, F(4x4, 3x3)).

A 4x4 tile of the output depends on a 6x6 tile of the input. With A, G and B of the Cook-Toom construction,

    y = A^T [ (G g G^T) * (B^T d B) ] A        d: input tile, g: 3x3 filter, y: output tile,

where * is elementwise. Over all channels that is 36 matrix products: 36 multiplications where the definition has 144.
Over flattened tiles, with take = B^T (x) B^T, give = A^T (x) A^T, U = (G (x) G) g, the steps are linear maps:

    V = take d        M_k = V_k U_k^T,  k = 1..36        y = give M

Both gradients use the same three steps in another order. A convolution after twofold nearest-neighbour enlargement only
needs another `take`, because an enlarged tile is a linear map of a 4x4 tile of the small image.

The interpolation points 0, 1, -1, 1/2, -2 and infinity keep the rounding error small. For standard normal outputs in
float32 the rms error is 1e-6 to 2.5e-6. The usual points 0, 1, -1, 2, -2 give 1.5 times that; torch's convolution has
2e-7 (channels first) to 1.1e-6 (channels last).

The work is split into a few images or rows of tiles at a time, so that intermediate tensors of about `_SCRATCH_BYTES`
stay in the CPU cache.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

_SCRATCH_BYTES = 4 * 2**20


def _matrix(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


_A = _matrix([[1, 0, 0, 0], [1, 1, 1, 1], [1, -1, 1, -1], [1, 1 / 2, 1 / 4, 1 / 8], [1, -2, 4, -8], [0, 0, 0, 1]])
_G = _matrix([[15, 0, 0], [5, 5, 5], [-5, 5, -5], [-16, -8, -4], [1, -2, 4], [0, 0, 15]]) / 15
_B = (
    _matrix(
        [
            [2, 0, 0, 0, 0, 0],
            [-3, -2, 2, -4, 1, 2],
            [-4, 1, -5, -2, -2, -3],
            [3, 5, 1, 4, -1, -4],
            [2, 2, 2, 2, 2, 3],
            [0, 0, 0, 0, 0, 2],
        ]
    )
    / 2
)
_ENLARGE = _matrix([[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
_ADD_PAIRS = _matrix([[1, 1, 0, 0], [0, 0, 1, 1]])
_FILTER = torch.kron(_G, _G)  # [36, 9]


class _Tiling(NamedTuple):
    """Input tiles of size x size pixels, `stride` apart, become output tiles of pixels x pixels."""

    size: int
    stride: int
    pixels: int
    take: Tensor  # float64 [36, size^2]
    give: Tensor  # float64 [pixels^2, 36]


_SAME = _Tiling(6, 4, 4, torch.kron(_B.T, _B.T), torch.kron(_A.T, _A.T))
_ENLARGED = _Tiling(4, 2, 4, torch.kron(_B.T @ _ENLARGE, _B.T @ _ENLARGE), _SAME.give)
_ENLARGED_BACK = _Tiling(6, 4, 2, _SAME.take, torch.kron(_ADD_PAIRS @ _A.T, _ADD_PAIRS @ _A.T))


def winograd_pays(x: Tensor, weight: Tensor, enlarge: bool = False) -> bool:
    """True if `winograd_conv` supports the inputs and is faster: float32 on CPU, whole tiles, enough work.

    benchmarks/model.py gave the thresholds. A compiled graph keeps torch's convolution.
    """
    batch, c_in, height, width = x.shape
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.dtype != torch.float32 or height % 4 or width % 4:
        return False
    wide = min(c_in, weight.shape[0]) >= (64 if enlarge else 128)
    return wide and batch * height * width >= 512 and not torch.compiler.is_compiling()


def _groups(batch: int, tile_rows: int, row_bytes: int) -> Iterator[tuple[slice, slice]]:
    """Split batch x tile_rows into (images, tile rows) of about _SCRATCH_BYTES, at `row_bytes` for a row of tiles."""
    rows = max(1, _SCRATCH_BYTES // row_bytes)
    images, rows = max(1, rows // tile_rows), min(rows, tile_rows)
    for i in range(0, batch, images):
        for r in range(0, tile_rows, rows):
            yield slice(i, min(i + images, batch)), slice(r, min(r + rows, tile_rows))


def _taken(x: Tensor, rows: slice, tiling: _Tiling) -> Tensor:
    """V [tiles, 36, C] for the tile rows `rows` of x [n, H, W, C] with zero padding."""
    n, height, width, channels = x.shape
    size, stride = tiling.size, tiling.stride
    top, bottom = rows.start * stride - 1, (rows.stop - 1) * stride + size - 1
    inside = x[:, max(top, 0) : min(bottom, height)]
    padded = F.pad(inside, (0, 0, 1, 1, max(-top, 0), max(bottom - height, 0)))
    across, down = padded.stride(2), padded.stride(1)
    shape = (n, rows.stop - rows.start, (width + 2 - size) // stride + 1, size, size, channels)
    tiles = padded.as_strided(shape, (padded.stride(0), stride * down, stride * across, down, across, 1))
    flat = tiles.reshape(-1, size * size, channels)
    return torch.bmm(tiling.take.to(x.dtype).expand(len(flat), -1, -1), flat)


def _convolve(x: Tensor, filters: Tensor, tiling: _Tiling, add: list[Tensor]) -> Tensor:
    """Convolution of x [B, H, W, C] by filters [36, C, K], plus each of `add` ([1 or B, 1 or H, 1 or W, K])."""
    batch, height, width, channels = x.shape
    k, p = filters.shape[2], tiling.pixels
    down, across = height // tiling.stride, width // tiling.stride
    out = x.new_empty(batch, down * p, across * p, k)
    give = tiling.give.to(x.dtype)
    for images, rows in _groups(batch, down, across * 36 * max(channels, k) * x.element_size()):
        products = torch.bmm(_taken(x[images], rows, tiling).transpose(0, 1), filters)
        pixels = torch.mm(give, products.view(36, -1)).view(p, p, -1, rows.stop - rows.start, across, k)
        place = out[images, rows.start * p : rows.stop * p]
        tiled = place.view(-1, rows.stop - rows.start, p, across, p, k).permute(2, 4, 0, 1, 3, 5)
        tiled.copy_(pixels)
        for term in add:
            part = term[images] if len(term) > 1 else term
            place += part[:, rows.start * p : rows.stop * p] if part.shape[1] > 1 else part
    return out


def _filter_gradient(x: Tensor, dy: Tensor, tiling: _Tiling) -> Tensor:
    """Gradient of the filters, [36, K, C], for input x [B, H, W, C] and output gradient dy [B, H', W', K]."""
    batch, height, width, channels = x.shape
    k, p = dy.shape[3], tiling.pixels
    down, across = height // tiling.stride, width // tiling.stride
    grad = x.new_zeros(36, k, channels)
    give = tiling.give.to(x.dtype).T
    for images, rows in _groups(batch, down, across * 36 * max(channels, k) * x.element_size()):
        place = dy[images, rows.start * p : rows.stop * p]
        tiles = place.reshape(-1, rows.stop - rows.start, p, across, p, k).transpose(2, 3).reshape(-1, p * p, k)
        products = torch.bmm(give.expand(len(tiles), -1, -1), tiles)
        grad.baddbmm_(products.permute(1, 2, 0), _taken(x[images], rows, tiling).transpose(0, 1))
    return grad


class _WinogradConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, shift: Tensor, residual: Tensor | None, enlarge: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.enlarge, ctx.shared_shift = enlarge, len(shift) == 1
        k, c = weight.shape[:2]
        filters = (_FILTER.to(x.dtype) @ weight.permute(2, 3, 0, 1).reshape(9, -1)).view(36, k, c)
        add = [shift[:, None, None, :]] + ([] if residual is None else [residual.permute(0, 2, 3, 1)])
        tiling = _ENLARGED if enlarge else _SAME
        return _convolve(x.permute(0, 2, 3, 1), filters.mT, tiling, add).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        k, c = weight.shape[:2]
        dy_rows, dx, dw = dy.permute(0, 2, 3, 1).contiguous(), None, None
        if ctx.needs_input_grad[0]:
            turned = (_FILTER.flip(1).to(x.dtype) @ weight.permute(2, 3, 0, 1).reshape(9, -1)).view(36, k, c)
            dx = _convolve(dy_rows, turned, _ENLARGED_BACK if ctx.enlarge else _SAME, []).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            grad = _filter_gradient(x.permute(0, 2, 3, 1), dy_rows, _ENLARGED if ctx.enlarge else _SAME)
            dw = (_FILTER.T.to(x.dtype) @ grad.view(36, -1)).view(3, 3, k, c).permute(2, 3, 0, 1)
        dshift = dy_rows.sum((0, 1, 2))[None] if ctx.shared_shift else dy_rows.sum((1, 2))
        return dx, dw, dshift, dy if ctx.needs_input_grad[3] else None, None


def winograd_conv(
    x: Tensor, weight: Tensor, shift: Tensor, residual: Tensor | None = None, enlarge: bool = False
) -> Tensor:
    """conv2d(x, weight, padding=1) + shift + residual; `enlarge` first doubles x by nearest neighbour.

    x: float [B, C, H, W], H and W multiples of 4, any layout. weight: [K, C, 3, 3]. shift: [1 or B, K], the bias, or
    bias plus an embedding for each sample. residual: [B, K, H', W']. Result: [B, K, H', W'], channels last.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    out: Tensor = _WinogradConv.apply(x, weight, shift, residual, enlarge)  # type: ignore[no-untyped-call]
    return out

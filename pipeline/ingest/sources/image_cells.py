"""Types of Arrow columns that hold images, and the images in their cells.

    binary, large or view, fixed size       an encoded image
    struct with bytes                       Hugging Face's Image: an encoded image, or only its path
    list of these                           several images in a row
    list of uint8                           the bytes of an encoded image
    list of lists (of lists) of integers    pixels [H, W], [H, W, C] or [C, H, W], also as tensors of a fixed shape

A dictionary or an extension type counts as the type of its values.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.types as types

from pipeline.images.png import Pixels
from pipeline.images.reject_reasons import Reject

IMAGE_NAMES: Final = (
    *("image", "img", "bytes", "data", "content", "image_bytes", "png", "jpg", "jpeg"),
    *("images", "pixels", "picture", "photo", "webp", "avif"),
)
_CHANNELS: Final = (1, 3, 4)


def image_candidates(schema: pa.Schema, wanted: str | None) -> list[str]:
    """The columns that may hold images: those of the plainest type that occurs. wanted: a name to include."""
    ranks = {field.name: _rank(field.type) for field in schema}
    ranked = {
        name: rank
        for name, rank in ranks.items()
        if rank is not None and (rank < _INTEGERS or name in IMAGE_NAMES or name == wanted)
    }
    if wanted is not None and wanted in ranked:
        return [wanted]
    return [name for name, rank in ranked.items() if rank == min(ranked.values())]


_ENCODED, _SEVERAL, _BYTES, _INTEGERS = range(4)


def _rank(kind: pa.DataType) -> int | None:
    """How plainly a type stands for images, best first; None for other types."""
    kind = _plain(kind)
    if _is_encoded(kind):
        return _ENCODED
    if not _is_list(kind):
        return None
    if _is_encoded(_plain(kind.value_type)):
        return _SEVERAL
    depth = 0
    while _is_list(kind):
        kind, depth = _plain(kind.value_type), depth + 1
    if types.is_uint8(kind) and depth <= 3:
        return _BYTES
    return _INTEGERS if types.is_integer(kind) and 2 <= depth <= 3 else None


def _plain(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return _tensor_list(kind) or _plain(kind.storage_type)
    return _plain(kind.value_type) if types.is_dictionary(kind) else kind


def _tensor_list(kind: pa.DataType) -> pa.DataType | None:
    """A tensor of a fixed shape as nested lists."""
    if not isinstance(kind, pa.FixedShapeTensorType):
        return None
    nested = kind.value_type
    for side in reversed(kind.shape):
        nested = pa.list_(nested, side)
    return nested


def _is_list(kind: pa.DataType) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_encoded(kind: pa.DataType) -> bool:
    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_binary(_plain(kind.field(index).type))
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    fixed = types.is_fixed_size_binary(kind) and not types.is_decimal(kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind) or fixed)


def image_cells(column: pa.Array) -> Iterator[list[bytes | Pixels | Reject]]:
    """The images of each cell of a column that `image_candidates` found: one, or several, or a reject."""
    shape = list(column.type.shape) if isinstance(column.type, pa.FixedShapeTensorType) else None
    while isinstance(column, pa.ExtensionArray | pa.DictionaryArray):
        extension = isinstance(column, pa.ExtensionArray)
        column = column.storage if extension else column.dictionary.take(column.indices)
    several = _is_list(column.type) and _is_encoded(_plain(column.type.value_type))
    for cell in column.to_pylist():
        if several and cell is not None:
            yield [_image(one, None) for one in cell] or [Reject("empty", "a list without images")]
        else:
            yield [_image(cell, shape)]


def _image(cell: Any, shape: Sequence[int] | None) -> bytes | Pixels | Reject:
    if isinstance(cell, dict) and cell.get("bytes") is None:
        path = cell.get("path")
        return Reject("empty", "null instead of bytes" + (f" (only the path {path!r})" if path else ""))
    if cell is None:
        return Reject("empty", "null instead of bytes")
    value = cell["bytes"] if isinstance(cell, dict) else cell
    return value if isinstance(value, bytes) else _pixels(value, shape)


def _pixels(values: list[Any], shape: Sequence[int] | None) -> bytes | Pixels | Reject:
    """Pixels from nested lists of integers, or the bytes of an encoded image from a plain list."""
    try:
        levels = np.array(values, np.int64)
        levels = levels if shape is None else levels.reshape(tuple(shape))
    except (ValueError, TypeError, OverflowError) as error:
        return Reject("unsupported-mode", f"lists that are no image: {error}")
    if levels.size and not 0 <= levels.min() <= levels.max() <= 255:
        return Reject("unsupported-mode", f"levels {levels.min()}..{levels.max()}, not 0..255")
    pixels = levels.astype(np.uint8)
    if pixels.ndim == 1:
        return pixels.tobytes()
    if pixels.ndim == 3 and pixels.shape[2] not in _CHANNELS and pixels.shape[0] in _CHANNELS:
        pixels = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    return pixels

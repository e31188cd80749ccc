"""Named arrays with a JSON header as one safetensors byte string, without pickle; equal input gives equal bytes."""

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from pipeline.errors import DataError

_METADATA_KEY: Final = "pipeline"  # one key only: safetensors writes several in no fixed order


def pack(kind: str, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Serialise `arrays` and the JSON `header`; `unpack` checks `kind`."""
    text = json.dumps({"kind": kind, **header}, sort_keys=True)
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return safetensors.numpy.save(contiguous, {_METADATA_KEY: text})


def unpack(kind: str, data: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Inverse of `pack`: (header, arrays). Raises DataError when the bytes are damaged or of another kind."""
    try:
        arrays = safetensors.numpy.load(data)
        length = int.from_bytes(data[:8], "little")
        header: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][_METADATA_KEY])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"these {len(data)} bytes are not a readable {kind}: {error}") from error
    if header.pop("kind", None) != kind:
        raise DataError(f"these {len(data)} bytes are not a {kind}")
    return header, arrays

"""Read a pickle that holds only plain values and numpy arrays, without running anything that it names.

A pickle is a program: it may name any function and call it. This reader knows only the names that numpy and Python
write for arrays, numbers and bytes. It puts objects of its own in their place, which only store their contents, so
numpy sees no untrusted state. The interpreter of pickles that is written in Python runs, because its memory follows the
size of the data, unlike that of the one in C.
"""

import io
import math
import pickle
import struct
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from pipeline.ingest.sources.containers import UnusableFile

_CORE: Final = ("numpy.core", "numpy._core")
_BAD: Final = (
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
)
_WIDTHS: Final = {"1": 1, "2": 2, "4": 4, "8": 8}


def load_plain(data: bytes) -> Any:
    """The value of a pickle; text of Python 2 becomes bytes. Raises UnusableFile."""
    try:
        return _Reader(io.BytesIO(data)).load()
    except (*_BAD, RecursionError, OverflowError, ImportError) as error:
        raise UnusableFile("damaged-container", f"the pickle cannot be read: {error}") from error


class _DType:
    """Type of an array, such as "u1" or "i8"."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code.decode() if isinstance(code, bytes) else str(code)
        self.order = "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = state[1]
        self.order = order.decode() if isinstance(order, bytes) else str(order)

    def plain(self) -> np.dtype[Any]:
        """The type for numpy. Raises ValueError for anything but integers, booleans and floats."""
        kind, width = self.code[:1], self.code[1:]
        if kind not in "iufb" or width not in _WIDTHS or self.order not in ("<", ">", "=", "|"):
            raise ValueError(f"an array of type {self.code!r}")
        return np.dtype(f"{self.order}{kind}{width}")


class _Array:
    """An array: its state is (version, shape, type, Fortran order, bytes)."""

    def __init__(self, *_: Any) -> None:
        self.value: npt.NDArray[Any] = np.zeros(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: Any, dtype: Any, shape: Any, order: str) -> npt.NDArray[Any]:
    if not isinstance(dtype, _DType) or not isinstance(data, bytes | bytearray):
        raise ValueError("an array of objects")
    kind = dtype.plain()
    shape = tuple(int(side) for side in shape)
    if any(side < 0 for side in shape) or math.prod(shape) * kind.itemsize != len(data):
        raise ValueError(f"an array of shape {shape} in {len(data)} bytes")
    return np.frombuffer(data, kind).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: Any, data: Any = b"") -> Any:
    return _array(data, dtype, (), "C").item()


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    """Bytes as protocols before 3 write them."""
    if encoding not in ("latin1", b"latin1"):
        raise ValueError(f"the encoding {encoding!r}")
    return str(text).encode("latin1")


class _Reader(pickle._Unpickler):  # type: ignore[misc, name-defined, unused-ignore]
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="bytes")
        self._names: dict[str, Any] = {
            "numpy.ndarray": type("ndarray", (_Array,), {}),
            "numpy.dtype": type("dtype", (_DType,), {}),
            "_codecs.encode": lambda *values: _encoded(*values),
            "builtins.bytes": lambda *values: (
                bytes(*values) if all(isinstance(v, list | bytes) for v in values) else b""
            ),
        }
        for core in _CORE:
            self._names[f"{core}.multiarray._reconstruct"] = lambda *_: _Array()
            self._names[f"{core}.multiarray.scalar"] = lambda *values: _scalar(*values)
            self._names[f"{core}.numeric._frombuffer"] = lambda *values: _frombuffer(*values)

    def find_class(self, module: str, name: str) -> Any:
        full = f"{_text(module)}.{_text(name)}".replace("__builtin__.", "builtins.")
        if full not in self._names:
            raise pickle.UnpicklingError(f"it names {full}, and only numpy arrays and plain values are read")
        return self._names[full]

    def _load_bytearray(self) -> None:
        reader: Any = self
        (size,) = struct.unpack("<Q", reader.read(8))
        reader.append(reader.read(size))

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,  # type: ignore[attr-defined, unused-ignore]
        pickle.BYTEARRAY8[0]: _load_bytearray,  # Python's own allocates the stated size first
    }

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to something outside of it")


def _text(name: Any) -> str:
    return name.decode("latin1") if isinstance(name, bytes) else str(name)


def _frombuffer(data: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> _Array:
    found = _Array()
    found.value = _array(bytes(data), dtype, shape, str(order))
    return found


def array_of(value: Any) -> npt.NDArray[Any] | None:
    """The array that a value of `load_plain` stands for; None for other values."""
    return value.value if isinstance(value, _Array) else None

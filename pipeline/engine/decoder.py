"""Decoding of images that nobody vouches for."""

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.config import IngestConfig
from pipeline.engine.images import BadImage, encode_png, prepare
from pipeline.refusals import Refusal

__all__ = ["Decoder"]

Pixels = NDArray[np.uint8]
T = TypeVar("T")


class Decoder:
    """Encoded images to uint8 [size, size, channels]. Use as a context manager, one for each task or actor."""

    def __init__(self, config: IngestConfig) -> None:
        self._config = config

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None: ...

    def prepare(self, rows: Iterable[tuple[T, bytes | Pixels | Refusal]]) -> Iterator[tuple[T, Pixels | Refusal]]:
        """(anything, image) to (the same thing, uint8 [size, size, channels] or why not), in order, a row for a row.

        Reads ahead of what it yields: some hundred rows, or some MiB.
        """
        for row, image in rows:
            if isinstance(image, Refusal):
                yield row, image
                continue
            try:
                yield row, prepare(image if isinstance(image, bytes) else encode_png(image), self._config)
            except BadImage as error:
                yield row, Refusal(error.reason, error.message)

"""Decode untrusted images in a separate sandboxed process: a codec crash rejects one image and nothing else.

The decoding process receives batches of encoded images and returns pixels, while this process reads the next batch and
uses the previous one. When the decoding process dies, the image that it was decoding is tried once more, alone in a new
process, and the rest of the batch continues there. An idle decoding process is reused by the next `Decoder` of the same
worker.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final, Generic, Self, TypeVar

from pipeline.config.ingest import IngestConfig
from pipeline.errors import PipelineError
from pipeline.images.decode import BadImage
from pipeline.images.png import Pixels
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.decode.resize import prepare_pixels
from pipeline.ingest.decode.subprocess_client import Crash, DecodingProcess, WithoutProfile

T = TypeVar("T")
SourceImage = bytes | Pixels | Reject
"""An encoded image, pixels that need no codec, or the reason why the source has no image."""

_BATCH_ROWS: Final = 64
_BATCH_BYTES: Final = 4 * 2**20
_MAX_FRUITLESS_CRASHES: Final = 5
"""Crashes in a row that settle no image. After so many, the images are not the cause."""


class _Batch(Generic[T]):
    """Rows in input order.

    pending: indices of the rows whose image is not decoded yet. alone: send the pending images one at a time.
    """

    def __init__(self) -> None:
        self.rows: list[tuple[T, SourceImage]] = []
        self.pending: list[int] = []
        self.alone = False
        self.bytes = 0

    def add(self, row: T, image: SourceImage) -> None:
        if isinstance(image, bytes):
            self.pending.append(len(self.rows))
            self.bytes += len(image)
        self.rows.append((row, image))

    @property
    def sent(self) -> list[int]:
        """The pending rows that the decoding process has."""
        return self.pending[:1] if self.alone else list(self.pending)

    def data(self, index: int) -> bytes:
        image = self.rows[index][1]
        assert isinstance(image, bytes)
        return image


class Decoder:
    """Encoded images to uint8 [size, size, channels]. A context manager: open one for each partition or actor.

    unusable_profiles: keys of the images so far whose colour profile cannot be used, so that they count as sRGB.
    """

    def __init__(self, config: IngestConfig) -> None:
        self.unusable_profiles: list[Any] = []
        self._config = config
        self._process: DecodingProcess | None = None
        out_bytes = config.image_size**2 * config.channels
        self._max_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // out_bytes))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Keep an idle process for the next Decoder; kill a busy one."""
        if self._process is not None:
            self._process.release()
            self._process = None

    def prepare(self, rows: Iterable[tuple[T, SourceImage]]) -> Iterator[tuple[T, Pixels | Reject]]:
        """Turn each (key, image) into (key, uint8 [size, size, channels] or Reject), in input order.

        Reads up to two batches (128 rows or 8 MiB) ahead of the row that it yields. Raises PipelineError when the
        decoding process does not start, or keeps dying while it has no image.
        """
        batches = self._batches(rows)
        current = next(batches, None)
        if current is not None:
            self._send(current)
        while current is not None:
            following = next(batches, None)  # read while the process decodes `current`
            images = self._collect(current)
            if following is not None:
                self._send(following)
            for (row, _), image in zip(current.rows, images, strict=True):
                yield row, image
            current = following

    def _batches(self, rows: Iterable[tuple[T, SourceImage]]) -> Iterator[_Batch[T]]:
        batch: _Batch[T] = _Batch()
        for row, image in rows:
            if isinstance(image, bytes) and len(image) > self._config.max_image_bytes:
                image = Reject("too-many-bytes", f"{len(image)} bytes are more than {self._config.max_image_bytes}")
            batch.add(row, image)
            if len(batch.rows) >= self._max_rows or batch.bytes >= _BATCH_BYTES:
                yield batch
                batch = _Batch()
        if batch.rows:
            yield batch

    def _send(self, batch: _Batch[T]) -> None:
        if batch.pending:
            self._process = self._process or DecodingProcess.start(self._config, self._max_rows)
            self._process.send([batch.data(index) for index in batch.sent])

    def _collect(self, batch: _Batch[T]) -> list[Pixels | Reject]:
        """The results of a batch that was sent, restarting the process after each crash."""
        found = {n: self._uncoded(image) for n, (_, image) in enumerate(batch.rows) if not isinstance(image, bytes)}
        fruitless = 0
        while batch.pending:
            before = len(batch.pending)
            crash = self._receive(batch, found)
            if crash is not None and crash.image_index is None:
                batch.alone = True
            fruitless = fruitless + 1 if len(batch.pending) == before else 0
            if crash is not None and fruitless >= _MAX_FRUITLESS_CRASHES:
                raise PipelineError(
                    f"the decoding process dies at once ({crash.cause}) and it is not the images: memory?"
                )
            self._send(batch)
        return [found[index] for index in range(len(batch.rows))]

    def _receive(self, batch: _Batch[T], found: dict[int, Pixels | Reject]) -> Crash | None:
        """Move results from the process to `found` until the batch is done or the process has crashed."""
        assert self._process is not None
        sent = batch.sent
        for index, result in zip(sent, self._process.results(len(sent)), strict=False):
            if isinstance(result, Crash):
                self._process = None
                culprit = None if result.image_index is None else sent[result.image_index]
                if culprit in batch.pending:
                    batch.pending.remove(culprit)
                    found[culprit] = self._noted(batch, culprit, self._after_crash(batch.data(culprit), result))
                return result
            found[index] = self._noted(batch, index, result)
            batch.pending.remove(index)
        return None

    def _after_crash(self, data: bytes, crash: Crash) -> Pixels | WithoutProfile | Reject:
        """The result of the image that was being decoded: rejected when too slow, else tried once more alone."""
        if crash.too_slow:
            return Reject("too-slow", f"more than {self._config.max_decode_seconds:g} s of processor time")
        process = DecodingProcess.start(self._config, self._max_rows)
        process.send([data])
        (result,) = process.results(1)
        if not isinstance(result, Crash):
            self._process = process
            return result
        return (
            self._after_crash(data, result) if result.too_slow else Reject("decoder-crashed", f"twice: {result.cause}")
        )

    def _noted(self, batch: _Batch[T], index: int, result: Pixels | WithoutProfile | Reject) -> Pixels | Reject:
        if isinstance(result, WithoutProfile):
            self.unusable_profiles.append(batch.rows[index][0])
            return result.pixels
        return result

    def _uncoded(self, image: SourceImage) -> Pixels | Reject:
        """Pixels and rejects need no codec, so this process handles them."""
        if isinstance(image, Reject):
            return image
        assert not isinstance(image, bytes)
        try:
            return prepare_pixels(image, self._config)
        except BadImage as error:
            return error.reject

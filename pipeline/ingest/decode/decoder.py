"""Decoding of images that nobody vouches for, in a process of its own: a codec that dies takes one image with it.

The process lives as long as the worker that owns it and is handed from one `Decoder` to the next. It gets a batch of
encoded images and returns pixels, while this side reads the next batch and works on the one before. When it dies, the
image in its hand gets a second chance alone in a fresh process, the rest of the batch goes on there.
"""

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Final, Generic, Self, TypeVar

from pipeline.config.ingest import IngestConfig
from pipeline.errors import PipelineError
from pipeline.images.decode import BadImage
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.decode.resize import Pixels, prepare_pixels
from pipeline.ingest.decode.subprocess_client import Death, DecodingProcess

__all__ = ["Decoder"]

T = TypeVar("T")

_BATCH_ROWS: Final = 64
_BATCH_BYTES: Final = 4 * 2**20
_MOST_DEATHS: Final = 5
"""Deaths in a row without an image in hand: then it is not the images."""


class _Batch(Generic[T]):
    """Rows in order; `pending`: numbers of those whose answer is still to come; `alone`: to be sent one at a time."""

    def __init__(self) -> None:
        self.rows: list[tuple[T, bytes | Pixels | Reject]] = []
        self.pending: list[int] = []
        self.alone = False
        self.bytes = 0

    def add(self, row: T, image: bytes | Pixels | Reject) -> None:
        if isinstance(image, bytes):
            self.pending.append(len(self.rows))
            self.bytes += len(image)
        self.rows.append((row, image))

    @property
    def sent(self) -> list[int]:
        """Those of the pending that are with the process."""
        return self.pending[:1] if self.alone else list(self.pending)

    def data(self, number: int) -> bytes:
        image = self.rows[number][1]
        assert isinstance(image, bytes)
        return image


class Decoder:
    """Encoded images to uint8 [size, size, channels]. A context manager; open one for each partition or actor."""

    def __init__(self, config: IngestConfig) -> None:
        self._config = config
        self._process: DecodingProcess | None = None
        out_bytes = config.image_size**2 * config.channels
        self._most_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // out_bytes))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the process for the next one, if it is idle; else end it."""
        if self._process is not None:
            self._process.release()
            self._process = None

    def prepare(self, rows: Iterable[tuple[T, bytes | Pixels | Reject]]) -> Iterator[tuple[T, Pixels | Reject]]:
        """(anything, image) to (the same thing, uint8 [size, size, channels] or why not), in order, a row for a row.

        Reads up to two batches (128 rows, or some MiB) ahead of what it yields. Raises PipelineError when the process
        cannot be kept alive.
        """
        batches = self._batches(rows)
        current = next(batches, None)
        if current is not None:
            self._send(current)
        while current is not None:
            following = next(batches, None)  # is read while the process decodes
            images = self._collect(current)
            if following is not None:
                self._send(following)
            for (row, _), image in zip(current.rows, images, strict=True):
                yield row, image
            current = following

    def _batches(self, rows: Iterable[tuple[T, bytes | Pixels | Reject]]) -> Iterator[_Batch[T]]:
        batch: _Batch[T] = _Batch()
        for row, image in rows:
            if isinstance(image, bytes) and len(image) > self._config.max_image_bytes:
                image = Reject("too-many-bytes", f"{len(image)} bytes are more than {self._config.max_image_bytes}")
            batch.add(row, image)
            if len(batch.rows) >= self._most_rows or batch.bytes >= _BATCH_BYTES:
                yield batch
                batch = _Batch()
        if batch.rows:
            yield batch

    def _send(self, batch: _Batch[T]) -> None:
        if batch.pending:
            self._process = self._process or DecodingProcess.start(self._config, self._most_rows)
            self._process.send([batch.data(number) for number in batch.sent])

    def _collect(self, batch: _Batch[T]) -> list[Pixels | Reject]:
        """The answers to a batch that was sent, through as many processes as it takes."""
        found = {n: self._here(image) for n, (_, image) in enumerate(batch.rows) if not isinstance(image, bytes)}
        in_vain = 0
        while batch.pending:
            before = len(batch.pending)
            death = self._receive(batch, found)
            if death is not None and death.number is None:
                batch.alone = True
            in_vain = in_vain + 1 if len(batch.pending) == before else 0
            if death is not None and in_vain >= _MOST_DEATHS:
                raise PipelineError(
                    f"the decoding process dies at once ({death.cause}) and it is not the images: memory?"
                )
            self._send(batch)
        return [found[number] for number in range(len(batch.rows))]

    def _receive(self, batch: _Batch[T], found: dict[int, Pixels | Reject]) -> Death | None:
        """Answers until the batch is done or the process is dead; whoever has one is no longer pending."""
        assert self._process is not None
        sent = batch.sent
        for number, answer in zip(sent, self._process.answers(len(sent)), strict=False):
            if isinstance(answer, Death):
                self._process = None
                culprit = None if answer.number is None else sent[answer.number]
                if culprit in batch.pending:
                    batch.pending.remove(culprit)
                    found[culprit] = self._verdict(batch.data(culprit), answer)
                return answer
            found[number] = answer
            batch.pending.remove(number)
        return None

    def _verdict(self, data: bytes, death: Death) -> Pixels | Reject:
        """What becomes of an image in whose hand a process died: one more try alone, unless it was only too slow."""
        if death.too_slow:
            return Reject("too-slow", f"more than {self._config.max_decode_seconds:g} s of processor time")
        process = DecodingProcess.start(self._config, self._most_rows)
        process.send([data])
        (answer,) = process.answers(1)
        if not isinstance(answer, Death):
            self._process = process
            return answer
        return self._verdict(data, answer) if answer.too_slow else Reject("decoder-crashed", f"twice: {answer.cause}")

    def _here(self, image: bytes | Pixels | Reject) -> Pixels | Reject:
        """What needs no codec is done in this process."""
        if isinstance(image, Reject):
            return image
        assert not isinstance(image, bytes)
        try:
            return prepare_pixels(image, self._config)
        except BadImage as error:
            return error.refusal

"""Reader of CIFAR-10 and CIFAR-100 as distributed: binary batches, or batches of Python, in folders or a tar archive.

    binary   one or two label bytes (CIFAR-100: coarse, fine), then 3072 bytes of red, green and blue, for each image
    Python   a pickle: dictionary of data, uint8 [N, 3 * side * side], and labels, or fine_labels and coarse_labels

The names of the classes are in files beside the batches. ImageNet at 32x32 or 64x64 pixels has Python batches too.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.config.ingest import IngestConfig
from pipeline.images.file_types import kind_of
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.sources.containers import ContainerSource, UnusableFile
from pipeline.ingest.sources.labels import Candidate, SourceInfo, choose
from pipeline.ingest.sources.plain_pickle import array_of, load_plain
from pipeline.ingest.sources.read import visible_files
from pipeline.ingest.sources.source import SourceFile, SourceRow, chunk_rows
from pipeline.ingest.sources.splits import Role, Roles, named_split, roles_of
from pipeline.ingest.sources.tar import members
from pipeline.storage.store import Store

_BATCH: Final = re.compile(r"(?:(?:train_|val_)?data_batch_\d+|test_batch|val_data|train|test)(\.bin)?")
_NAMES: Final = {
    "batches.meta.txt": "labels",
    "batches.meta": "labels",
    "fine_label_names.txt": "fine_labels",
    "coarse_label_names.txt": "coarse_labels",
    "meta": "labels",
}
_OTHERS: Final = ("readme.html", "file.txt~")
_LABELS: Final = ("labels", "fine_labels", "coarse_labels")
_PIXELS: Final = 3072
_RECORDS: Final = {_PIXELS + 1: ("labels",), _PIXELS + 2: ("coarse_labels", "fine_labels")}
_LARGEST_BYTES: Final = 2 * 2**30
_SAMPLE: Final = 1000

ClassNames = dict[str, tuple[str, ...]]
"""Names of classes by kind of label (`_LABELS`)."""


class Batch(NamedTuple):
    """pixels: uint8 [N, 3 * side * side]. labels: numbers by kind of label."""

    pixels: npt.NDArray[np.uint8]
    labels: dict[str, list[int]]


@dataclass(frozen=True)
class CifarReader:
    """label: the kind of label to use, one of `_LABELS`, or None. names: of its numbers, if known. roles: of splits."""

    label: str | None
    names: tuple[str, ...] | None
    partition_rows: int
    roles: Roles = ()

    def row_ranges(self, store: Store, file: SourceFile) -> Iterator[range | None]:
        record = _record_bytes(file)
        if self.role(file.key) == "out":
            return
        yield from [None] if record is None else chunk_rows(file.size // record, self.partition_rows)

    def rows(self, store: Store, file: SourceFile, row_range: range | None) -> Iterator[SourceRow]:
        record = _record_bytes(file)
        if record is None or row_range is None:
            if file.size > _LARGEST_BYTES:
                raise UnusableFile("too-many-bytes", f"a batch of {file.size} bytes, more than {_LARGEST_BYTES}")
            yield from self.images(file.key, _python_batch(store.read(file.key)), 0)
            return
        data = store.read_range(file.key, row_range.start * record, len(row_range) * record)
        yield from self.images(file.key, _binary_batch(data, record), row_range.start)

    def role(self, key: str) -> Role | None:
        return dict(self.roles).get(_split(key) or "")

    def images(self, name: str, batch: Batch, first: int) -> Iterator[SourceRow]:
        """The images of a batch, or of a part of it that begins at image number `first`."""
        side = math.isqrt(batch.pixels.shape[1] // 3)
        labels, role = batch.labels.get(self.label or ""), self.role(name)
        split = named_split(role, self.roles) if role else None
        for number, pixels in enumerate(batch.pixels):
            source, index = f"{name}#{first + number}", None if labels is None else labels[number]
            if index is not None and self.names is not None and not 0 <= index < len(self.names):
                yield SourceRow(
                    source, Reject("unknown-label", f"label {index}, and {len(self.names)} names of classes")
                )
                continue
            label = None if index is None else str(index) if self.names is None else self.names[index]
            image = np.ascontiguousarray(pixels.reshape(3, side, side).transpose(1, 2, 0))
            yield SourceRow(source, image, label, split)


@dataclass(frozen=True)
class CifarTarReader:
    """A tar archive of batches, read by one task."""

    batches: CifarReader

    def row_ranges(self, store: Store, file: SourceFile) -> Iterator[range | None]:
        yield None

    def rows(self, store: Store, file: SourceFile, row_range: range | None) -> Iterator[SourceRow]:
        for member in members(store, file, _LARGEST_BYTES):
            name = f"{file.key}!{member.name}"
            if isinstance(member.data, Reject):
                yield SourceRow(name, member.data)
            elif _is_batch(member.name):
                if self.batches.role(member.name) != "out":
                    yield from self.batches.images(name, _batch(member.name, member.data), 0)
            elif not _is_known(member.name):
                yield SourceRow(name, Reject("not-an-image", "a file that is not part of CIFAR"))


def is_cifar(file: SourceFile, head: bytes) -> bool:
    """True if a file is a batch by its name, and by its size or its first bytes."""
    if not _is_batch(file.key):
        return False
    return kind_of(head) == "pickle" if not file.key.endswith(".bin") else _record_bytes(file) is not None


def open_cifar(name: str, store: Store, files: list[SourceFile] | None, config: IngestConfig) -> ContainerSource:
    """A source of batches. files: None for all of a folder. Raises ConfigError, UnusableFile, StorageError."""
    beside = list(visible_files(store))
    if files is None:
        files = [file for file in beside if not _is_known(file.key)]
    folders = {file.key.rpartition("/")[0] for file in files}
    texts = (
        (file.key, store.read(file.key))
        for file in beside
        if _base(file.key) in _NAMES and file.key.rpartition("/")[0] in folders and 0 < file.size < 2**20
    )
    names = _class_names(texts)
    sample = next(file for file in files if _is_batch(file.key) or len(files) == 1)
    record = _record_bytes(sample)
    if record is None:
        batch = _python_batch(store.read(sample.key))
    else:
        batch = _binary_batch(store.read_range(sample.key, 0, min(sample.size, _SAMPLE * record)), record)
    reader, info = _reader(name, batch, names, [file.key for file in files], config)
    return ContainerSource(name, store, "pickle", reader, reader.names, tuple(files), info=info)


def open_cifar_tar(name: str, store: Store, file: SourceFile, config: IngestConfig) -> ContainerSource | None:
    """A source for a tar archive whose first members are batches; None for others. Raises like `open_cifar`."""
    if not _begins_with_batches(store, file, config.max_image_bytes):
        return None
    sample, texts, keys = Batch(np.zeros((0, 0), np.uint8), {}), [], list[str]()
    for member in members(store, file, _LARGEST_BYTES):
        if isinstance(member.data, bytes) and _base(member.name) in _NAMES:
            texts.append((member.name, member.data))
        elif isinstance(member.data, bytes) and _is_batch(member.name):
            sample = sample if keys else _batch(member.name, member.data)
            keys.append(member.name)
    reader, info = _reader(name, sample, _class_names(texts), keys, config)
    return ContainerSource(name, store, "tar", CifarTarReader(reader), reader.names, (file,), info=info)


def _begins_with_batches(store: Store, file: SourceFile, max_bytes: int) -> bool:
    try:
        for member in members(store, file, max_bytes):
            if not _is_known(member.name):
                data = member.data
                if isinstance(data, Reject):  # a batch may be larger than an image
                    return _is_batch(member.name)
                return is_cifar(SourceFile(member.name, len(data), ""), data[:64])
    except UnusableFile:
        return False
    return False


def _reader(
    name: str, sample: Batch, names: ClassNames, keys: list[str], config: IngestConfig
) -> tuple[CifarReader, SourceInfo]:
    """keys: names of the batches. Raises ConfigError when the settings do not choose one of several kinds of label."""
    candidates = [
        Candidate("column", f"{kind} of the batches", _named(numbers[:_SAMPLE], names.get(kind)), kind)
        for kind, numbers in sorted(sample.labels.items(), key=lambda item: _LABELS.index(item[0]))
    ]
    column = config.label_column
    if f"{column}_labels" in sample.labels:
        config = config.model_copy(update={"label_column": f"{column}_labels"})
    choice = choose(name, candidates, config)
    roles = roles_of([_split(key) for key in keys if _is_batch(key)], config, name)
    reader = CifarReader(choice.column, names.get(choice.column or ""), config.partition_rows, roles)
    return reader, SourceInfo("CIFAR batches", tuple(sample.labels), choice, roles)


def _named(numbers: list[int], names: tuple[str, ...] | None) -> tuple[str | None, ...]:
    known = dict(enumerate(names)) if names is not None else {number: str(number) for number in numbers}
    return tuple(known.get(number) for number in numbers)


def _split(key: str) -> str | None:
    """The split that the name of a batch says. key: its file, or file!member."""
    base = _base(key)
    return next((split for split in ("test", "val") if base.startswith(split)), "train") if _is_batch(key) else None


def _class_names(texts: Iterable[tuple[str, bytes]]) -> ClassNames:
    """The names of classes in the files beside batches."""
    found: ClassNames = {}
    for key, data in texts:
        if key.endswith(".txt"):
            lines = data.decode("utf-8", "replace").split("\n")
            found[_NAMES[_base(key)]] = tuple(line.strip() for line in lines if line.strip())
            continue
        for kind, values in _dictionary(load_plain(data)).items():
            if kind.endswith("label_names") and isinstance(values, list):
                found[kind.replace("label_names", "labels")] = tuple(_text(value) for value in values)
    return found


def _batch(name: str, data: bytes) -> Batch:
    record = _record_bytes(SourceFile(name, len(data), ""))
    return _python_batch(data) if record is None else _binary_batch(data, record)


def _binary_batch(data: bytes, record: int) -> Batch:
    kinds = _RECORDS[record]
    table = np.frombuffer(data, np.uint8).reshape(-1, record)
    return Batch(table[:, len(kinds) :], {kind: table[:, column].tolist() for column, kind in enumerate(kinds)})


def _python_batch(data: bytes) -> Batch:
    """Raises UnusableFile."""
    fields = _dictionary(load_plain(data))
    pixels = array_of(fields.get("data"))
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 2 or not _is_square(pixels.shape[1]):
        raise UnusableFile("wrong-schema", "a pickle without data, uint8 [images, 3 * side * side], as in CIFAR")
    labels: dict[str, list[int]] = {}
    for kind in _LABELS:
        if kind in fields:
            values = array_of(fields[kind])
            labels[kind] = fields[kind] if values is None else values.ravel().tolist()
            if not isinstance(labels[kind], list) or [*map(type, labels[kind])] != [int] * len(pixels):
                raise UnusableFile("wrong-schema", f"{kind} are not {len(pixels)} numbers")
    return Batch(pixels, labels)


def _is_square(values: int) -> bool:
    return values > 0 and 3 * math.isqrt(values // 3) ** 2 == values


def _dictionary(value: Any) -> dict[str, Any]:
    return {_text(key): field for key, field in value.items()} if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _base(key: str) -> str:
    return key.rpartition("/")[2].rpartition("!")[2]


def _is_batch(key: str) -> bool:
    return _BATCH.fullmatch(_base(key)) is not None


def _is_known(key: str) -> bool:
    """True for files beside batches that hold no images."""
    return _base(key) in _NAMES or _base(key) in _OTHERS


def _record_bytes(file: SourceFile) -> int | None:
    """Bytes of an image in a binary batch; None for other files."""
    if not file.key.endswith(".bin"):
        return None
    sizes = [size for size in _RECORDS if file.size and file.size % size == 0]
    return sizes[0] if sizes else None

"""Reader of WebDataset shards: tar archives in which consecutive members `key.ext` form one sample.

The label of a sample is its `.cls`, else a label field of its `.json`, else a one-line `.txt`, else its first folder.
Every image of a sample is a row, so ordinary tar archives of images work as well.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from pipeline.images.file_types import kind_of
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.sources.containers import UnusableFile
from pipeline.ingest.sources.labels import label_from_path
from pipeline.ingest.sources.source import SourceFile, SourceRow
from pipeline.ingest.sources.tar import Member, members
from pipeline.storage.store import Store

_IMAGES: Final = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "img", "image")
_JSON_LABELS: Final = ("label", "cls", "class", "class_name", "category")
_LONGEST_LABEL: Final = 100
_LONGEST_TEXT_BYTES: Final = 2**20


@dataclass(frozen=True)
class WebDatasetReader:
    """One task reads a whole archive, because a tar archive can only be read from its start."""

    max_bytes: int

    def row_ranges(self, store: Store, file: SourceFile) -> Iterator[range | None]:
        yield None

    def rows(self, store: Store, file: SourceFile, row_range: range | None) -> Iterator[SourceRow]:
        for _, sample in groupby(members(store, file, self.max_bytes), key=lambda member: _split(member.name)[0]):
            yield from _rows(file.key, sample)


def _rows(archive: str, sample: Iterator[Member]) -> Iterator[SourceRow]:
    """The rows of one sample. Only label and image members are held in memory."""
    images: list[Member] = []
    texts: dict[str, bytes] = {}
    others: list[str] = []
    broken: UnusableFile | None = None
    try:
        for member in sample:
            extension = _split(member.name)[1].rpartition(".")[2].lower()
            if extension in ("cls", "json", "txt") and isinstance(member.data, bytes):
                texts.setdefault(extension, member.data)
                others.append(member.name)
            elif isinstance(member.data, Reject) or extension in _IMAGES or _is_image_or_archive(member.data):
                images.append(member)
            else:
                others.append(member.name)
    except UnusableFile as error:
        broken = error  # raised below, so that the members before the damage are not lost
    if others and not images:
        reject = Reject("not-an-image", f"a sample without an image: {', '.join(others[:5])}")
        yield SourceRow(f"{archive}!{others[0]}", reject)
    for name, data in images:
        label = None if isinstance(data, Reject) else _label(texts, name)
        yield SourceRow(f"{archive}!{name}", data, label)
    if broken is not None:
        raise broken


def _split(name: str) -> tuple[str, str]:
    """Key and extension: the name is split at the first dot of its last part."""
    folder, slash, file = name.rpartition("/")
    stem, _, extension = file.partition(".")
    return folder + slash + stem, extension


def _is_image_or_archive(data: bytes) -> bool:
    return kind_of(data[:8192]) in ("image", "zip", "tar", "gzip", "archive", "parquet")


def _label(texts: dict[str, bytes], name: str) -> str | None:
    if found := _line(texts.get("cls", b"")):
        return found
    try:
        fields = json.loads(texts.get("json", b"{}")[:_LONGEST_TEXT_BYTES])
    except (ValueError, RecursionError):
        fields = {}
    for field in _JSON_LABELS if isinstance(fields, dict) else ():
        if isinstance(fields.get(field), str | int):
            return str(fields[field])
    return _line(texts.get("txt", b"")) or label_from_path(name)


def _line(text: bytes) -> str | None:
    """The text if it is one short line, like a label; None for a caption."""
    line = text[:_LONGEST_TEXT_BYTES].decode("utf-8", "replace").strip()
    return line if line and len(line) <= _LONGEST_LABEL and "\n" not in line else None

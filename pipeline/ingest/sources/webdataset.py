"""WebDataset shards: tar archives whose neighbouring members `key.ext` are one sample.

A sample's label is its `.cls`, else a label field of its `.json`, else a one-line `.txt`, else its first folder.
Every image of a sample is a row, so nothing is lost in archives that only look like WebDataset.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from pipeline.images.file_types import kind_of
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.sources.archive_names import label_of
from pipeline.ingest.sources.containers import Unfit
from pipeline.ingest.sources.source import SourceFile, SourceRow
from pipeline.ingest.sources.tar import Member, members
from pipeline.storage.store import Store

__all__ = ["WebDatasetReader"]

_IMAGES: Final = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "img", "image")
_JSON_LABELS: Final = ("label", "cls", "class", "class_name", "category")
_LONGEST_LABEL: Final = 100
_LONGEST_TEXT_BYTES: Final = 2**20


@dataclass(frozen=True)
class WebDatasetReader:
    """A share is a whole archive, since it can only be read from its front."""

    max_bytes: int

    def shares(self, store: Store, file: SourceFile) -> Iterator[range | None]:
        yield None

    def rows(self, store: Store, file: SourceFile, share: range | None) -> Iterator[SourceRow]:
        for _, sample in groupby(members(store, file, self.max_bytes), key=lambda member: _split(member.name)[0]):
            yield from _rows(file.key, sample)


def _rows(archive: str, sample: Iterator[Member]) -> Iterator[SourceRow]:
    """The rows of one sample; of its members only labels and images are kept."""
    images: list[Member] = []
    texts: dict[str, bytes] = {}
    others: list[str] = []
    broken: Unfit | None = None
    for member in _until_broken(sample):
        if isinstance(member, Unfit):
            broken = member
            break
        extension = _split(member.name)[1].rpartition(".")[2].lower()
        if extension in ("cls", "json", "txt") and isinstance(member.data, bytes):
            texts.setdefault(extension, member.data)
            others.append(member.name)
        elif isinstance(member.data, Reject) or extension in _IMAGES or _is_image_or_archive(member.data):
            images.append(member)
        else:
            others.append(member.name)
    if others and not images:
        refusal = Reject("not-an-image", f"a sample without an image: {', '.join(others[:5])}")
        yield SourceRow(f"{archive}!{others[0]}", refusal)
    for name, data in images:
        label = None if isinstance(data, Reject) else _label(texts, name)
        yield SourceRow(f"{archive}!{name}", data, label)
    if broken is not None:
        raise broken


def _until_broken(sample: Iterator[Member]) -> Iterator[Member | Unfit]:
    """The members; where the archive breaks the error comes as the last value, so that they are not lost with it."""
    try:
        yield from sample
    except Unfit as error:
        yield error


def _split(name: str) -> tuple[str, str]:
    """Key and extension: a name is cut at the first dot of its last part."""
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
    return _line(texts.get("txt", b"")) or label_of(name)


def _line(text: bytes) -> str | None:
    """The text if it is one short line, as a label is; a caption is none."""
    line = text[:_LONGEST_TEXT_BYTES].decode("utf-8", "replace").strip()
    return line if line and len(line) <= _LONGEST_LABEL and "\n" not in line else None

"""Reader of WebDataset shards: tar archives in which consecutive members `key.ext` form one sample.

The label of a sample is its `.cls`, a label field of its `.json`, a one-line `.txt` that looks like a class, or its
folder: webdataset_survey.py decides for the whole source. Every image of a sample is a row, so ordinary tar archives of
images work as well.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Final, NamedTuple

from pipeline.images.file_types import kind_of
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.sources.containers import UnusableFile
from pipeline.ingest.sources.label_columns import label_like
from pipeline.ingest.sources.labels import label_from_value
from pipeline.ingest.sources.path_labels import BY_FOLDER, PathRule, is_label_file, label_table
from pipeline.ingest.sources.source import SourceFile, SourceRow
from pipeline.ingest.sources.tar import Member, members
from pipeline.storage.store import Store

_IMAGES: Final = ("png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "pbm", "pnm", "img", "image")
SIDECARS: Final = ("cls", "json", "txt")
_LONGEST_LABEL: Final = 100
_LONGEST_TEXT_BYTES: Final = 2**20


class TarRule(NamedTuple):
    """How the samples of a source get their labels. path: for folders, label files and splits.

    whole_stem: the key of a sample is its name up to the last dot, where up to the first dot would join several.
    """

    path: PathRule = BY_FOLDER
    whole_stem: bool = False

    def key(self, name: str) -> str:
        folder, slash, file = name.rpartition("/")
        return folder + slash + (stem_of(file) if self.whole_stem else file.partition(".")[0])


_PLAIN: Final = TarRule()


@dataclass(frozen=True)
class WebDatasetReader:
    """One task reads a whole archive, because a tar archive can only be read from its start."""

    max_bytes: int
    rule: TarRule = _PLAIN

    def row_ranges(self, store: Store, file: SourceFile) -> Iterator[range | None]:
        yield None

    def rows(self, store: Store, file: SourceFile, row_range: range | None) -> Iterator[SourceRow]:
        rule, table = self.rule, self._table(store, file)
        found = (member for member in members(store, file, self.max_bytes) if not is_label_file(member.name))
        for _, sample in groupby(found, key=lambda member: rule.key(member.name)):
            for row in _rows(file.key, sample, rule, table):
                place = rule.path.place(row.source.partition("!")[2], table)
                if not place.out:
                    yield row._replace(split=place.split)

    def _table(self, store: Store, file: SourceFile) -> dict[str, str | None] | None:
        """Labels by name, where label files give them: one more pass over the archive."""
        if self.rule.path.source not in ("dataset.json", "metadata"):
            return None
        data = {m.name: m.data for m in members(store, file, self.max_bytes, is_label_file) if is_label_file(m.name)}
        texts = {name: found for name, found in data.items() if isinstance(found, bytes)}
        return label_table(texts, self.rule.path, texts.__getitem__)


class Sample:
    """The members of one sample. Only label and image members are held in memory."""

    def __init__(self) -> None:
        self.images: list[Member] = []
        self.others: list[str] = []
        self._texts: dict[str, dict[str, bytes]] = {extension: {} for extension in SIDECARS}

    def add(self, member: Member) -> None:
        extension = extension_of(member.name)
        if extension in SIDECARS and isinstance(member.data, bytes):
            self._texts[extension][stem_of(member.name)] = member.data
            self.others.append(member.name)
        elif isinstance(member.data, Reject) or extension in _IMAGES or _is_image_or_archive(member.data):
            self.images.append(member)
        else:
            self.others.append(member.name)

    def text(self, extension: str, image: str) -> bytes:
        """The text that belongs to an image. Raises ValueError where the sample has several and none has its name."""
        texts = self._texts[extension]
        if len(texts) > 1:
            if stem_of(image) not in texts:
                raise ValueError(f"the sample has {len(texts)} files .{extension}, none of them named like the image")
            return texts[stem_of(image)]
        return next(iter(texts.values()), b"")

    def label(self, image: str, rule: PathRule, table: dict[str, str | None] | None) -> str | None:
        """Raises ValueError where the label is ambiguous."""
        if rule.source == "cls":
            return line_of(self.text("cls", image))
        if rule.source == "text":
            return line_of(self.text("txt", image))
        if rule.source == "json":
            return label_from_value(json_labels(self.text("json", image)).get(rule.column or ""))
        return rule.place(image, table).label


def _rows(
    archive: str, members: Iterator[Member], rule: TarRule, table: dict[str, str | None] | None
) -> Iterator[SourceRow]:
    """The rows of one sample."""
    sample, broken = Sample(), None
    try:
        for member in members:
            sample.add(member)
    except UnusableFile as error:
        broken = error  # raised below, so that the members before the damage are not lost
    if sample.others and not sample.images:
        reject = Reject("not-an-image", f"a sample without an image: {', '.join(sample.others[:5])}")
        yield SourceRow(f"{archive}!{sample.others[0]}", reject)
    for name, data in sample.images:
        row = SourceRow(f"{archive}!{name}", data)
        try:
            yield row if isinstance(data, Reject) else row._replace(label=sample.label(name, rule.path, table))
        except ValueError as error:
            yield row._replace(image=Reject("unknown-label", str(error)))
    if broken is not None:
        raise broken


def extension_of(name: str) -> str:
    """The part after the last dot, in lower case."""
    return name.rpartition("/")[2].rpartition(".")[2].lower()


def stem_of(name: str) -> str:
    """The name up to the last dot of its last part."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + (file.rpartition(".")[0] or file)


def is_image_name(name: str) -> bool:
    """Whether the extension is that of an image."""
    return extension_of(name) in _IMAGES


def _is_image_or_archive(data: bytes) -> bool:
    return kind_of(data[:8192]) in ("image", "zip", "tar", "gzip", "archive", "parquet")


def json_labels(text: bytes) -> dict[str, Any]:
    """The fields of a JSON object that look like labels, by name; empty where the text is no object."""
    try:
        fields = json.loads(text[:_LONGEST_TEXT_BYTES] or b"{}")
    except (ValueError, RecursionError):
        return {}
    if not isinstance(fields, dict):
        return {}
    found = {name: fields[name] for name in label_like(list(fields))}
    return {name: value for name, value in found.items() if isinstance(value, str | int | float)}


def line_of(text: bytes) -> str | None:
    """The text if it is one short line, like a label; None for a caption."""
    line = text[:_LONGEST_TEXT_BYTES].decode("utf-8", "replace").strip()
    return line if line and len(line) <= _LONGEST_LABEL and "\n" not in line else None

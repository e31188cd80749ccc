"""Reader of zip archives of images. Labels and splits come from folders or a label file (path_labels.py).

A folder that contains all members does not count.
"""

import lzma
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import IO, Final

from pipeline.config.ingest import IngestConfig
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.sources.archive_names import is_hidden, unsafe_name
from pipeline.ingest.sources.containers import UnusableFile
from pipeline.ingest.sources.path_labels import (
    BY_FOLDER,
    MAX_LABEL_BYTES,
    PathRule,
    PathSurvey,
    Survey,
    common_root,
    is_label_file,
    label_table,
)
from pipeline.ingest.sources.read import open_file
from pipeline.ingest.sources.source import SourceFile, SourceRow, chunk_rows
from pipeline.storage.store import Store

_ENCRYPTED: Final = 0x1
_BAD: Final = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError, ValueError)
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)  # LZMA can take unlimited memory
_RULES: Final[dict[object, tuple[PathRule, dict[str, str | None] | None]]] = {}
"""The rule of the archive that this process read last, because an archive has many ranges and large label files."""


@dataclass(frozen=True)
class ZipReader:
    """A row for each member that is no folder and not hidden. Ranges of rows count entries of the zip directory."""

    partition_rows: int
    max_bytes: int
    rule: PathRule = BY_FOLDER

    def row_ranges(self, store: Store, file: SourceFile) -> Iterator[range | None]:
        with open_zip(store, file) as archive:
            count = len(archive.infolist())
        yield from chunk_rows(count, self.partition_rows)

    def rows(self, store: Store, file: SourceFile, row_range: range | None) -> Iterator[SourceRow]:
        with open_zip(store, file) as archive:
            members = archive.infolist()
            rule, table = self._rule(store, file, archive, members)
            for member in _files(members if row_range is None else members[row_range.start : row_range.stop]):
                place = rule.place(member.filename, table)
                if is_label_file(member.filename) or place.out:
                    continue
                reject = unsafe_name(member.filename) or self._reject(member)
                image = reject or self._read(archive, member)
                yield SourceRow(f"{file.key}!{member.filename}", image, None if reject else place.label, place.split)

    def _rule(
        self, store: Store, file: SourceFile, archive: zipfile.ZipFile, members: list[zipfile.ZipInfo]
    ) -> tuple[PathRule, dict[str, str | None] | None]:
        """The rule with the root of this archive, and the labels of its label files."""
        key = (store.location(file.key), file.version, self.rule)
        if key not in _RULES:
            names = [member.filename for member in _files(members)]
            rule = replace(self.rule, root=common_root(names))
            _RULES.clear()  # a task reads ranges of one archive
            _RULES[key] = (rule, label_table(names, rule, lambda name: _label_file(archive, name)))
        return _RULES[key]

    def survey(self, store: Store, file: SourceFile, config: IngestConfig) -> Survey:
        """Labels and splits, from the directory and the label files. Raises ConfigError, UnusableFile, StorageError."""
        survey = PathSurvey(config)
        with open_zip(store, file) as archive:
            names = [member.filename for member in _files(archive.infolist()) if not unsafe_name(member.filename)]
            for name in names:
                survey.add(name)
            where = store.location(file.key)
            return survey.finish(where, "zip of images", common_root(names), lambda name: _label_file(archive, name))

    def _reject(self, member: zipfile.ZipInfo) -> Reject | None:
        mode = member.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            return Reject("unsafe-member", "a link or device, not a file")
        if member.flag_bits & _ENCRYPTED:
            return Reject("unreadable", "it is encrypted")
        if member.compress_type not in _METHODS:
            return Reject("unreadable", f"compression method {member.compress_type} is not stored, deflate or bzip2")
        if member.file_size > self.max_bytes:
            return Reject("too-many-bytes", f"{member.file_size} bytes are more than {self.max_bytes}")
        return None

    def _read(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes | Reject:
        try:
            with archive.open(member) as file:
                data = file.read(self.max_bytes + 1)  # the directory may state a wrong size
        except (*_BAD, OSError) as error:
            return Reject("damaged-container", f"the member cannot be unpacked: {error}")
        if len(data) > self.max_bytes:
            return Reject("too-many-bytes", f"more than {self.max_bytes} bytes, whatever the archive says")
        return data


@contextmanager
def open_zip(store: Store, file: SourceFile) -> Iterator[zipfile.ZipFile]:
    """The archive with its directory read. Raises UnusableFile when it has none, StorageError."""
    raw: IO[bytes] = open_file(store, file)
    try:
        archive = zipfile.ZipFile(raw)
    except (*_BAD, OSError) as error:
        raise UnusableFile("damaged-container", f"no whole zip archive: {error}") from error
    with archive:
        yield archive


def _label_file(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        with archive.open(name) as file:
            return file.read(MAX_LABEL_BYTES)
    except (*_BAD, KeyError, OSError):
        return b""


def _files(members: list[zipfile.ZipInfo]) -> Iterator[zipfile.ZipInfo]:
    for member in members:
        member.filename = member.filename.removeprefix("./")
        if not member.filename.endswith("/") and not is_hidden(member.filename):
            yield member

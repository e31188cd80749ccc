"""Labels and splits of images that have a path: in a folder, a zip or a tar archive.

The candidates are the folders, dataset.json (StyleGAN, EDM), and metadata.jsonl or metadata.csv (Hugging Face's
imagefolder), whose file names count from the folder that holds them. A first folder that is a split is no class.
"""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pipeline.config.ingest import IngestConfig, LabelSource
from pipeline.ingest.sources.label_columns import LABEL_NAMES, are_numbers, label_like, number_of
from pipeline.ingest.sources.labels import Candidate, SourceInfo, choose, class_names, label_from_path, label_from_value
from pipeline.ingest.sources.splits import Roles, is_split, named_split, roles_of

Read = Callable[[str], bytes]
"""Reads a file beside the images by name."""

MAX_LABEL_BYTES: Final = 2**28
_SAMPLE: Final = 10_000
_FILES: Final[dict[str, LabelSource]] = {
    "dataset.json": "dataset.json",
    "metadata.jsonl": "metadata",
    "metadata.csv": "metadata",
}
_IMAGE: Final = re.compile(r"\.(png|jpe?g|webp|gif|bmp|tiff?|p[pgbn]m|avif|jp2|jxl|img|image)$|(^|/)[^./]+$", re.I)
_NUMBERED: Final = re.compile(r"\d{5}")
Table = dict[str, dict[str, str | None]]
"""Labels by column, then by name of the image."""


class Place(NamedTuple):
    """Where an image belongs. split: None where its content decides. out: it is in a split that is left out."""

    label: str | None
    split: str | None = None
    out: bool = False


@dataclass(frozen=True)
class PathRule:
    """How a path gives label and split. A small value for tasks. root: folder that contains everything."""

    source: LabelSource = "folders"
    column: str | None = None
    roles: Roles = ()
    root: str = ""

    def place(self, name: str, table: dict[str, str | None] | None = None) -> Place:
        """table: the labels of `label_table`, by name."""
        inner = name.removeprefix(self.root)
        split, inside, below = inner.partition("/")
        role = dict(self.roles).get(split) if inside else None
        path = below if role is not None else inner
        label = label_from_path(path) if self.source == "folders" else (table or {}).get(name)
        if role is None:
            return Place(label)
        return Place(label, named_split(role, self.roles), role == "out")


BY_FOLDER: Final = PathRule()


class Survey(NamedTuple):
    """The result of `PathSurvey.finish`. table: labels by name, where a file gives them."""

    rule: PathRule
    info: SourceInfo
    classes: tuple[str, ...] | None
    table: dict[str, str | None] | None


class PathSurvey:
    """Collects the names of a source, then decides on labels and splits. Holds folders and a sample of names."""

    def __init__(self, config: IngestConfig, sample: int = _SAMPLE) -> None:
        self.label_files: list[str] = []
        self.images: list[str] = []
        self._config, self._sample = config, sample
        self._folders: Counter[tuple[str, ...]] = Counter()

    def add(self, name: str) -> None:
        if is_label_file(name):
            self.label_files.append(name)
            return
        if not _IMAGE.search(name):
            return
        parts = name.split("/")
        self._folders[tuple(parts[:-1][:3])] += 1
        if len(self.images) < self._sample:
            self.images.append(name)

    def finish(self, where: str, kind: str, root: str, read: Read, more: Iterable[Candidate] = ()) -> Survey:
        """more: candidates of another kind. Raises ConfigError for candidates that disagree."""
        depth = 1 if root else 0
        firsts = {parts[depth] if len(parts) > depth else None for parts in self._folders}
        roles = roles_of(firsts, self._config, where)
        folders = PathRule("folders", None, roles, root)
        tables = {file: _read_table(file, read(file)) for file in self.label_files}
        candidates = [*self._from_files(tables), *more]
        candidates += self._from_folders(folders, any(each.source == "dataset.json" for each in candidates))
        choice = choose(where, candidates, self._config)
        rule = PathRule(choice.source, choice.column, roles, root)
        table = _joined(tables, rule) if choice.source in ("dataset.json", "metadata") else None
        info = SourceInfo(kind, (), choice, roles)
        return Survey(rule, info, self._classes(rule, table), table)

    def _classes(self, rule: PathRule, table: dict[str, str | None] | None) -> tuple[str, ...] | None:
        if table is not None:
            return class_names({label for label in table.values() if label is not None})
        if rule.source != "folders":
            return None
        labels = {rule.place("/".join((*parts, "x"))).label for parts in self._folders}
        return tuple(sorted(label for label in labels if label is not None)) or None

    def _from_files(self, tables: dict[str, Table]) -> list[Candidate]:
        found: dict[tuple[LabelSource, str | None], None] = {}
        for file, table in tables.items():
            found |= dict.fromkeys((_FILES[_base(file)], column or None) for column in table)
        candidates = []
        for source, column in found:
            names = [_base(file) for file in tables if _FILES[_base(file)] == source]
            labels = _joined(tables, PathRule(source, column))
            name = names[0] if column is None else f"{names[0]}, field '{column}'"
            candidates.append(Candidate(source, name, tuple(labels.get(image) for image in self.images), column))
        order = {name: place for place, name in enumerate(LABEL_NAMES)}
        return sorted(candidates, key=lambda each: order.get(each.column or "", len(order)))

    def _from_folders(self, rule: PathRule, with_dataset_json: bool) -> list[Candidate]:
        values = tuple(rule.place(image).label for image in self.images)
        names = {value for value in values if value is not None}
        doubt = None
        if names and all(_NUMBERED.fullmatch(name) for name in names):
            if with_dataset_json:
                return []
            doubt = "folders of five digits, into which StyleGAN's and FFHQ's tools divide their files"
        return [Candidate("folders", "folders", values, None, doubt)] if names else []


def common_root(names: Iterable[str]) -> str:
    """The folder that contains all names, with a slash, such as "photos/"; else "". The folder of a split is none."""
    found: set[str] = set()
    for name in names:
        root, inside, _ = name.partition("/")
        found.add(root)
        if not inside or len(found) > 1:
            return ""
    return f"{root}/" if found and not is_split(root := found.pop()) else ""


def is_label_file(name: str) -> bool:
    """Whether the file holds the labels of the images beside it, so it is no image itself."""
    return _base(name) in _FILES


def label_table(names: Iterable[str], rule: PathRule, read: Read) -> dict[str, str | None] | None:
    """Labels by name, out of the label files among these names; None where no file gives labels."""
    if rule.source not in ("dataset.json", "metadata"):
        return None
    return _joined({name: _read_table(name, read(name)) for name in names if is_label_file(name)}, rule)


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _joined(tables: dict[str, Table], rule: PathRule) -> dict[str, str | None]:
    joined: dict[str, str | None] = {}
    for file, table in tables.items():
        if _FILES[_base(file)] == rule.source:
            folder = file[: -len(_base(file))]
            joined |= {folder + name: label for name, label in table.get(rule.column or "", {}).items()}
    return joined


def _read_table(name: str, data: bytes) -> Table:
    """Empty where the file holds no labels. Damaged lines are left out: their images have no label, which is noted."""
    text = data.decode("utf-8-sig", "replace")
    if _base(name) == "dataset.json":
        return _from_dataset_json(text)
    rows = list(csv.DictReader(io.StringIO(text))) if name.endswith(".csv") else list(_json_rows(text))
    columns = dict.fromkeys(column for row in rows for column in row if isinstance(column, str))
    found: Table = {}
    for column in label_like(list(columns)):
        values = [row.get(column) for row in rows]
        cells = list(map(number_of, values)) if name.endswith(".csv") and are_numbers(values) else values
        names = [row.get("file_name") for row in rows]
        found[column] = {
            str(file).removeprefix("./"): label_from_value(cell)
            for file, cell in zip(names, cells, strict=True)
            if file and isinstance(cell, str | int | float | None)
        }
    return found


def _json_rows(text: str) -> Iterable[dict[str, Any]]:
    for line in text.splitlines():
        try:
            row = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def _from_dataset_json(text: str) -> Table:
    try:
        pairs = json.loads(text)["labels"]
        pairs = pairs.items() if isinstance(pairs, dict) else pairs or []
        return {"": {str(name): label_from_value(_number(label)) for name, label in pairs}}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}


def _number(label: Any) -> Any:
    """The class of a one-hot vector. Raises ValueError for other vectors, which are no classes."""
    if not isinstance(label, list):
        return label
    if sorted(label) != [0] * (len(label) - 1) + [1]:
        raise ValueError("a vector")
    return label.index(1)

"""Decide where the labels of a source come from, and turn labels into numbered classes.

Every kind of source lists its candidates, with the labels that each gives to a sample of the images:

    dataset.json       {"labels": [[name, number], ...]} of StyleGAN and EDM              path_labels.py
    metadata           metadata.jsonl or metadata.csv beside the images (Hugging Face)    path_labels.py
    column             a label column of Parquet or of a list of images                   columns.py
    cls, json, text    files of a WebDataset sample                                       webdataset.py
    folders            the folder of the image                                            path_labels.py
    arrays             the labels of npz, IDX and the built-in digits                     npz.py, idx.py, digits.py

`choose` takes the only candidate, or the first of several that agree; it refuses candidates that disagree. The setting
ingest.label_source chooses one. `ingest.label_map` then renames labels (label_map.py). A row without a label is stored
with a null label.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from pipeline.config.ingest import IngestConfig, LabelSource
from pipeline.errors import ConfigError
from pipeline.ingest.sources.splits import Roles


class Candidate(NamedTuple):
    """A possible source of labels. values: labels of a sample of the images, the same sample for each candidate.

    doubt: why the candidate is used only when the settings name it, such as captions.
    """

    source: LabelSource
    name: str
    values: tuple[str | None, ...]
    column: str | None = None
    doubt: str | None = None

    @property
    def flag(self) -> str:
        """The flags that choose this candidate."""
        column = f" --ingest.label_column {self.column}" if self.column else ""
        return column.strip() if self.source == "column" else f"--ingest.label_source {self.source}{column}"


class LabelChoice(NamedTuple):
    """The candidate that gives the labels (None: no labels). notes: warnings about candidates that are not used."""

    candidate: Candidate | None = None
    notes: tuple[str, ...] = ()

    @property
    def source(self) -> LabelSource:
        return "none" if self.candidate is None else self.candidate.source

    @property
    def column(self) -> str | None:
        return None if self.candidate is None else self.candidate.column

    @property
    def name(self) -> str | None:
        return None if self.candidate is None else self.candidate.name

    @property
    def values(self) -> tuple[str | None, ...]:
        return () if self.candidate is None else self.candidate.values


NO_LABELS: Final = LabelChoice()


@dataclass(frozen=True)
class SourceInfo:
    """What a source was found to be, for summaries and `--dry-run`.

    splits: what becomes of each named split: "train", "heldout" or "out" (left out). left_out: files beside the images
    that are no images and no rejects.
    """

    kind: str = ""
    columns: tuple[str, ...] = ()
    labels: LabelChoice = NO_LABELS
    splits: Roles = ()
    left_out: tuple[str, ...] = ()

    @property
    def has_named_splits(self) -> bool:
        """Whether a named split is held out, so that the content of the images does not decide."""
        return any(role == "heldout" for _, role in self.splits)

    @property
    def notes(self) -> list[str]:
        """Warnings: what looks like labels, splits or images and is not used."""
        notes = list(self.labels.notes)
        out = [name for name, role in self.splits if role == "out"]
        if out:
            used = {name: "train" if role == "out" else role for name, role in self.splits}
            notes.append(f"split {', '.join(out)} is left out: --ingest.splits '{json.dumps(used)}' would train on it")
        if self.left_out:
            more = f" and {len(self.left_out) - 5} more" if len(self.left_out) > 5 else ""
            notes.append(f"left out, because they hold no images: {', '.join(self.left_out[:5])}{more}")
        return notes


NO_INFO: Final = SourceInfo()


def choose(where: str, candidates: Sequence[Candidate], config: IngestConfig) -> LabelChoice:
    """The candidate to use. Raises ConfigError when the settings name none of them, or when several disagree."""
    wanted, column = config.label_source, config.label_column
    usable = [each for each in candidates if any(value is not None for value in each.values)]
    if wanted == "none":
        return LabelChoice()
    named = [each for each in (candidates if wanted != "auto" or column else usable) if wanted in ("auto", each.source)]
    if column is not None:
        named = [each for each in named if each.column == column]
    if (wanted != "auto" or column is not None) and not named:
        asked = f"ingest.label_column={column}" if column is not None else f"ingest.label_source={wanted}"
        there = "; ".join(f"{each.name} ({each.flag})" for each in candidates) or "nothing that looks like labels"
        raise ConfigError(f"{asked}: {where} has no such labels. It has {there}")
    sure = [each for each in named if each.doubt is None] if wanted == "auto" and column is None else named
    first = sure[0] if sure else None
    for other in sure[1:]:
        assert first is not None
        if not _agree(first, other):
            choices = " or ".join(f"{each.name} ({each.flag})" for each in sure)
            raise ConfigError(
                f"{where} has several labels that disagree: choose {choices}, or --ingest.label_source none"
            )
    notes = [_unused(each) for each in usable if each is not first]
    if first is not None and (missing := sum(value is None for value in first.values)):
        notes.append(f"{missing:,} of {len(first.values):,} images have no label in {first.name}")
    return LabelChoice(first, tuple(notes) if wanted == "auto" else ())


def _unused(candidate: Candidate) -> str:
    doubt = f" ({candidate.doubt})" if candidate.doubt else ""
    return f"labels could also come from {candidate.name}{doubt}: {candidate.flag} would use them"


def _agree(one: Candidate, other: Candidate) -> bool:
    """Whether both divide the sample into the same classes, whatever their names."""
    pairs = {(a, b) for a, b in zip(one.values, other.values, strict=True) if a is not None and b is not None}
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})


def looks_like_classes(texts: Sequence[str | None]) -> bool:
    """Whether texts of images are class names, not captions: at most half as many different ones as images have one."""
    found = Counter(text for text in texts if text is not None)
    return 0 < len(found) * 2 <= found.total()


def label_from_path(path: str) -> str | None:
    """The first folder of a relative path; None for a file without a folder."""
    folder, inside, _ = path.partition("/")
    return folder if inside else None


def label_from_value(value: Any, names: tuple[str, ...] | None = None) -> str | None:
    """The label of a table cell. names: class names of integers, if the table has them. Negative means unlabelled.

    Whole numbers that are stored as decimals (pandas does so in columns with gaps) are integers, NaN is no label.
    Raises ValueError for a number without a name.
    """
    if isinstance(value, float):
        if value != value:
            return None
        value = int(value) if value.is_integer() else value
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            return None
        if names is None:
            return str(value)
        if value >= len(names):
            raise ValueError(f"label {value} is beyond the {len(names)} class names {', '.join(names[:5])}...")
        return names[value]
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return None if value is None or value == "" else str(value)


def class_names(labels: set[str], known: tuple[str, ...] | None = None) -> tuple[str, ...] | None:
    """Class names in the order of their numbers: the known ones (`Source.classes`), then the other labels, sorted.

    Without known ones, labels that are integers keep their number. None when there are no labels.
    """
    if known is not None:
        return (*known, *sorted(labels - set(known)))
    if not labels:
        return None
    if all(label.isascii() and label.isdigit() and str(int(label)) == label for label in labels):
        largest = max(map(int, labels))
        if largest < max(1000, 10 * len(labels)):  # larger ones are names that consist of digits
            return tuple(str(number) for number in range(largest + 1))
    return tuple(sorted(labels))

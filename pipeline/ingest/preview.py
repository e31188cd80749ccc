"""What a source holds, for the summary of an ingest and for `--dry-run`, which reads no more than a few images."""

from collections import Counter
from itertools import islice
from typing import Any, Final

from pipeline.images.reject_reasons import Reject
from pipeline.ingest.manifest import DatasetManifest
from pipeline.ingest.sources.source import Source, SourceRow

_EXAMPLES: Final = 10
_MOST_CLASSES: Final = 20


def labels_text(manifest: DatasetManifest) -> str:
    """Labels and splits in a few words: "labels: 3 classes from dataset.json; splits: train -> train"."""
    count = len(manifest.classes or ())
    origin = f" from {manifest.label_source}" if manifest.label_source else ""
    labels = f"labels: {count:,} {'class' if count == 1 else 'classes'}{origin}" if count else "no labels"
    return labels + splits_text(manifest.splits)


def splits_text(splits: tuple[tuple[str, str], ...]) -> str:
    """What becomes of the named splits; empty where the content decides."""
    if not any(role != "train" for _, role in splits):
        return ""
    words = {"train": "training", "heldout": "held-out", "out": "left out"}
    return "; splits: " + ", ".join(f"{name} {words[role]}" for name, role in splits)


def describe(source: Source, action: str) -> dict[str, Any]:
    """The result of a dry run: what was found and ten rows, before anything is read in full."""
    info = source.info
    values = [value for value in info.labels.values if value is not None]
    counts = Counter(values)
    sample = f" (of the first {len(info.labels.values):,} images)" if info.labels.values else ""
    shown = ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())[:_MOST_CLASSES])
    more = f" and {len(counts) - _MOST_CLASSES} more" if len(counts) > _MOST_CLASSES else ""
    rows = [_example(row) for row in _first_rows(source)]
    lines = [
        action,
        f"source: {info.kind or 'images'}",
        *([f"columns: {', '.join(info.columns)}"] if info.columns else []),
        f"labels: {f'from {info.labels.name}' if info.labels.name else 'none'}{splits_text(info.splits)}",
        *([f"classes{sample}: {shown}{more}"] if counts else []),
        *(f"warning: {note}" for note in info.notes),
        *(
            f"  {row['source']}  label {row['label']}  split {row['split'] or 'by content'}  {row['image']}"
            for row in rows
        ),
    ]
    return {
        "summary": "\n".join(lines),
        "kind": info.kind,
        "columns": list(info.columns),
        "label_source": info.labels.name,
        "classes": dict(sorted(counts.items())),
        "splits": dict(info.splits),
        "rows": rows,
    }


def _first_rows(source: Source) -> list[SourceRow]:
    rows = (row for partition in source.partitions() for row in source.rows(partition))
    return list(islice(rows, _EXAMPLES))


def _example(row: SourceRow) -> dict[str, Any]:
    image = row.image
    if isinstance(image, Reject):
        text = f"{image.reason}: {image.detail}"
    else:
        text = f"{len(image):,} bytes" if isinstance(image, bytes) else f"pixels {list(image.shape)}"
    return {"source": row.source, "label": row.label, "split": row.split, "image": text}

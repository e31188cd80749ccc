"""Where a class label comes from: one rule for each kind of source, and how labels become numbered classes.

    folder, zip        the first folder of the path, below a folder that holds everything        `label_from_path`
    Parquet, uri list  the label column, by setting, type or usual name                          columns.py
    WebDataset tar     `.cls`, else a field of `.json`, else a one-line `.txt`, else the path    webdataset.py
    IDX, npz           the label file or array that belongs to the images                        idx.py, npz.py
    digits             scikit-learn's targets                                                    digits.py
    dataset            the label column and the classes of its manifest                          dataset.py

`ingest.label_map` then renames labels (label_map.py). A row without a label is stored with a null label.
"""

from typing import Any


def label_from_path(path: str) -> str | None:
    """The first folder of a relative path; None for a file without a folder."""
    folder, inside, _ = path.partition("/")
    return folder if inside else None


def label_from_value(value: Any, names: tuple[str, ...] | None = None) -> str | None:
    """The label of a table cell. names: class names of integers, if the table has them. Negative means unlabelled."""
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            return None
        return names[value] if names is not None and value < len(names) else str(value)
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

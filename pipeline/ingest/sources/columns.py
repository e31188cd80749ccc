"""Find the image and label columns of a table: by setting, else by type, else by usual name.

`label_columns` lists the columns that look like labels. `open_container.py` and `uri_list.py` choose one of them, and
the tasks get it as the setting ingest.label_column.
"""

import json
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.types as types

from pipeline.config.ingest import IngestConfig
from pipeline.ingest.sources.containers import UnusableFile
from pipeline.ingest.sources.image_cells import IMAGE_NAMES, image_candidates
from pipeline.ingest.sources.label_columns import label_like, split_column

_URI_NAMES: Final = (
    *("uri", "url", "path", "file", "file_name", "filename", "image", "key", "location"),
    *("image_path", "img_path", "file_path", "filepath", "image_file", "image_name", "image_url", "img"),
)


class ImageColumns(NamedTuple):
    """names: class names of integer labels. split: names splits."""

    image: str
    label: str | None
    names: tuple[str, ...] | None
    split: str | None = None


def image_columns(schema: pa.Schema, config: IngestConfig) -> ImageColumns:
    """Raises UnusableFile ("wrong-schema") naming the columns when none holds images, or several may."""
    image = _chosen(config.image_column, image_candidates(schema, config.image_column), IMAGE_NAMES)
    if image is None:
        wanted = "holds images" if config.image_column is None else f"is '{config.image_column}' and holds images"
        seen = ", ".join(f"{field.name}: {field.type}" for field in list(schema)[:20]) or "none"
        raise UnusableFile(
            "wrong-schema",
            f"no column {wanted} (binary, a struct with bytes, or lists of these or of pixels); the columns are {seen}",
        )
    labels = [field.name for field in schema if _is_label(field.type) and field.name != image]
    if config.label_column is not None and config.label_column not in labels:
        raise UnusableFile("wrong-schema", f"no column '{config.label_column}' with integer or text labels")
    names = _classes(schema).get(config.label_column or "")
    texts = [field.name for field in schema if _is_text(field.type)]
    split = split_column(texts) if config.splits != "none" else None
    return ImageColumns(image, config.label_column, names, split)


def label_columns(schema: pa.Schema, config: IngestConfig) -> dict[str, tuple[str, ...] | None]:
    """The columns that look like labels, usual names first, and the one in the settings, with names of the classes."""
    classes = _classes(schema)
    labels = [field.name for field in schema if _is_label(field.type)]
    found = dict.fromkeys([*label_like(labels), *(name for name in classes if name in labels)])
    if config.label_column in labels:
        found[str(config.label_column)] = None
    return {name: classes.get(name) for name in found}


def uri_column(texts: list[str], config: IngestConfig) -> str | None:
    """The column of the URIs of a list of images, among the columns of text."""
    return _named(config.image_column, texts, _URI_NAMES)


def _named(wanted: str | None, names: list[str], usual: tuple[str, ...]) -> str | None:
    """The column named in the settings, if it exists; without a setting the first one with a usual name."""
    if wanted is not None:
        return wanted if wanted in names else None
    lower = {name.strip().lower(): name for name in names}
    return next((lower[name] for name in usual if name in lower), None)


def _chosen(wanted: str | None, candidates: list[str], names: tuple[str, ...]) -> str | None:
    if wanted is not None:
        return wanted if wanted in candidates else None
    if len(candidates) == 1:
        return candidates[0]
    return next((name for name in names if name in candidates), None)


def _is_label(kind: pa.DataType) -> bool:
    if types.is_dictionary(kind):
        return _is_label(kind.value_type)
    return bool(_is_text(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def _is_text(kind: pa.DataType) -> bool:
    if types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _classes(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """The class names of the columns that Hugging Face's features declare as ClassLabel."""
    features = _features(schema)
    return {name: tuple(map(str, feature["names"])) for name, feature in features.items() if _is_class(feature)}


def _is_class(feature: Any) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)


def _features(schema: pa.Schema) -> dict[str, Any]:
    """The Hugging Face features in the schema's metadata."""
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}

"""Find the image and label columns of a table: by setting, else by type, else by usual name."""

import json
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.types as types

from pipeline.config.ingest import IngestConfig
from pipeline.ingest.sources.containers import UnusableFile

_IMAGE_NAMES: Final = ("image", "img", "bytes", "data", "content", "image_bytes", "png", "jpg", "jpeg")
_LABEL_NAMES: Final = ("label", "labels", "class", "cls", "category", "class_name", "target", "y")
_URI_NAMES: Final = ("uri", "url", "path", "file", "file_name", "filename", "image", "key", "location")


class ImageColumns(NamedTuple):
    """nested: images are the field `bytes` of a struct. names: class names of integer labels."""

    image: str
    nested: bool
    label: str | None
    names: tuple[str, ...] | None


class UriColumns(NamedTuple):
    uri: str
    label: str | None


def image_columns(schema: pa.Schema, config: IngestConfig) -> ImageColumns:
    """Raises UnusableFile ("wrong-schema") naming the columns when none holds images, or several may."""
    candidates = [field.name for field in schema if _is_binary(field.type) or _is_nested(field.type)]
    image = _chosen(config.image_column, candidates, _IMAGE_NAMES)
    if image is None:
        wanted = "holds images" if config.image_column is None else f"is '{config.image_column}' and holds images"
        seen = ", ".join(f"{field.name}: {field.type}" for field in list(schema)[:20]) or "none"
        raise UnusableFile(
            "wrong-schema", f"no column {wanted} (binary, or a struct with bytes); the columns are {seen}"
        )
    features = _features(schema)
    classes = {name: tuple(map(str, feature["names"])) for name, feature in features.items() if _is_class(feature)}
    labels = [field.name for field in schema if _is_label(field.type) and field.name != image]
    if config.label_column is not None and config.label_column not in labels:
        raise UnusableFile("wrong-schema", f"no column '{config.label_column}' with integer or text labels")
    label = config.label_column or (next(iter(classes)) if len(classes) == 1 else None)
    label = label or next((name for name in _LABEL_NAMES if name in labels), None)
    return ImageColumns(image, _is_nested(schema.field(image).type), label, classes.get(label or ""))


def uri_columns(texts: list[str], names: list[str], config: IngestConfig) -> UriColumns | None:
    """The columns of a list of images. texts: names of text columns, one of which must hold the URIs (else None)."""
    uri = _named(config.image_column, texts, _URI_NAMES)
    return None if uri is None else UriColumns(uri, _named(config.label_column, names, _LABEL_NAMES))


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


def _is_binary(kind: pa.DataType) -> bool:
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _is_nested(kind: pa.DataType) -> bool:
    index = kind.get_field_index("bytes") if types.is_struct(kind) else -1
    return index >= 0 and _is_binary(kind.field(index).type)


def _is_label(kind: pa.DataType) -> bool:
    if types.is_dictionary(kind):
        return _is_label(kind.value_type)
    return bool(types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind))


def _is_class(feature: Any) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and isinstance(feature.get("names"), list)


def _features(schema: pa.Schema) -> dict[str, Any]:
    """The Hugging Face features in the schema's metadata."""
    try:
        found = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}

"""Base classes of configuration sections and manifests: frozen pydantic models with a sha256 digest."""

import hashlib
import json
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, SerializationInfo, SerializerFunctionWrapHandler, model_serializer

ALL_FIELDS = {"all_fields": True}
"""Serialisation context: `model_dump(mode="json", context=ALL_FIELDS)` also writes added fields at their default."""


def digest_of(value: Any) -> str:
    """sha256 (hex) of a JSON value in canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Section(BaseModel):
    """Base of configuration sections and manifests: immutable, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def digest(self) -> str:
        """sha256 (hex) of this section's values."""
        return digest_of(self.model_dump(mode="json"))


class ExtendedSection(Section):
    """A section that gained the fields `added` after its first release.

    JSON leaves these fields out at their default, so earlier documents and digests of equal settings stay the same.
    """

    added: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _json(self, handler: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if not info.mode_is_json() or info.context == ALL_FIELDS:
            return values
        defaults = {name: type(self).model_fields[name].default for name in self.added}
        return {n: v for n, v in values.items() if n not in defaults or getattr(self, n) != defaults[n]}


class FileEntry(Section):
    """One stored object: key relative to the folder of its dataset, run or samples; size in bytes; sha256 (hex)."""

    key: str
    bytes: int
    sha256: str

    @property
    def file(self) -> "FileEntry":
        """These three fields alone, without the additional fields of a subclass."""
        return FileEntry(key=self.key, bytes=self.bytes, sha256=self.sha256)

"""Base classes of configuration sections and manifests: frozen pydantic models with a sha256 digest."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


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


class FileEntry(Section):
    """One stored object: key relative to the folder of its dataset, run or samples; size in bytes; sha256 (hex)."""

    key: str
    bytes: int
    sha256: str

    @property
    def file(self) -> "FileEntry":
        """These three fields alone, without the additional fields of a subclass."""
        return FileEntry(key=self.key, bytes=self.bytes, sha256=self.sha256)

"""What every configuration model and every manifest is made of: a frozen model with a digest."""

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict

__all__ = ["FileEntry", "Section", "digest_of"]


def digest_of(value: Any) -> str:
    """sha256 (hex) of a JSON value in canonical form: keys sorted, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Section(BaseModel):
    """Base of every configuration model: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def digest(self) -> str:
        """sha256 (hex) of this section's values."""
        return digest_of(self.model_dump(mode="json"))


class FileEntry(Section):
    """One stored object: key relative to its artefact, size, sha256 (hex)."""

    key: str
    bytes: int
    sha256: str

    @property
    def file(self) -> "FileEntry":
        """The entry alone, without what a shard or a marker says besides."""
        return FileEntry(key=self.key, bytes=self.bytes, sha256=self.sha256)

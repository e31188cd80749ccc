"""The JSON documents that say what is at rest: an artefact exists when its manifest does.

None holds a time, a host or a credential, so equal inputs give equal documents and equal digests.
"""

import re
from typing import TypeVar

from pydantic import ValidationError

from pipeline.config.base import Section
from pipeline.errors import DataError

__all__ = ["parse", "without_credentials"]


T = TypeVar("T", bound=Section)

_USER = re.compile(r"(?<=//)[^/@\s]+@")
_SECRET = re.compile(
    r"(?<=[?&;])([\w.%-]*(?:signature|sig|token|secret|credential|password|accesskey)[\w.%-]*)=[^&;\s]*", re.I
)


def without_credentials(name: str) -> str:
    """A URI as it may be shown and stored: no user part, no signed query."""
    return _SECRET.sub(r"\1=***", _USER.sub("***@", name))


def parse(model: type[T], data: bytes, where: str) -> T:
    """Read a document. Raises DataError naming the first field that is not as it should be."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the document"
        raise DataError(f"{where} is not a {model.__name__}: {field}: {first['msg']}") from error

"""Time zones in settings: one type, so that every section refuses the same names in the same words."""

from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import AfterValidator

__all__ = ["TimeZone"]


def _known(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError("must be the name of a time zone, such as UTC or Europe/Berlin") from error
    return name


TimeZone = Annotated[str, AfterValidator(_known)]
"""A name of the IANA database, such as Europe/Berlin."""

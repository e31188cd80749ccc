"""Names inside archives and lists: made by strangers, so checked before anything is done with them."""

import re

from pipeline.images.reject_reasons import Reject

__all__ = ["is_hidden", "is_plain", "label_of", "unsafe"]


def unsafe(name: str) -> Reject | None:
    """A refusal for a name that leads out of its folder. Nothing is ever unpacked to disk: this is the second wall."""
    parts = re.split(r"[/\\]", name)
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[/\\]", name):
        return Reject("unsafe-name", f"{name!r} is an absolute name")
    if ".." in parts:
        return Reject("unsafe-name", f"{name!r} leads out of its archive")
    return None


def is_plain(key: str) -> bool:
    """True for what a store takes as a key. Object stores may hold others ("a//b"), which no folder could."""
    return "\0" not in key and all(part not in ("", ".", "..") for part in key.split("/"))


def is_hidden(name: str) -> bool:
    """True when a part of the name begins with a dot: what systems and editors leave behind."""
    return any(part.startswith(".") and part not in (".", "..") for part in re.split(r"[/\\]", name))


def label_of(name: str) -> str | None:
    """The class that a name says: its first folder."""
    folder, inside, _ = name.partition("/")
    return folder if inside else None

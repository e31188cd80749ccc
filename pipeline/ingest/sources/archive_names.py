"""Checks of untrusted names: of archive members, list entries and objects in a store."""

import re

from pipeline.images.reject_reasons import Reject


def unsafe_name(name: str) -> Reject | None:
    """A reject for an absolute name or one that leaves its folder. A second defence: nothing is unpacked to disk."""
    parts = re.split(r"[/\\]", name)
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[/\\]", name):
        return Reject("unsafe-name", f"{name!r} is an absolute name")
    if ".." in parts:
        return Reject("unsafe-name", f"{name!r} leads out of its archive")
    return None


def is_valid_key(key: str) -> bool:
    """Whether a `Store` accepts the key. Object stores may hold other keys ("a//b"), which a folder could not hold."""
    return "\0" not in key and all(part not in ("", ".", "..") for part in key.split("/"))


def is_hidden(name: str) -> bool:
    """True when a part of the name begins with a dot: files that systems and editors leave behind."""
    return any(part.startswith(".") and part not in (".", "..") for part in re.split(r"[/\\]", name))

"""Named splits of a source (train, val, test), recognised in folders, file names, columns and names of arrays.

Names count as splits only where every image has one and one of them is "train". Without `ingest.splits` the training
split trains, `val` is held out, else `test`; a `test` beside a `val` is left out. Where training images are the only
ones that remain, the held-out images are chosen by content hash, as without named splits.
"""

import re
from collections.abc import Iterable
from typing import Final, Literal

from pipeline.config.ingest import IngestConfig
from pipeline.errors import ConfigError

Role = Literal["train", "heldout", "out"]
Roles = tuple[tuple[str, Role], ...]

_NAMES: Final = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "t10k"), "test"),
}
_WORD: Final = re.compile(
    r"(?:^|[/_.\-])(train|training|val|valid|validation|dev|test|testing|t10k)(?=$|[/_.\-])", re.I
)


def is_split(name: str) -> bool:
    """Whether a folder, a cell of a column or the like is the usual name of a split."""
    return name.lower() in _NAMES


def split_in_name(name: str) -> str | None:
    """The split that a file or array name contains as a word: data/train-00000-of-00002.parquet, x_test."""
    found = _WORD.search(name)
    return found[1].lower() if found else None


def roles_of(names: Iterable[str | None], config: IngestConfig, where: str) -> Roles:
    """What becomes of each split; () where the names are no splits. Raises ConfigError.

    names: for every image, or every file of images, the name of its split.
    """
    mapping = config.splits
    if mapping == "none":
        return ()
    found = dict.fromkeys(names)
    if isinstance(mapping, dict):
        if set(found) <= {None}:
            return ()
        missing = [str(name) for name in found if name not in mapping]
        if missing:
            raise ConfigError(f"ingest.splits says nothing about {', '.join(missing)} of {where}")
        return tuple((name, mapping[name]) for name in sorted(filter(None, found)))
    kinds = {name: _NAMES.get((name or "").lower()) for name in found}
    if "train" not in kinds.values() or None in kinds.values():
        return ()
    held = next((kind for kind in ("val", "test") if kind in kinds.values()), None)
    roles: dict[str, Role] = {}
    order = ("train", "val", "test")
    for name, kind in sorted(kinds.items(), key=lambda item: (order.index(item[1] or "train"), item[0])):
        pooled = mapping == "pool" or kind == "train"
        roles[str(name)] = "train" if pooled else "heldout" if kind == held else "out"
    return tuple(roles.items())


def named_split(role: Role, roles: Roles) -> Literal["train", "heldout"] | None:
    """The split of an image with this role; None where its content decides, because no split is held out."""
    if role == "heldout":
        return "heldout"
    return "train" if any(each == "heldout" for _, each in roles) else None

"""List an S3 prefix in key order, page by page, also from servers that list folder by folder."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from pipeline.errors import StorageError

# Servers that list a folder's content where the folder's name sorts ("a/x" before "a b"), not in key order.
_FOLDER_ORDERED = ("SeaweedFS",)


Item = tuple[str, int, *tuple[str, ...]]
"""Key, size in bytes, and the ETag where the listing has one."""


class Level(NamedTuple):
    """One page of a listing: objects, and folders ("a/b/") when a delimiter was given."""

    keys: Sequence[Item]
    folders: list[str]
    token: str | None
    server: str


Pager = Callable[[str, str, str | None], Level]  # prefix, delimiter ("" or "/"), token of the page


def keys_in_order(page: Pager, prefix: str) -> Iterator[Item]:
    """Every object under `prefix` in key order; keys that end in "/" are folder marks, not objects.

    One flat listing from servers that sort by key; else folder by folder, with a request per folder. Memory: one page,
    or one page per folder level. Raises StorageError when a server keeps neither order.
    """
    first = page(prefix, "", None)
    if first.token and first.server.startswith(_FOLDER_ORDERED):
        yield from _by_folder(page, prefix)
        return
    if not first.token:  # a single page: sort it here, whatever the server's order
        first = first._replace(keys=sorted(first.keys))
    last = ""
    for item in _flat(page, prefix, first):
        key = item[0]
        if key < last:
            raise StorageError(f"the server lists '{key}' after '{last}': it keeps no key order, so it cannot be used")
        last = key
        if not key.endswith("/"):
            yield item


def _flat(page: Pager, prefix: str, first: Level) -> Iterator[Item]:
    yield from first.keys
    token = first.token
    while token:
        level = page(prefix, "", token)
        yield from level.keys
        token = level.token


def _by_folder(page: Pager, prefix: str) -> Iterator[Item]:
    """Turn name order into key order: hold a folder "a/" back until no key before "a/" (such as "a b") can follow."""
    waiting: list[Item] = []
    for name, item in _names(page, prefix):
        while waiting and waiting[0][0] <= name:
            yield from _expanded(page, heapq.heappop(waiting))
        heapq.heappush(waiting, item)
    while waiting:
        yield from _expanded(page, heapq.heappop(waiting))


def _names(page: Pager, prefix: str) -> Iterator[tuple[str, Item]]:
    """(name, item) of one folder level in name order. A folder's key ends in "/", its name does not."""
    token: str | None = None
    while True:
        level = page(prefix, "/", token)
        objects: list[tuple[str, Item]] = [(item[0], item) for item in level.keys if not item[0].endswith("/")]
        folders: list[tuple[str, Item]] = [(folder.rstrip("/"), (folder, 0)) for folder in level.folders]
        yield from sorted(objects + folders)
        token = level.token
        if not token:
            return


def _expanded(page: Pager, item: Item) -> Iterator[Item]:
    if item[0].endswith("/"):
        yield from keys_in_order(page, item[0])
    else:
        yield item

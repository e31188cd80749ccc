"""Listings in key order, page by page, from servers that sort differently."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.errors import StorageError
from pipeline.storage.s3_listing import Level, Pager, keys_in_order

PART = st.text(alphabet="ab -.0/é", min_size=1, max_size=4)
KEYS = st.sets(PART.filter(lambda k: not k.startswith("/") and "//" not in k and not k.endswith("/")), max_size=40)


def _server(keys: set[str], name: str, page_size: int, requests: list[str]) -> Pager:
    """list_objects_v2 over `keys`: in key order, or as SeaweedFS with a folder's content at the folder's name."""

    def order(key: str) -> object:
        return key.split("/") if name.startswith("SeaweedFS") else key

    def page(prefix: str, delimiter: str, token: str | None) -> Level:
        requests.append(prefix)
        found: dict[str, None] = {}  # a set that keeps its order
        for key in sorted(keys, key=order):
            if key.startswith(prefix):
                head, slash, _ = key[len(prefix) :].partition("/")
                row = prefix + head + "/" if delimiter and slash else key
                found[row] = None
        rows, start = list(found), int(token or 0)
        now, more = rows[start : start + page_size], len(rows) > start + page_size
        is_folder = (lambda row: row.endswith("/")) if delimiter else (lambda row: False)
        return Level(
            keys=[(row, len(row)) for row in now if not is_folder(row)],
            folders=[row for row in now if is_folder(row)],
            token=str(start + page_size) if more else None,
            server=name,
        )

    return page


@pytest.mark.property
@given(keys=KEYS, prefix=st.sampled_from(["", "a", "a/", "b ", "zz"]), page_size=st.integers(1, 5))
@example(keys={"a/b", "a b", "a-", "a", "a0", "a/ /b", "a/b/a"}, prefix="a", page_size=1)
def test_every_key_once_in_key_order(keys: set[str], prefix: str, page_size: int):
    expected = [(key, len(key)) for key in sorted(keys) if key.startswith(prefix)]
    for name in ("AmazonS3", "SeaweedFS 8000GB 4.48"):
        assert list(keys_in_order(_server(keys, name, page_size, []), prefix)) == expected


@pytest.mark.unit
@pytest.mark.parametrize("name", ["AmazonS3", "SeaweedFS 4.48"])
def test_pages_are_asked_for_only_when_needed(name: str):
    requests: list[str] = []
    listing = keys_in_order(_server({f"{n:05}" for n in range(20_000)}, name, 1000, requests), "")
    assert [next(listing)[0] for _ in range(1500)] == [f"{n:05}" for n in range(1500)]
    assert len(requests) <= 3


@pytest.mark.unit
def test_folder_marks_are_not_objects():
    def page(prefix: str, delimiter: str, token: str | None) -> Level:
        return Level(keys=[("a/", 0), ("a/b", 1)], folders=[], token=None, server="AmazonS3")

    assert list(keys_in_order(page, "")) == [("a/b", 1)]


@pytest.mark.unit
def test_a_server_without_order_is_refused():
    pages = {None: ["a", "c"], "1": ["b"]}

    def page(prefix: str, delimiter: str, token: str | None) -> Level:
        keys = [(key, 1) for key in pages[token]]
        return Level(keys=keys, folders=[], token=None if token else "1", server="Other")

    with pytest.raises(StorageError, match="lists 'b' after 'c'"):
        list(keys_in_order(page, ""))

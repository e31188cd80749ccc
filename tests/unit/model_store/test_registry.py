"""The model registry: versions never change, one promotion wins, aliases are the newest record, rollbacks go back."""

import threading
from datetime import UTC, datetime

import pytest
from tiny_model import write_model

from pipeline.config.base import FileEntry
from pipeline.config.storage import StorageConfig
from pipeline.errors import AlreadyExists, Busy, DataError, VerificationFailed
from pipeline.model_store.export import export
from pipeline.model_store.load_model import find_model
from pipeline.model_store.registry import ChangeRequest, Record, Registry, Version, champions, named_version
from pipeline.storage.store import resolve
from tiny import config

AT = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)


def version(number: int, source: str = "s", sha256: str = "a" * 64) -> Version:
    file = FileEntry(key="unet/x.safetensors", bytes=1, sha256=sha256)
    return Version(number=number, source=source, model_digest="d", sha256=sha256, files=(file,), facts={})


def change(request: str, reason: str = "because") -> ChangeRequest:
    return ChangeRequest(reason, request, AT, {"KD": 0.5})


def filled(store, count: int = 3) -> Registry:
    registry = Registry(store)
    for number in range(1, count + 1):
        registry.commit(version(number, f"s{number}"))
    return registry


def test_a_source_has_one_number_whoever_claims_it(store):
    registry = Registry(store)
    assert [registry.claim(s) for s in ("a", "b", "a", "c", "b")] == [1, 2, 1, 3, 2]
    numbers: dict[str, int] = {}
    barrier = threading.Barrier(6)

    def claim(source: str, who: str) -> None:
        barrier.wait()
        numbers[who] = registry.claim(source)

    threads = [threading.Thread(target=claim, args=(f"n{k % 3}", f"{k}")) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(numbers[str(k)] == numbers[str(k + 3)] for k in range(3))
    assert sorted({*numbers.values()}) == [4, 5, 6]


def test_a_version_never_changes(store):
    registry = filled(store, 1)
    assert registry.commit(version(1, "s1")) == registry.version(1)
    with pytest.raises(AlreadyExists, match="never change"):
        registry.commit(version(1, "s1", "b" * 64))
    assert registry.version(1).sha256 == "a" * 64
    with pytest.raises(DataError, match="no version 2: it has 1"):
        registry.version(2)


def test_aliases_are_the_newest_record(store):
    registry = filled(store)
    assert (registry.head().champion, registry.head().number) == (None, 0)
    registry.challenge(1, change("a"))
    assert (registry.head().champion, registry.head().challenger) == (None, 1)
    registry.promote(1, change("a"), expected=None)
    assert (registry.head().champion, registry.head().challenger) == (1, None)
    registry.challenge(2, change("b"))
    assert named_version(f"{store.uri}@champion", StorageConfig())[1].number == 1
    assert named_version(f"{store.uri}@challenger", StorageConfig())[1].number == 2
    assert named_version(f"{store.uri}@v000003", StorageConfig())[1].number == 3
    assert named_version(f"{store.uri}@3", StorageConfig())[1].number == 3
    assert named_version(store.uri, StorageConfig()) is None
    assert [r.number for r in registry.records()] == [1, 2, 3]
    assert registry.head().metrics == {"KD": 0.5}
    with pytest.raises(DataError, match="no champion"):
        named_version(f"{store.child('other').uri}@champion", StorageConfig())


def test_a_request_is_done_once(store):
    registry = filled(store)
    first = registry.promote(1, change("night"), expected=None)
    registry.challenge(2, change("next"))
    assert registry.promote(1, change("night"), expected=None) == first, "its reply was lost"
    assert registry.head().number == 2
    with pytest.raises(Busy, match=r"champion of .* is v000001 since record 2, not none"):
        registry.promote(2, change("other"), expected=None)
    with pytest.raises(DataError, match="no version 9"):
        registry.promote(9, change("other"), expected=1)


def test_of_two_promoters_one_wins(store):
    registry = filled(store, 9)
    registry.promote(9, change("start"), expected=None)
    won: list[int] = []
    lost: list[str] = []
    barrier = threading.Barrier(8)

    def promote(number: int) -> None:
        barrier.wait()
        try:
            won.append(registry.promote(number, change(f"p{number}"), expected=9).champion)
        except Busy as error:
            lost.append(str(error))

    threads = [threading.Thread(target=promote, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    assert registry.head().champion == won[0]
    assert [r.number for r in registry.records()] == [1, 2]


def test_rollbacks_go_to_earlier_champions_only(store):
    registry = filled(store, 4)
    for number, expected in ((1, None), (2, 1), (3, 2)):
        registry.promote(number, change(f"p{number}"), expected)
    assert registry.rollback(None, change("r1")).champion == 2
    assert registry.rollback(None, change("r2")).champion == 1
    with pytest.raises(DataError, match="nothing to go back to"):
        registry.rollback(None, change("r3"))
    registry.promote(4, change("p4"), 1)
    with pytest.raises(DataError, match="version 3 was not champion before 4"):
        registry.rollback(3, change("r4"))
    assert registry.rollback(1, change("r5")).champion == 1
    number = registry.head().number
    assert registry.rollback(1, change("r6")).number == number, "asked again"
    assert champions(registry.records()) == (1,)


@pytest.mark.unit
def test_the_stack_of_champions():
    moves = [("promote", 1), ("challenge", 1), ("promote", 2), ("promote", 3), ("rollback", 1), ("promote", 3)]
    records = [
        Record(number=k, action=a, champion=c, challenger=None, reason="", request=str(k), at="", metrics={})
        for k, (a, c) in enumerate(moves, start=1)
    ]
    assert [champions(records[:k]) for k in range(7)] == [(), (1,), (1,), (1, 2), (1, 2, 3), (1,), (1, 3)]


@pytest.mark.unit
def test_a_version_with_other_weights_than_its_manifest_is_no_model(tmp_path):
    settings = config()
    registry = Registry(named_store(tmp_path / "models"))
    checkpoint = write_model(str(tmp_path / "run"), settings)
    done = export(settings, checkpoint, registry.folder(1).uri)
    registry.commit(version(1, checkpoint, done["sha256"]))
    registry.promote(1, change("p"), None)
    uri = f"{registry.store.uri}@champion"
    found = find_model(uri, "ema", settings.storage)
    assert (found.uri, found.digest) == (registry.folder(1).uri, done["digest"])
    other = write_model(str(tmp_path / "other"), settings, step=2)
    export(settings, other, str(tmp_path / "folder"))
    weights = "unet/diffusion_pytorch_model.safetensors"
    registry.folder(1).put(weights, named_store(tmp_path / "folder").read(weights))
    with pytest.raises(VerificationFailed, match="restore it"):
        find_model(uri, "ema", settings.storage)


def named_store(path):
    return resolve(str(path), StorageConfig())

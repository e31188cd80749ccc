"""Ledgers at rest: a former lease holder cannot overwrite them, and a lost reply is not another writer."""

from datetime import date

import pytest
from light_nights import trained

from pipeline.errors import Busy
from pipeline.nightly.ledger import Night
from pipeline.nightly.ledger_store import Ledgers
from pipeline.storage.files import remove_artefact

DAY = date(2026, 11, 24)


def night(day: int, state: str = "running", **done: dict) -> Night:
    return Night(name="n", date=f"2026-11-{day:02d}", state=state, done=done)


def test_a_holder_that_was_frozen_cannot_write_over_the_one_after_it(store):
    frozen, after = Ledgers(store), Ledgers(store)
    frozen.write(night(24))
    assert after.read(DAY) == night(24)
    after.write(night(24, "promoted"))
    with pytest.raises(Busy, match="written by another process"):
        frozen.write(night(24, "held"))
    assert Ledgers(store).read(DAY).state == "promoted"
    with pytest.raises(Busy):
        Ledgers(store).write(night(24, "held"))  # never read it, so believes that there is none
    assert Ledgers(store).read(DAY).state == "promoted"


def test_a_lost_reply_is_not_somebody_else(store):
    ledgers = Ledgers(store)
    ledgers.write(night(24))
    Ledgers(store, dict(ledgers.versions)).write(night(24, train=trained()))  # arrived; the reply did not
    assert ledgers.write(night(24, train=trained())) == night(24, train=trained())
    ledgers.write(night(24, "held", train=trained()))
    assert ledgers.read(DAY).state == "held"


def test_the_policy_gets_what_it_needs_and_retention_what_is_old(store):
    ledgers = Ledgers(store)
    states = {20: "promoted", 21: "held", 22: "skipped", 23: "failed", 24: "held", 25: "running"}
    for day, state in states.items():
        ledgers.write(night(day, state))
    assert [day.day for day in ledgers.dates()] == sorted(states)
    assert sorted(day.day for day in ledgers.recent(DAY)) == [21, 22, 23, 24, 25]
    assert [old.day.day for old in ledgers.outdated(1)] == [21, 20]
    assert ledgers.read(date(2026, 11, 19)) is None


@pytest.mark.unit
def test_what_makes_an_artefact_exist_goes_first(tmp_path, monkeypatch):
    from pipeline.config.storage import StorageConfig
    from pipeline.storage.store import Store, resolve

    root = resolve(str(tmp_path), StorageConfig())
    for key in ("data/a.parquet", "manifest.json", "_SUCCESS", "commits/b.json"):
        root.child("run").put(key, b"x")
    root.put("run-2/manifest.json", b"x")
    gone: list[str] = []
    delete = Store.delete
    monkeypatch.setattr(Store, "delete", lambda self, key: (gone.append(key), delete(self, key))[1])
    assert remove_artefact(root.child("run")) == 4
    assert gone == ["_SUCCESS", "commits/b.json", "manifest.json", "data/a.parquet"]
    assert [entry.key for entry in root.list()] == ["run-2/manifest.json"]

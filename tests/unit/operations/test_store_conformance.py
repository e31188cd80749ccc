"""Store checks: every supported store passes; a store that breaks one guarantee fails exactly that check."""

import time
from dataclasses import dataclass

import pytest

from pipeline.config.storage import StorageConfig
from pipeline.errors import Denied, MissingBucket
from pipeline.operations import store_conformance
from pipeline.operations.store_conformance import access, clock_skew, create_once, listing, round_trip
from pipeline.storage.store import Entry, Store, resolve

CHECKS = (access, create_once, listing, round_trip, clock_skew)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_real_store_passes_and_keeps_nothing(store, check):
    if store.kind == "memory" and check is clock_skew:
        return  # memory objects have this process's time by construction, and no time in Arrow
    store.put("mine", b"1")
    assert check(store).level == "ok"
    assert [entry.key for entry in store.list()] == ["mine"]


@dataclass(frozen=True)
class Overwriting(Store):
    """Ignores If-None-Match."""

    def create_once(self, key, data):
        self.put(key, data)


@dataclass(frozen=True)
class Racing(Store):
    """Checks, then writes: refuses late writers, but not concurrent ones."""

    def create_once(self, key, data):
        there = self.exists(key)
        time.sleep(0.05)
        if there:
            super().create_once(key, data)
        self.put(key, data)


@dataclass(frozen=True)
class Lagging(Store):
    """Lists new objects late."""

    def list(self, prefix=""):
        return iter(())


@dataclass(frozen=True)
class Haunted(Store):
    """Lists deleted objects."""

    def list(self, prefix=""):
        yield Entry(prefix, 1)


@dataclass(frozen=True)
class Altering(Store):
    def read(self, key):
        return b"y"


@pytest.mark.unit
@pytest.mark.parametrize(
    ("broken", "check", "says"),
    [
        (Overwriting, create_once, "success to 9 of 9 writers"),
        (Racing, create_once, "conditional writes"),
        (Lagging, listing, "a new object is missing"),
        (Haunted, listing, "a deleted object is still listed"),
        (Altering, access, "other bytes"),
    ],
)
def test_a_broken_promise_is_found(tmp_path, broken, check, says):
    finding = check(broken(str(tmp_path), StorageConfig()))
    assert finding.level == "fail"
    assert says in finding.text


@pytest.mark.unit
def test_a_slow_store_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(store_conformance.time, "perf_counter", iter(range(10)).__next__)
    assert round_trip(resolve(str(tmp_path), StorageConfig())).level == "warn"


@pytest.mark.unit
@pytest.mark.parametrize(("ahead", "level"), [(3, "ok"), (60, "warn"), (-60, "warn"), (3600, "fail")])
def test_a_clock_that_is_off_is_found(tmp_path, ahead, level):
    assert clock_skew(resolve(str(tmp_path), StorageConfig()), lambda: time.time() + ahead).level == level


@pytest.mark.s3
def test_a_clock_that_is_off_is_found_on_s3(s3_uri):
    assert clock_skew(resolve(s3_uri, StorageConfig()), lambda: time.time() - 3600).level == "fail"


@pytest.mark.s3
def test_wrong_keys_and_a_missing_bucket_are_the_store_s_own_words(s3_environment, monkeypatch):
    with pytest.raises(MissingBucket):
        access(resolve("s3://not-there/x", StorageConfig()))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(Denied, match="AWS_SECRET_ACCESS_KEY"):
        access(resolve(f"{s3_environment.uri}/x", StorageConfig()))

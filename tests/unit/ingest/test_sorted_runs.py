"""Any slots are read back from sorted runs, by byte ranges alone."""

import hashlib

import pytest

from pipeline.config.storage import StorageConfig
from pipeline.errors import VerificationFailed
from pipeline.ingest.sorted_runs import PreparedImage, RunFormat, SortedRunFile, read_slots, sorted_run_bytes
from pipeline.storage.files import put_file
from pipeline.storage.store import resolve

pytestmark = pytest.mark.unit
FORMAT = RunFormat(slots=10, channels=3)


def image(number, slot):
    digest = hashlib.sha256(str(number).encode()).digest()
    label = None if number % 3 == 0 else f"größe {number % 3}"
    sums = (number, 1, 2, 2**40 + number, 4, 5)
    return PreparedImage(slot, number * 977 % 101, digest, 4, number, sums, f"a {number}.png", label, b"p" * number)


@pytest.fixture
def stored(store):
    """Images by slot, and the two sorted runs that hold them: all slots but 0, 4 and 9."""
    images = [image(number, (1, 2, 3, 5, 6, 7, 8)[number % 7]) for number in range(40)]
    runs = []
    for number, part in enumerate((images[:25], images[25:])):
        data, text = sorted_run_bytes(part[::-1], FORMAT)
        file = put_file(store, f"work/{number}.run", data)
        runs.append(SortedRunFile(**file.model_dump(), rows=len(part), text_bytes=text))
    return store, runs, images


@pytest.mark.parametrize("slots", [range(10), range(1), range(1, 2), range(3, 7), range(8, 10), range(4, 5)])
def test_a_range_of_slots_holds_its_images_and_no_others(stored, slots):
    store, runs, images = stored
    found = read_slots(store, runs, slots, FORMAT, images=True)
    expected = {i.row: i for i in images if i.slot in slots}
    assert sorted(found.records["row"].tolist()) == sorted(expected)
    for place, record in enumerate(found.records):
        wanted = expected[int(record["row"])]
        assert found.images[place] == wanted.png
        assert (found.sources[place], found.labels[place]) == (wanted.source, wanted.label)
        assert record["sha256"].tobytes() == wanted.sha256
        assert tuple(record["sums"]) == wanted.sums
        assert (record["key"], record["partition"]) == (wanted.key, 4)
    assert read_slots(store, runs, slots, FORMAT, images=False).images == []


def test_without_sorted_runs_there_are_no_images():
    store = resolve("memory://runs", StorageConfig())
    assert len(read_slots(store, [], range(3), RunFormat(10, 1), images=True).records) == 0


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_damaged_sorted_run_is_an_error(stored, damage):
    store, runs, _ = stored
    data = bytearray(store.read(runs[0].key))
    data[-3] ^= 1
    store.put(runs[0].key, bytes(data if damage == "flipped" else data[:-30]))
    with pytest.raises(VerificationFailed):
        read_slots(store, runs, range(10), FORMAT, images=True)

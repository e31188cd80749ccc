"""A checkpoint exists when its manifest does, and a committed checkpoint is never written again."""

import pytest
import torch
from tiny_run import checkpoint_manifest

from pipeline.errors import AlreadyExists, DataError, VerificationFailed
from pipeline.model_store.checkpoint import (
    SUCCESS,
    checkpoint_key,
    committed_steps,
    latest_checkpoint,
    load_newest,
    read_checkpoint,
    read_success,
    read_tensors,
    remove_old_checkpoints,
    rewind,
    usable_checkpoint,
    write_checkpoint,
    write_tensors,
)
from pipeline.model_store.manifest import RunSuccess
from pipeline.storage.documents import to_json
from pipeline.storage.store import Store

TENSORS = {"model": {"w": torch.arange(6.0).reshape(2, 3)}, "ema": {"w": torch.ones(2, 3)}}


def write(run, step, **changed):
    stored = {"images": step * 4, "lane_digests": ("a", "b"), "files": write_tensors(run, step, TENSORS)}
    manifest = checkpoint_manifest(step, **{**stored, **changed})
    write_checkpoint(run, manifest)
    return manifest


def test_what_is_written_is_read(store):
    manifest = write(store, 10)
    assert latest_checkpoint(store) == manifest == read_checkpoint(store, 10)
    loaded = read_tensors(store, manifest)
    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[group]["w"], TENSORS[group]["w"]) for group in TENSORS)
    assert read_tensors(store, manifest, "ema").keys() == {"ema"}


def test_without_a_manifest_there_is_no_checkpoint(store):
    assert latest_checkpoint(store) is None
    write_tensors(store, 5, TENSORS)
    assert committed_steps(store) == []
    assert latest_checkpoint(store) is None
    with pytest.raises(DataError, match="no checkpoint at step 5"):
        read_checkpoint(store, 5)
    assert read_success(store) is None


def test_a_committed_checkpoint_is_never_written_again(store):
    manifest = write(store, 10)
    before = store.read(f"{checkpoint_key(10)}/model.safetensors")
    with pytest.raises(AlreadyExists, match="another process"):
        write_tensors(store, 10, {"model": {"w": torch.zeros(2, 3)}})
    assert store.read(f"{checkpoint_key(10)}/model.safetensors") == before
    write_checkpoint(store, manifest)  # the same again, as after a lost reply
    with pytest.raises(AlreadyExists, match="other content"):
        write_checkpoint(store, manifest.model_copy(update={"world_size": 2}))


def test_altered_or_missing_files_are_refused(store):
    manifest = write(store, 10)
    key = f"{checkpoint_key(10)}/model.safetensors"
    data = store.read(key)
    store.put(key, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(VerificationFailed, match=r"model\.safetensors"):
        read_tensors(store, manifest, "model")
    store.delete(key)
    with pytest.raises(VerificationFailed, match="missing"):
        read_tensors(store, manifest, "model")
    with pytest.raises(DataError, match="holds no optimizer"):
        read_tensors(store, manifest, "optimizer")


def test_retention_removes_the_oldest_whole(store):
    for step in (10, 20, 30):
        write(store, step)
    remove_old_checkpoints(store, 2)
    assert committed_steps(store) == [20, 30]
    assert not [entry.key for entry in store.list(f"{checkpoint_key(10)}/")]
    remove_old_checkpoints(store, 5)
    assert committed_steps(store) == [20, 30]


def keys(run, step):
    return {entry.key.rpartition("/")[2] for entry in run.list(f"{checkpoint_key(step)}/")}


def flip_a_byte(run, step, name="model.safetensors"):
    key = f"{checkpoint_key(step)}/{name}"
    data = run.read(key)
    run.put(key, data[:-1] + bytes([data[-1] ^ 1]))


def shorten(run, step):
    key = f"{checkpoint_key(step)}/ema.safetensors"
    run.put(key, run.read(key)[:-1])


def tear_manifest(run, step):
    key = f"{checkpoint_key(step)}/manifest.json"
    run.put(key, run.read(key)[:100])


def drop_file(run, step):
    run.delete(f"{checkpoint_key(step)}/model.safetensors")


def test_retention_keeps_multiples_and_the_best_too(store):
    losses = {10: 0.5, 20: None, 30: 0.1, 40: 0.3, 50: -float("inf"), 60: 0.2, 70: 0.4, 80: 0.9}
    for step, loss in losses.items():
        write(store, step, loss=loss)
    remove_old_checkpoints(store, keep=1, keep_every=40, keep_best=2)
    assert committed_steps(store) == [30, 40, 60, 80]
    remove_old_checkpoints(store, keep=1, keep_every=None, keep_best=0)
    assert committed_steps(store) == [80]


def test_of_equally_good_checkpoints_the_newer_stays(store):
    for step in (10, 20, 30):
        write(store, step, loss=0.5)
    remove_old_checkpoints(store, keep=1, keep_best=2)
    assert committed_steps(store) == [20, 30]


@pytest.mark.parametrize("damage", [tear_manifest, drop_file, shorten])
def test_damage_does_not_stop_retention_nor_push_out_a_good_checkpoint(store, damage):
    for step in (10, 20, 30, 40, 50):
        write(store, step, loss=1.0 / step)
    damage(store, 20)
    damage(store, 40)
    remove_old_checkpoints(store, keep=2, keep_best=1)
    assert committed_steps(store) == [30, 40, 50]  # 40 is among the newest, 30 among the newest that can be used
    assert keys(store, 20) == set()


def test_retention_deletes_uncommitted_folders_older_than_the_newest_checkpoint(store):
    write_tensors(store, 5, TENSORS)
    remove_old_checkpoints(store, keep=1)
    assert keys(store, 5)
    write(store, 10)
    write_tensors(store, 15, TENSORS)
    remove_old_checkpoints(store, keep=1)
    assert keys(store, 5) == set()
    assert keys(store, 15) == {"model.safetensors", "ema.safetensors"}


class Recording(Store):
    """Records the deleted keys in order."""

    deleted: list[str] = []  # noqa: RUF012

    def delete(self, key):
        self.deleted.append(key)
        super().delete(key)


@pytest.fixture
def recording(store):
    Recording.deleted.clear()
    return Recording(store.uri, store.config)


def test_rewinding_deletes_success_then_later_checkpoints_newest_and_manifest_first(recording):
    manifests = {step: write(recording, step) for step in (10, 20, 30)}
    success = RunSuccess(step=30, images=120, checkpoint=checkpoint_key(30), batch_digest="", config_digest="")
    recording.put(SUCCESS, to_json(success))
    write_tensors(recording, 40, TENSORS)  # not yet committed when the driver ended
    assert rewind(recording, 10) == manifests[10]
    assert committed_steps(recording) == [10]
    assert latest_checkpoint(recording) == manifests[10]
    assert read_success(recording) is None
    assert keys(recording, 40) == set()
    order = [key for key in recording.deleted if key == SUCCESS or key.endswith("manifest.json")]
    assert order == [SUCCESS, *(f"{checkpoint_key(step)}/manifest.json" for step in (30, 20))]
    assert recording.deleted.index(order[1]) < recording.deleted.index(f"{checkpoint_key(30)}/model.safetensors")
    write(recording, 20, world_size=2)  # the place is free for other content


@pytest.mark.parametrize("damage", [None, tear_manifest, drop_file])
def test_rewinding_to_an_unusable_checkpoint_deletes_nothing(recording, damage):
    for step in (10, 20, 30):
        write(recording, step)
    if damage is not None:
        damage(recording, 20)
    with pytest.raises(DataError, match="step-000000020" if damage else r"no checkpoint at step 25.*10, 20, 30"):
        rewind(recording, 20 if damage else 25)
    assert recording.deleted in ([], [f"{checkpoint_key(20)}/model.safetensors"])  # the damage itself
    assert committed_steps(recording) == [10, 20, 30]


@pytest.mark.parametrize("damage", [tear_manifest, drop_file, shorten])
def test_the_newest_usable_checkpoint_is_found_and_damaged_ones_are_logged(store, damage, caplog):
    assert usable_checkpoint(store) is None
    good = write(store, 10)
    write(store, 20)
    write(store, 30)
    damage(store, 20)
    damage(store, 30)
    assert usable_checkpoint(store) == good
    assert [line.split(" is skipped")[0] for line in caplog.messages] == ["checkpoint 30", "checkpoint 20"]
    assert committed_steps(store) == [10, 20, 30]
    damage(store, 10)
    with pytest.raises(DataError, match=r"\[10, 20, 30\] and each is damaged"):
        usable_checkpoint(store)


@pytest.mark.parametrize("damage", [tear_manifest, drop_file, shorten, flip_a_byte])
def test_loading_falls_back_to_the_checkpoint_before(store, damage, caplog):
    assert load_newest(store) is None
    good = write(store, 10)
    write(store, 20)
    damage(store, 20)
    manifest, tensors = load_newest(store)
    assert manifest == good
    assert torch.equal(tensors["model"]["w"], TENSORS["model"]["w"])
    assert "checkpoint 20" in caplog.messages[-1]
    assert committed_steps(store) == [10, 20]  # nothing is deleted
    rewind(store, manifest.step)
    write(store, 20, world_size=2)
    assert load_newest(store)[0].step == 20
    damage(store, 10)
    damage(store, 20)
    with pytest.raises(DataError, match="each is damaged"):
        load_newest(store)


def test_loading_reads_only_the_groups_that_are_asked_for(store):
    write(store, 10)
    flip_a_byte(store, 10, "ema.safetensors")
    manifest, tensors = load_newest(store, "model")
    assert (manifest.step, tensors.keys()) == (10, {"model"})
    with pytest.raises(DataError, match="holds no optimizer"):
        load_newest(store, "optimizer")


def test_a_read_that_failed_once_costs_no_checkpoint(store, monkeypatch, caplog):
    for step in (10, 20):
        write(store, step)
    read, seen = Store.read, set()

    def wrong_the_first_time(self, key):
        data = read(self, key)
        if not key.endswith(".safetensors") or (self.uri, key) in seen:
            return data
        seen.add((self.uri, key))
        return data[:-1] + b"?"

    monkeypatch.setattr(Store, "read", wrong_the_first_time)
    manifest, _ = load_newest(store, "model")
    assert manifest.step == 20
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("once more")


def test_the_batch_digest_is_of_the_lanes_not_of_the_workers(store):
    manifest = write(store, 10)
    assert manifest.model_copy(update={"world_size": 2}).batch_digest == manifest.batch_digest
    assert manifest.model_copy(update={"lane_digests": ("b", "a")}).batch_digest != manifest.batch_digest

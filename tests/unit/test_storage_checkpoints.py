"""A checkpoint exists when its manifest does, and what exists is never written again."""

import pytest
import torch

from pipeline.config import Config
from pipeline.errors import AlreadyExists, DataError, VerificationFailed
from pipeline.manifests import CheckpointManifest
from pipeline.storage.checkpoints import (
    checkpoint_key,
    committed_steps,
    latest_checkpoint,
    read_checkpoint,
    read_success,
    read_tensors,
    remove_old_checkpoints,
    write_checkpoint,
    write_tensors,
)

TENSORS = {"model": {"w": torch.arange(6.0).reshape(2, 3)}, "ema": {"w": torch.ones(2, 3)}}


def write(run, step, **changed):
    config = Config()
    manifest = CheckpointManifest(
        step=step,
        images=step * 4,
        epoch=0,
        batches=step,
        world_size=1,
        dataset_digest="d",
        image_size=8,
        channels=1,
        classes=None,
        config=config.model_dump(mode="json"),
        config_digest=config.digest(),
        lane_digests=("a", "b"),
        metric_parts=(),
        ema=("ema",),
        files=write_tensors(run, step, TENSORS),
    ).model_copy(update=changed)
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


def test_the_batch_digest_is_of_the_lanes_not_of_the_workers(store):
    manifest = write(store, 10)
    assert manifest.model_copy(update={"world_size": 2}).batch_digest == manifest.batch_digest
    assert manifest.model_copy(update={"lane_digests": ("b", "a")}).batch_digest != manifest.batch_digest

"""Models of others: every layout of a diffusers folder loads the same network, and an unusable folder is explained."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from tiny_model import write_model

from pipeline.config.generation import GenerateConfig
from pipeline.config.model import DiffusionConfig, ModelConfig
from pipeline.config.storage import StorageConfig
from pipeline.errors import ConfigError, DataError, VerificationFailed
from pipeline.generation.make_plan import make_plan
from pipeline.generation.manifest import SamplePlan
from pipeline.generation.sample_plan import PlannedSamples
from pipeline.model_store.load_model import find_model, load_unet
from pipeline.model_store.manifest import RunPlan
from pipeline.models.diffusers_format import model_files
from pipeline.models.unet import UNet
from tiny import config

pytestmark = pytest.mark.unit

STORAGE = StorageConfig()
STEM = "diffusion_pytorch_model"
MODEL = {"block_out_channels": (8,), "norm_num_groups": 4, "attention_levels": (), "layers_per_block": 1}


def folder_files(**settings):
    """A folder as diffusers writes it, without the keys of this program."""
    files = model_files(UNet(ModelConfig(**MODEL, **settings), 1, 1, 8), DiffusionConfig())
    for name in ("unet/config.json", "scheduler/scheduler_config.json"):
        fields = json.loads(files[name])
        kept = {key: value for key, value in fields.items() if key == "_class_name" or not key.startswith("_")}
        files[name] = json.dumps(kept).encode()
    return files


def place(root, files):
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(root)


def flat(files):
    return {name.rpartition("/")[2]: content for name, content in files.items()}


def variant(files, name, weights=None):
    """The weights under the name of a variant, in half precision unless `weights` are given."""
    rest = dict(files)
    state = load(rest.pop(f"unet/{STEM}.safetensors"))
    weights = weights or save({key: value.half() for key, value in state.items()})
    return rest | {f"unet/{STEM}.{name}.safetensors": weights}


def sharded(files, name="", shards=3):
    """The weights in shards with an index, in diffusers' names."""
    rest = dict(files)
    state = load(rest.pop(f"unet/{STEM}.safetensors"))
    suffix, infix = (f".{name}", f"{STEM}.{name}") if name else ("", STEM)
    index = {"metadata": {}, "weight_map": {}}
    for number in range(shards):
        file = f"{infix}-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(state.items())[number::shards])
        rest[f"unet/{file}"] = save(part)
        index["weight_map"] |= dict.fromkeys(part, file)
    return rest | {f"unet/{STEM}.safetensors.index{suffix}.json": json.dumps(index).encode()}


def without_index(files):
    return {name: content for name, content in files.items() if name != "model_index.json"}


@pytest.mark.parametrize(
    ("change", "weights"),
    [
        (lambda files: files, "folder"),
        (flat, "folder"),
        (lambda files: without_index(flat(files)), "folder"),
        (sharded, "folder"),
        (lambda files: flat(sharded(files)), "folder"),
        (lambda files: variant(files, "fp16"), "fp16"),
        (lambda files: flat(variant(files, "fp16")), "fp16"),
        (lambda files: sharded(files, "bf16"), "bf16"),
    ],
)
def test_every_layout_gives_the_same_network(tmp_path, change, weights):
    files = folder_files()
    uri = place(tmp_path, change(files))
    (tmp_path / "README.md").write_text("a model card")
    found = find_model(uri, "ema", STORAGE)
    assert found.weights == weights
    assert found.model == ModelConfig(**MODEL)
    assert find_model(uri, found.weights, STORAGE) == found
    state = load_unet(found, STORAGE).state_dict()
    half = weights == "fp16"
    for name, value in load(files[f"unet/{STEM}.safetensors"]).items():
        assert torch.equal(state[name], value.half().float() if half else value)


def test_a_variant_is_chosen_by_name_and_weights_without_one_come_first(tmp_path):
    files = folder_files()
    halves = variant(files, "fp16")
    uri = place(tmp_path / "both", files | halves)
    assert find_model(uri, "ema", STORAGE).weights == "folder"
    chosen = find_model(uri, "fp16", STORAGE)
    assert chosen.weights == "fp16"
    assert chosen.digest != find_model(uri, "ema", STORAGE).digest
    two = place(tmp_path / "two", halves | variant(files, "non_ema"))
    with pytest.raises(DataError, match=r"variants fp16, non_ema: choose one as generate\.weights"):
        find_model(two, "ema", STORAGE)
    assert find_model(two, "non_ema", STORAGE).weights == "non_ema"


def test_a_changed_shard_is_found(tmp_path):
    files = sharded(folder_files())
    found = find_model(place(tmp_path, files), "ema", STORAGE)
    name = f"unet/{STEM}-00002-of-00003.safetensors"
    other = {key: value + 1 for key, value in load(files[name]).items()}
    (tmp_path / name).write_bytes(save(other))
    with pytest.raises(VerificationFailed, match="weights changed"):
        load_unet(found, STORAGE)


def damaged_index(**mapping):
    return {f"unet/{STEM}.safetensors.index.json": json.dumps({"weight_map": mapping}).encode()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"unet/{STEM}.bin": b"pickle"}, rf"{STEM}\.bin is pickled, which is not read.*save_pretrained"),
        ({}, rf"{STEM}\.safetensors is missing$"),
        ({"unet/model.safetensors": b""}, r"unet/model\.safetensors has a name that diffusers does not use"),
        ({f"unet/{STEM}-00001-of-00002.safetensors": b""}, r"safetensors\.index\.json is missing"),
        (damaged_index(a="../../secret.safetensors"), r"names '\.\./\.\./secret"),
        (damaged_index(a=f"{STEM}-00001-of-00001.safetensors"), "a shard that .* names"),
        (damaged_index(a=3), "names 3"),
        ({f"unet/{STEM}.safetensors.index.json": b"[]"}, "is not an index of shards"),
    ],
)
def test_a_folder_without_usable_weights_is_explained(tmp_path, change, message):
    files = folder_files()
    del files[f"unet/{STEM}.safetensors"]
    with pytest.raises(DataError, match=message) as error:
        find_model(place(tmp_path, files | change), "ema", STORAGE)
    assert ("pickled" in str(error.value)) == any(name.endswith(".bin") for name in change)


def test_a_part_of_a_folder_is_named(tmp_path):
    uri = place(tmp_path, folder_files())
    with pytest.raises(DataError, match=r"scheduler_config\.json is missing"):
        find_model(f"{uri}/unet", "ema", STORAGE)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.json").write_text('{"_class_name": "AutoencoderKL"}')
    (tmp_path / f"other/{STEM}.safetensors").write_bytes(b"")
    with pytest.raises(DataError, match="_class_name is 'AutoencoderKL', not 'UNet2DModel'"):
        find_model(f"{uri}/other", "ema", STORAGE)
    with pytest.raises(DataError, match="neither a run"):
        find_model(f"{uri}/scheduler", "ema", STORAGE)


def drawn(found, **settings):
    plan = make_plan(GenerateConfig(num_samples=12, **settings), found)
    return plan, PlannedSamples(plan).specs(range(12)).labels


def test_every_class_of_another_programs_model_is_drawn(tmp_path):
    uri = place(tmp_path, folder_files(num_classes=5, null_class=False))
    found = find_model(uri, "ema", STORAGE)
    plan, labels = drawn(found)
    assert np.array_equal(labels, np.arange(12) % 5)
    assert "null_label" not in SamplePlan.model_validate(plan.model_dump()).model_dump(exclude_defaults=True)
    with pytest.raises(ConfigError, match=r"set generate\.null_label"):
        drawn(found, guidance=2.0)


def test_a_chosen_row_serves_guidance_and_is_part_of_the_plan(tmp_path):
    uri = place(tmp_path, folder_files(num_classes=5, null_class=False))
    plain, found = (find_model(uri, "ema", STORAGE, row) for row in (None, 0))
    plan, labels = drawn(found, guidance=2.0, null_label=0)
    assert np.array_equal(labels, np.arange(12) % 4)
    assert (plan.num_classes, plan.null_label) == (4, 0)
    assert plan.model_digest != plain.digest
    assert find_model(plan.model_uri, plan.weights, STORAGE, plan.null_label).digest == plan.model_digest
    stored = load_unet(plain, STORAGE).class_embedding.weight
    assert torch.equal(load_unet(found, STORAGE).class_embedding.weight, stored[[1, 2, 3, 4, 0]])


def test_a_run_has_a_row_for_no_label_already(tmp_path):
    write_model(str(tmp_path / "run"), config())
    with pytest.raises(ConfigError, match=r"generate\.null_label 3 is for diffusers folders"):
        find_model(str(tmp_path / "run"), "ema", STORAGE, 3)


def test_a_run_planned_before_the_added_settings_has_the_same_plan():
    now = config().model_dump(mode="json")
    assert not now["model"].keys() & ModelConfig.added
    assert config().digest() == type(config()).model_validate(now).digest()
    every = {**now, "model": config().model.model_dump()}
    plans = [RunPlan(dataset_uri="d", dataset_digest="e", config=values) for values in (now, every)]
    assert plans[0].differences(plans[1]) == []
    other = config(model={"attention_head_dim": 8}).model_dump(mode="json")
    assert plans[0].differences(plans[0].model_copy(update={"config": other})) == ["model.attention_head_dim"]

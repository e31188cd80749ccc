"""What ddpm export writes is the checkpoint's model to diffusers and to us, and nothing that is half written is one."""

import hashlib
import json

import pytest
import torch
from diffusers import DDPMPipeline, UNet2DModel
from tiny_model import CHANNELS, SIZE, write_model

from pipeline.config.storage import StorageConfig
from pipeline.errors import ConfigError, DataError, StorageError, VerificationFailed
from pipeline.model_store.checkpoint import (
    checkpoint_key,
    read_checkpoint,
    read_tensors,
    write_checkpoint,
    write_tensors,
)
from pipeline.model_store.export import export
from pipeline.model_store.load_model import find_model, load_unet
from pipeline.models.diffusers_format import INDEX_FILE, UNET_FILE, WEIGHTS_FILE
from pipeline.models.diffusers_scheduler import SCHEDULER_FILE
from pipeline.storage.store import Store, resolve
from tiny import command, config, run

pytestmark = pytest.mark.e2e

STORAGE = StorageConfig()
FILES = [INDEX_FILE, SCHEDULER_FILE, UNET_FILE, WEIGHTS_FILE]


@pytest.fixture
def base(tmp_path):
    """A folder with a run of one checkpoint, at step 1."""
    write_model(str(tmp_path / "run"), config())
    return resolve(str(tmp_path), STORAGE)


def weights_of(uri, weights="ema"):
    return load_unet(find_model(uri, weights, STORAGE), STORAGE).state_dict()


def assert_same_weights(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def keys(store):
    return [entry.key for entry in store.list()]


def add_averages(store, step, *names):
    """A checkpoint at `step` with further averages, each of other weights."""
    last = read_checkpoint(store, 1)
    tensors = read_tensors(store, last)
    for number, name in enumerate(names, start=1):
        tensors[name] = {key: value + number for key, value in tensors["ema"].items()}
    files = write_tensors(store, step, tensors)
    write_checkpoint(store, last.model_copy(update={"step": step, "ema": ("ema", *names), "files": files}))


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_diffusers_loads_it_and_computes_the_same(base, weights):
    result = export(config(generate={"weights": weights}), base.location("run"), base.location("out"))
    assert keys(base.child("out")) == FILES
    assert (result["state"], result["step"], result["weights"]) == ("written", 1, weights)
    assert result["sha256"] == hashlib.sha256(base.read(f"out/{WEIGHTS_FILE}")).hexdigest()

    ours = load_unet(find_model(base.location("run"), weights, STORAGE), STORAGE)
    pipeline = DDPMPipeline.from_pretrained(base.location("out"))
    alone = UNet2DModel.from_pretrained(base.location("out"), subfolder="unet")
    assert_same_weights(pipeline.unet.state_dict(), ours.state_dict())
    x = torch.randn(3, CHANNELS, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 10, 999])
    with torch.no_grad():
        expected = ours(x, t, None)
        for theirs in (pipeline.unet, alone.eval()):
            torch.testing.assert_close(theirs(x, t).sample, expected, rtol=0, atol=1e-5)
    assert expected.abs().max() > 0.01
    assert pipeline.scheduler.config.num_train_timesteps == config().diffusion.num_timesteps


def test_generate_finds_the_weights_of_the_run(base):
    result = export(config(), base.location("run"), base.location("out"))
    found = find_model(base.location("out"), "ema", STORAGE)
    of_run = find_model(base.location("run"), "ema", STORAGE)
    assert found.digest == result["digest"]
    assert (found.model, found.diffusion) == (of_run.model, of_run.diffusion)
    assert (found.image_size, found.channels) == (SIZE, CHANNELS)
    assert_same_weights(weights_of(base.location("out")), weights_of(base.location("run")))
    different = weights_of(base.location("run"), "raw")
    assert any(not torch.equal(different[name], value) for name, value in weights_of(base.location("out")).items())


def test_steps_and_averages_are_those_asked_for(base):
    run_uri, store = base.location("run"), base.child("run")
    add_averages(store, 2, "slow", "slower")
    assert export(config(), run_uri, base.location("latest"))["step"] == 2
    assert export(config(), run_uri, base.location("first"), step=1)["step"] == 1
    chosen = export(config(generate={"weights": "slower"}), run_uri, base.location("slower"), step=2)
    assert chosen["checkpoint"] == store.location(checkpoint_key(2))
    assert_same_weights(weights_of(base.location("slower")), read_tensors(store, read_checkpoint(store, 2))["slower"])
    checkpoint = store.location(checkpoint_key(1))
    assert export(config(), checkpoint, base.location("first"))["state"] == "already done"
    with pytest.raises(ConfigError, match=r"--step 2: .* is the checkpoint of step 1"):
        export(config(), checkpoint, base.location("x"), step=2)
    with pytest.raises(DataError, match=r"no checkpoint at step 3: it has \[1, 2\]"):
        export(config(), run_uri, base.location("x"), step=3)
    with pytest.raises(ConfigError, match="no weights 'fast'; it has ema, slow, slower, raw"):
        export(config(generate={"weights": "fast"}), run_uri, base.location("x"))
    with pytest.raises(ConfigError, match="no weights 'slow'; it has ema, raw"):
        export(config(generate={"weights": "slow"}), run_uri, base.location("x"), step=1)
    assert not keys(base.child("x"))


def test_again_is_already_done_and_other_weights_are_refused(base):
    words = config(), base.location("run"), base.location("out")
    first = export(*words)
    before = {key: base.read(f"out/{key}") for key in keys(base.child("out"))}
    base.put("out/README.md", b"mine")
    again = export(*words)
    assert again["state"] == "already done"
    different = ("state", "summary")
    assert {k: v for k, v in again.items() if k not in different} == {
        k: v for k, v in first.items() if k not in different
    }
    with pytest.raises(ConfigError, match=f"{WEIGHTS_FILE} has other content"):
        export(config(generate={"weights": "raw"}), *words[1:])
    assert {key: base.read(f"out/{key}") for key in before} == before


def test_a_damaged_checkpoint_makes_no_folder(base):
    key = f"run/{checkpoint_key(1)}/ema.safetensors"
    data = bytearray(base.read(key))
    data[-1] ^= 1
    base.put(key, bytes(data))
    with pytest.raises(VerificationFailed, match=r"ema\.safetensors is not what its manifest names"):
        export(config(), base.location("run"), base.location("out"))
    assert not keys(base.child("out"))


class Ended(Exception):
    pass


@pytest.mark.parametrize("written", [0, 1, 2, 3])
def test_an_interrupted_export_is_no_model_until_it_is_run_again(base, monkeypatch, written):
    words = config(), base.location("run"), base.location("out")
    create_once, left = Store.create_once, [written]

    def ends(self, key, data):
        if left[0] == 0:
            raise Ended
        left[0] -= 1
        create_once(self, key, data)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "create_once", ends)
        with pytest.raises(Ended):
            export(*words)
    assert len(keys(base.child("out"))) == written
    with pytest.raises(DataError, match="no model at"):
        find_model(base.location("out"), "ema", STORAGE)
    assert export(*words)["state"] == "written"
    assert_same_weights(weights_of(base.location("out")), weights_of(base.location("run")))


def test_another_export_at_the_same_time_is_joined_or_refused(base, monkeypatch):
    """The other one's file appears between our look and our write."""
    words = config(), base.location("run"), base.location("out")
    export(*words)
    files = {key: base.read(f"out/{key}") for key in FILES}
    create_once = Store.create_once
    for data, error in ((files[WEIGHTS_FILE], None), (b"other", "has other content")):
        for key in FILES:
            base.delete(f"out/{key}")

        def second(self, key, ours, data=data):
            if key == WEIGHTS_FILE:
                create_once(self, key, data)
            create_once(self, key, ours)

        with monkeypatch.context() as patch:
            patch.setattr(Store, "create_once", second)
            if error is None:
                assert export(*words)["sha256"] == hashlib.sha256(data).hexdigest()
            else:
                with pytest.raises(ConfigError, match=error):
                    export(*words)
                assert not base.exists(f"out/{INDEX_FILE}")


def test_a_run_does_not_become_a_model_folder(base):
    with pytest.raises(ConfigError, match=r"holds checkpoints/.*: choose a new folder"):
        export(config(), base.location("run"), base.location("run"))
    assert not base.exists(f"run/{INDEX_FILE}")
    export(config(), base.location("run"), base.location("out"))
    with pytest.raises(ConfigError, match="is a diffusers folder already"):
        export(config(), base.location("out"), base.location("out2"))


def test_what_diffusers_cannot_express_is_refused_with_the_reason(base):
    for name, diffusion in (("mean", {"prediction": "mean"}), ("learned", {"variance": "learned"})):
        settings = config(diffusion={**diffusion, "objective": "bound"})
        write_model(base.location(name), settings)
        with pytest.raises(ConfigError, match=f"'{name}': diffusers' scheduler|'{name}'.*only learns"):
            export(settings, base.location(name), base.location("out"))
        assert not keys(base.child("out"))


def test_a_schedule_without_a_name_is_written_as_its_betas(base):
    write_model(base.location("sigmoid"), config(diffusion={"schedule": "sigmoid"}))
    export(config(), base.location("sigmoid"), base.location("out"))
    fields = base.read_json(f"out/{SCHEDULER_FILE}")
    assert len(fields["trained_betas"]) == fields["num_train_timesteps"]
    assert find_model(base.location("out"), "ema", STORAGE).diffusion.schedule == "sigmoid"


def test_to_s3_and_back_by_the_command_line(tmp_path, s3_uri):
    write_model(str(tmp_path / "run"), config())
    write_model(f"{s3_uri}/run", config())
    words = command(tmp_path, "export", "--run", str(tmp_path / "run"), "--out", f"{s3_uri}/out", "--json")
    ended = run(words)
    assert ended.returncode == 0, ended.stderr
    result = json.loads(ended.stdout.splitlines()[-1])
    assert (result["uri"], result["state"]) == (f"{s3_uri}/out", "written")
    assert export(config(), str(tmp_path / "run"), f"{s3_uri}/out")["state"] == "already done"
    back = export(config(), f"{s3_uri}/run", str(tmp_path / "back"))
    assert (back["sha256"], back["digest"]) == (result["sha256"], result["digest"])
    stores = resolve(f"{s3_uri}/out", STORAGE), resolve(str(tmp_path / "back"), STORAGE)
    assert keys(stores[0]) == keys(stores[1]) == FILES
    assert all(stores[0].read(key) == stores[1].read(key) for key in FILES)
    with pytest.raises(StorageError, match="no-such-bucket"):
        export(config(), str(tmp_path / "run"), "s3://no-such-bucket/out")


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (["--ema", "slow"], 2, "has no weights 'slow'; it has ema, raw"),
        (["--step", "1.5"], 2, "--step must be a whole number (got 1.5)"),
        (["--step", "7"], 3, "has no checkpoint at step 7: it has [1]"),
        (["--dry-run", "--ema", "raw", "--step", "1"], 0, "would write weights 'raw' of step 1"),
    ],
)
def test_flags_of_the_command(base, capsys, flags, code, text):
    from jobs.__main__ import main

    assert main(["export", "--run", base.location("run"), "--out", base.location("out"), *flags]) == code
    output = capsys.readouterr()
    assert text in (output.err if code else output.out)
    assert not keys(base.child("out"))

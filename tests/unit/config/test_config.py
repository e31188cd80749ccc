"""Configuration: one message for all bad settings, with origins; printed YAML reads back; every setting described."""

import pytest

from pipeline.config.base import Section
from pipeline.config.generation import label_mix
from pipeline.config.layers import Layer, environment_layer, flag_layer, recipe_layer, resolve, to_yaml, yaml_layer
from pipeline.config.root import Config
from pipeline.errors import ConfigError
from pipeline.model_store.manifest import RunPlan

pytestmark = pytest.mark.unit


def test_later_layers_win_and_leave_the_rest():
    config = resolve([Layer("a", {"train": {"lr": 1, "steps": 5}}), Layer("b", {"train": {"lr": 0.5}})])
    assert (config.train.lr, config.train.steps) == (0.5, 5)


def test_every_bad_field_is_named_with_value_and_origin():
    layers = [
        Layer("nightly.yaml", {"train": {"ema": {"decay": 2.0}, "lrr": 1}}),
        Layer("command line", {"model": {"norm_num_groups": 0}, "generate": {"sampler": "magic"}}),
    ]
    with pytest.raises(ConfigError) as caught:
        resolve(layers)
    message = str(caught.value)
    assert "train.ema.decay: must be less than 1 (got 2.0; from nightly.yaml)" in message
    assert "train.lrr: unknown setting: did you mean train.lr? (from nightly.yaml)" in message
    assert "model.norm_num_groups" in message
    assert "generate.sampler" in message
    assert "from command line" in message


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"diffusion": {"variance": "learned"}}, "gets no gradient"),
        ({"diffusion": {"objective": "hybrid"}}, "trains a learned variance"),
        ({"diffusion": {"zero_terminal_snr": True}}, "no signal"),
        ({"diffusion": {"beta_start": 0.5, "beta_end": 0.1}}, "beta_start"),
        ({"model": {"block_out_channels": [30], "norm_num_groups": 8}}, "multiples"),
        ({"model": {"attention_levels": [9]}}, "attention_levels"),
        ({"ray": {"workers": "4..2"}}, "MIN"),
        ({"train": {"label_dropout": 0.1}}, "set model.num_classes"),
        ({"generate": {"labels": "0:0.5,3"}}, "LABEL:WEIGHT"),
        ({"generate": {"labels": "0:1,0:2"}}, "label 0 twice"),
        ({"generate": {"labels": "1:-1"}}, "weights above 0"),
        ({"generate": {"guidance": float("inf")}}, "finite"),
        ({"generate": {"guidance_interval": [0.8, 0.2]}}, "LOW <= HIGH"),
    ],
)
def test_incompatible_choices_are_refused_with_the_reason(values, reason):
    with pytest.raises(ConfigError, match=reason):
        resolve([Layer("test", values)])


def test_printed_config_is_an_equal_config(tmp_path):
    config = resolve([Layer("test", {"train": {"lr": 3e-5}, "ray": {"workers": 2}, "model": {"num_classes": 10}})])
    path = tmp_path / "printed.yaml"
    path.write_text(to_yaml(config))
    assert resolve([yaml_layer(path)]) == config


def test_flags_reach_nested_fields_lists_and_nulls():
    flags = ["--train.ema.decay=0.5", "--model.block_out_channels=32,64", "--model.num_classes=null"]
    config = resolve([flag_layer([*flags, "--train.flip=true", "--ingest.channels=1"])])
    assert config.train.ema.decay == 0.5
    assert config.model.block_out_channels == (32, 64)
    assert config.model.num_classes is None
    assert config.train.flip is True
    assert config.ingest.channels == 1
    guided = resolve([flag_layer(["--generate.guidance=2", "--generate.guidance_interval=0.2,0.8"])]).generate
    assert (guided.guidance, guided.guidance_interval) == (2.0, (0.2, 0.8))


def test_a_label_mix_is_sorted_by_label():
    assert label_mix("balanced") is None
    assert label_mix("3:0.5, 0:2") == ((0, 2.0), (3, 0.5))


def test_every_setting_and_section_is_described():
    """`ddpm VERB --help` prints these texts."""
    sections = {Config}
    while todo := {kind for section in sections for kind in _sections(section)} - sections:
        sections |= todo
    silent = [
        f"{section.__name__}.{name}"
        for section in sections - {Config}
        for name, field in section.model_fields.items()
        if not field.description
    ]
    assert silent == []
    assert all("__doc__" in vars(section) and section.__doc__ for section in sections)


def _sections(section):
    """The sections that are fields of a section."""
    kinds = (field.annotation for field in section.model_fields.values())
    return {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)}


def test_unknown_flag_gets_a_suggestion():
    with pytest.raises(ConfigError, match=r"unknown flag --train\.lrr: did you mean --train\.lr\?"):
        flag_layer(["--train.lrr=1"])


def test_nobody_pays_for_anonymous_requests():
    for name in ("anonymous", "requester_pays"):
        assert getattr(resolve([flag_layer([f"--storage.{name}=true"])]).storage, name)
    with pytest.raises(ConfigError, match=r"storage\.anonymous and storage\.requester_pays exclude each other"):
        resolve([flag_layer(["--storage.anonymous=true", "--storage.requester_pays=true"])])


def test_access_to_foreign_buckets_is_left_out_of_documents_at_its_default():
    assert not {"anonymous", "requester_pays"} & Config().model_dump(mode="json")["storage"].keys()
    foreign = resolve([flag_layer(["--storage.anonymous=true"])])
    assert foreign.model_dump(mode="json")["storage"]["anonymous"] is True
    assert foreign.digest() == Config().digest()


def test_bad_files_end_in_one_line(tmp_path):
    (tmp_path / "a.yaml").write_text("a: [")
    (tmp_path / "b.yaml").write_text("- 1")
    for name, reason in (("a.yaml", "not valid YAML"), ("b.yaml", "mapping"), ("c.yaml", "cannot read")):
        with pytest.raises(ConfigError, match=reason):
            yaml_layer(tmp_path / name)


def test_digest_ignores_where_things_run():
    one = resolve([Layer("a", {"ray": {"workers": 4}, "storage": {"region": "eu-west-1"}})])
    assert one.digest() == Config().digest()
    later = resolve([Layer("a", {"nightly": {"name": "n"}, "gate": {"tolerance": 0.5}})])
    assert later.digest() == Config().digest(), "what becomes of a model does not decide it"
    assert resolve([Layer("a", {"train": {"seed": 1}})]).digest() != one.digest()


def test_unknown_recipe_lists_the_known():
    with pytest.raises(ConfigError, match="no recipe 'digit': did you mean digits"):
        recipe_layer("digit")


def test_an_empty_section_changes_nothing():
    layers = [Layer("recipe", {"train": {"steps": 5}}), Layer("a.yaml", {"train": None}), Layer("flag", {"train": {}})]
    assert resolve(layers).train.steps == 5


@pytest.mark.parametrize("workers", ["4..", "..4", "0", "a", "1..2..3"])
def test_malformed_worker_ranges_are_refused(workers):
    with pytest.raises(ConfigError, match="MIN"):
        resolve([Layer("test", {"ray": {"workers": workers}})])


def test_the_environment_is_a_layer_with_nulls_and_clear_errors(monkeypatch):
    monkeypatch.setenv("DDPM__TRAIN__LR", "0.25")
    monkeypatch.setenv("DDPM__GENERATE__STEPS", "null")
    config = resolve([Layer("recipe", {"generate": {"steps": 5}}), environment_layer()])
    assert (config.train.lr, config.generate.steps) == (0.25, None)
    monkeypatch.setenv("DDPM__MODEL__BLOCK_OUT_CHANNELS", "32,64")
    with pytest.raises(ConfigError, match=r"field \"model\".*JSON"):
        environment_layer()


@pytest.mark.parametrize(
    ("name", "text"), [("DDPM__TRIAN__LR", "did you mean train"), ("ddpm__LR", "names no section")]
)
def test_a_variable_of_no_section_is_refused(monkeypatch, name, text):
    monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigError, match=text) as caught:
        environment_layer()
    assert name in str(caught.value)


def test_a_run_of_an_older_program_differs_only_where_it_does():
    """A setting that was added since stands at its default there."""
    new = RunPlan(dataset_uri="d", dataset_digest="x", config=Config().model_dump(mode="json"))
    stored = {**new.config, "train": {k: v for k, v in new.config["train"].items() if k != "compile"}}
    old = new.model_copy(update={"config": stored})
    assert old.differences(new) == []
    faster = resolve([Layer("a", {"train": {"lr": 0.5, "compile": True}})])
    other = new.model_copy(update={"config": faster.model_dump(mode="json")})
    assert old.differences(other) == ["train.compile", "train.lr"]


@pytest.mark.parametrize("section", ["nightly", "schedule"])
def test_a_time_zone_has_one_name_and_one_refusal(section):
    with pytest.raises(ConfigError, match=rf"{section}\.time_zone: .*such as UTC or Europe/Berlin"):
        resolve([Layer("night.yaml", {section: {"time_zone": "Berlin"}})])
    resolved = resolve([Layer("night.yaml", {section: {"time_zone": "Europe/Berlin"}})])
    assert getattr(resolved, section).time_zone == "Europe/Berlin"

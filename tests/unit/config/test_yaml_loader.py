"""YAML: keys and text as written, numbers as in YAML 1.2, a repeated key refused with its lines."""

import json
import math

import pytest
import yaml

from pipeline.config.layers import RECIPES, Layer, resolve, to_yaml, yaml_layer
from pipeline.config.yaml_loader import read_manifest, read_text_values, read_yaml
from pipeline.errors import ConfigError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(
            (word, word)
            for word in ("no", "yes", "on", "off", "y", "0x1F", "0o17", "12:30", "1_000", "2024-01-02", "=")
        ),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("Null", None),
        ("", None),
        ("010", 10),
        ("-3", -3),
        ("1e-4", 1e-4),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ('"\\ud83d\\ude00"', "\N{GRINNING FACE}"),
    ],
)
def test_a_value_follows_the_core_schema(text, value):
    found = read_yaml(f"a: {text}".encode(), "f")["a"]
    assert found == value
    assert type(found) is type(value)


def test_keys_are_the_text_of_the_file():
    text = b"no: 1\nyes: 2\n0: 3\n1.0: 4\n~: 5\ntrue: 6\n010: 7\n"
    assert list(read_yaml(text, "f")) == ["no", "yes", "0", "1.0", "~", "true", "010"]
    assert read_text_values(b"0: no\n1: 1.0\n2: 007\n3: true\n4: null\n5:\n", "f") == {
        "0": "no",
        "1": "1.0",
        "2": "007",
        "3": "true",
        "4": None,
        "5": None,
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", "'a' is given twice, on lines 1 and 3"),
        ("a:\n  b: 1\n  'b': 2\n", "'b' is given twice, on lines 2 and 3"),
        ("- {x: 1, x: 2}\n", "'x' is given twice, on line 1"),
        ('{"a": {"b": 1,\n "b": 2}}', "'b' is given twice, on lines 1 and 2"),
        ("? [1, 2]\n: 3\n", "the key on line 1 is a list or mapping"),
        ("a: [", "not valid YAML"),
        ("a: !!python/name:os.system x", "not valid YAML"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        (b"a: \xff\xfe", "not valid YAML"),
    ],
)
@pytest.mark.parametrize("read", [read_yaml, read_text_values, read_manifest])
def test_a_repeated_key_and_invalid_yaml_are_one_line(read, text, says):
    with pytest.raises(ConfigError, match=says) as caught:
        read(text.encode() if isinstance(text, str) else text, "night.yaml")
    assert str(caught.value).startswith("night.yaml")
    assert "\n" not in str(caught.value)


def test_anchors_and_merge_keys_still_work_and_are_no_repetition():
    text = b"base: &b {x: 1, y: 2}\nother:\n  <<: *b\n  y: 3\n"
    assert read_yaml(text, "f")["other"] == {"x": 1, "y": 3}


def test_a_manifest_has_kubernetes_numbers():
    assert read_manifest(b"mode: 0644\nenabled: yes\n", "f") == {"mode": 0o644, "enabled": True}


def test_text_settings_keep_the_text_of_the_file_and_numbers_are_numbers(tmp_path):
    path = tmp_path / "night.yaml"
    path.write_text(
        "ingest: {label_map: {no: 007, 1.0: on, x: ~}, label_column: 1}\n"
        "train: {lr: 1e-4, steps: 1e3, flip: yes}\n"
        "submit: {env_vars: {A: 010}, resources: {slot: 1}, pip: [1.10]}\n"
    )
    config = resolve([yaml_layer(path)])
    assert config.ingest.label_map == {"no": "007", "1.0": "on", "x": None}
    assert (config.ingest.label_column, config.submit.env_vars, config.submit.pip) == ("1", {"A": "010"}, ("1.10",))
    assert (config.train.lr, config.train.steps, config.train.flip) == (1e-4, 1000, True)
    assert config.submit.resources == {"slot": 1.0}
    path.write_text(to_yaml(config))
    assert resolve([yaml_layer(path)]) == config


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_reads_as_before(path):
    assert resolve([yaml_layer(path)]).digest() == resolve([Layer("", yaml.safe_load(path.read_text()))]).digest()


def test_a_file_is_utf_8_in_any_locale_and_json_is_yaml(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_bytes("\ufeffingest: {label_map: {Katze: gr\u00fcn}}".encode())
    assert yaml_layer(path).values["ingest"]["label_map"] == {"Katze": "gr\u00fcn"}
    assert read_yaml(json.dumps({"\N{GRINNING FACE}": 1e-7}).encode(), "f") == {"\N{GRINNING FACE}": 1e-7}

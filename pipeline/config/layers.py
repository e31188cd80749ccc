"""Merges layers of settings into one `Config`: defaults < recipe < --config files in order < environment < flags.

Every layer keeps its origin, so that an error message can name the file or flag of the bad value.
"""

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, EnvSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError

from pipeline.config.base import ALL_FIELDS, Section
from pipeline.config.root import Config
from pipeline.config.yaml_loader import read_text_values, read_yaml
from pipeline.errors import ConfigError

_PREFIX = "DDPM__"
RECIPES = Path(__file__).parents[2] / "jobs" / "recipes"


@dataclass(frozen=True)
class Layer:
    """Settings from one origin, as a nested dictionary with the structure of `Config`."""

    origin: str
    values: Mapping[str, Any]


class _Settings(Config, BaseSettings):
    model_config = SettingsConfigDict(frozen=True, extra="forbid", env_prefix=_PREFIX, env_nested_delimiter="__")


def yaml_layer(path: Path) -> Layer:
    """The settings of one YAML file. Raises ConfigError when the file is missing, not YAML, or not a mapping."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}: {error.strerror}") from error
    values = read_yaml(data, str(path)) or {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of sections such as 'train:', not a {type(values).__name__}")
    return Layer(path.name, _with_text(Config, values, read_text_values(data, str(path)) or {}))


def _with_text(section: type[Section], values: dict[str, Any], written: dict[str, Any]) -> dict[str, Any]:
    """The values with the file's own text in text settings: `label_map: {cat: 007}` names the class "007"."""
    found = dict(values)
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            if isinstance(values.get(name), dict):
                found[name] = _with_text(kind, values[name], written[name])
        elif name in values and _is_text(kind):
            found[name] = written[name]
    return found


def _is_text(kind: Any) -> bool:
    """Whether a setting's type holds text and no numbers: str, str | None, tuple[str, ...], dict[str, str]."""
    parts = {part for part in _parts(kind) if part not in (None, type(None), Ellipsis)}
    return parts == {str}


def _parts(kind: Any) -> Iterator[Any]:
    inner = get_args(kind)
    if get_origin(kind) is Annotated:
        inner = inner[:1]
    if not inner:
        yield kind
    for part in inner:
        yield from _parts(part)


def recipe_layer(name: str) -> Layer:
    """The settings of a recipe that ships with the package. Raises ConfigError when there is no such recipe."""
    path = RECIPES / f"{name}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in RECIPES.glob("*.yaml"))
        raise ConfigError(f"no recipe {name!r}{_suggest(name, known)}; recipes: {', '.join(known)}")
    return Layer(f"recipe {name}", yaml_layer(path).values)


def environment_layer() -> Layer:
    """The settings of variables such as DDPM__TRAIN__LR=1e-4. Raises ConfigError for an unknown section."""
    for name in os.environ:
        if name.upper().startswith(_PREFIX):
            section = name[len(_PREFIX) :].partition("__")[0].lower()
            if section not in Config.model_fields:
                known = list(Config.model_fields)
                raise ConfigError(
                    f"environment: {name} names no section{_suggest(section, known)} (sections: {', '.join(known)})"
                )
    try:
        return Layer("environment", _with_nulls(EnvSettingsSource(_Settings)()))
    except SettingsError as error:
        raise ConfigError(f"environment: {error} (write lists as JSON, such as [32, 64])") from error


def flag_layer(argv: Sequence[str]) -> Layer:
    """The settings of dotted flags such as `--train.lr=1e-4`; commas separate list items. Raises ConfigError.

    The last flag of a setting wins. argparse's own list flags would join all of them.
    """
    last = {word.partition("=")[0]: word for word in argv}
    try:
        values = _source(list(last.values()))()
    except SettingsError as error:
        raise ConfigError(_flag_message(str(error))) from error
    return Layer("command line", _with_nulls(values))


def flags_help(program: str) -> str:
    """The help text of every dotted flag."""
    return str(_source([], program).root_parser.format_help())


def _source(argv: Sequence[str], program: str = "ddpm") -> CliSettingsSource[Any]:
    return CliSettingsSource(
        _Settings,
        cli_prog_name=program,
        cli_parse_args=list(argv),
        cli_exit_on_error=False,
        cli_avoid_json=True,
        cli_hide_none_type=True,
    )


def _flag_message(text: str) -> str:
    detail = text.removeprefix("error parsing CLI: ")
    unknown = detail.partition("unrecognized arguments: ")[2].split()
    if not unknown:
        return detail
    flags = [f"--{path}" for path in _paths(Config)]
    flag = unknown[0].partition("=")[0]
    return f"unknown flag {flag}{_suggest(flag, flags)} (--help lists every flag)"


def _paths(model: type[Section], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _paths(kind, f"{prefix}{name}.")
        else:
            yield prefix + name


def _sections(model: type[Section], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield prefix + name
            yield from _sections(kind, f"{prefix}{name}.")


_SECTIONS = frozenset(_sections(Config))


def _with_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_nulls(inner) for key, inner in value.items()}
    return None if value in ("null", "none") else value


def resolve(layers: Sequence[Layer]) -> Config:
    """Merge layers; a later layer overrides earlier ones. Raises one ConfigError naming every bad field and origin."""
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        _merge(merged, layer.values, layer.origin, origins)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        lines = [_describe(item, origins) for item in error.errors()]
        raise ConfigError("\n".join(lines)) from error


def _merge(into: dict[str, Any], values: Mapping[str, Any], origin: str, origins: dict[str, str], at: str = "") -> None:
    for key, value in values.items():
        path = f"{at}{key}"
        if isinstance(value, Mapping):
            inner = into.get(key)
            into[key] = dict(inner) if isinstance(inner, dict) else {}
            _merge(into[key], value, origin, origins, f"{path}.")
        elif value is not None or path not in _SECTIONS:
            into[key] = value  # an empty section in YAML is None and changes nothing
        origins[path] = origin


def _describe(item: Any, origins: Mapping[str, str]) -> str:
    keys = [str(part) for part in item["loc"]]
    path = ".".join(keys)
    origin = next((origins[p] for n in range(len(keys), 0, -1) if (p := ".".join(keys[:n])) in origins), "defaults")
    if item["type"] == "extra_forbidden":
        return f"{path}: unknown setting{_suggest(path, list(_paths(Config)))} (from {origin})"
    message = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if not path:
        return str(message)  # a rule across sections: the message names the fields
    if isinstance(item["input"], dict):
        return f"{path}: {message} (from {origin})"
    return f"{path}: {message} (got {item['input']!r}; from {origin})"


def _suggest(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f": did you mean {close[0]}?" if close else ""


def to_yaml(config: Section) -> str:
    """YAML of a section or configuration; `--config` reads the YAML of a `Config` back to an equal `Config`."""
    return yaml.safe_dump(
        config.model_dump(mode="json", context=ALL_FIELDS), sort_keys=False, default_flow_style=None, width=120
    )

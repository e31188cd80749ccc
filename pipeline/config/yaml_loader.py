"""Reads every YAML file of the user: a key given twice is refused, and YAML 1.1's surprises are left out.

Scalars follow the core schema of YAML 1.2, with decimal integers only: `no`, `on`, `0x1F` and `12:30` are text, `1e-4`
is a number. Keys are always the text of the file: `0`, `1.0`, `no`.
"""

import re
from collections.abc import Iterator
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from pipeline.errors import ConfigError

_TAG = "tag:yaml.org,2002:"
_NULL = (f"{_TAG}null", re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_MERGE = (f"{_TAG}merge", re.compile(r"<<$"), ["<"])
_DIGITS = list("-+0123456789")
_NUMBERS = (
    (f"{_TAG}bool", re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    (f"{_TAG}int", re.compile(r"[-+]?[0-9]+$"), _DIGITS),
    (
        f"{_TAG}float",
        re.compile(
            r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        [*_DIGITS, "."],
    ),
)


class _Manifest(yaml.SafeLoader):
    """YAML 1.1 as Kubernetes reads it, where 0644 is octal."""


class _Text(yaml.SafeLoader):
    """Every plain scalar is text, except null."""


class _Core(_Text):
    """The core schema of YAML 1.2 with decimal integers, and keys as written."""


def _text(loader: yaml.SafeLoader, node: ScalarNode) -> str:
    """A scalar's text. JSON writes characters beyond the first 65,536 as two escapes, which are joined here."""
    value = str(loader.construct_scalar(node))
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _integer(loader: yaml.SafeLoader, node: ScalarNode) -> int:
    return int(loader.construct_scalar(node))


for _loader, _resolvers in ((_Text, (_NULL, _MERGE)), (_Core, (_NULL, _MERGE, *_NUMBERS))):
    _loader.yaml_implicit_resolvers = {}
    for _tag, _pattern, _first in _resolvers:
        _loader.add_implicit_resolver(_tag, _pattern, _first)
    _loader.add_constructor(f"{_TAG}str", _text)
    _loader.add_constructor(f"{_TAG}int", _integer)


def read_yaml(data: bytes, name: str) -> Any:
    """The value of a YAML or JSON file. Raises ConfigError naming the file for invalid YAML and for a repeated key."""
    return _read(data, name, _Core)


def read_text_values(data: bytes, name: str) -> Any:
    """The same with every scalar as the text of the file, except null: `007` is "007". Raises ConfigError."""
    return _read(data, name, _Text)


def read_manifest(data: bytes, name: str) -> Any:
    """The value of a Kubernetes manifest. Raises ConfigError."""
    return _read(data, name, _Manifest)


def _read(data: bytes, name: str, kind: type[yaml.SafeLoader]) -> Any:
    try:
        loader = kind(data)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _check_keys(root, name)
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error


def _check_keys(root: Node, name: str) -> None:
    """Raise ConfigError for a key that one mapping holds twice; make every key the text of the file."""
    for mapping in _mappings(root):
        lines: dict[str, int] = {}
        for key, _ in mapping.value:
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode):
                raise ConfigError(f"{name}: the key on line {line} is a list or mapping: give a name")
            if key.value in lines:
                where = f"on lines {lines[key.value]} and {line}" if line != lines[key.value] else f"on line {line}"
                raise ConfigError(f"{name}: {key.value!r} is given twice, {where}: keep one of them")
            lines[key.value] = line
            if key.tag != f"{_TAG}merge":
                key.tag = f"{_TAG}str"


def _mappings(root: Node) -> Iterator[MappingNode]:
    """Every mapping below a node, once; an alias may point back."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, MappingNode):
            yield node
            waiting += [part for pair in reversed(node.value) for part in reversed(pair)]
        elif isinstance(node, SequenceNode):
            waiting += reversed(node.value)

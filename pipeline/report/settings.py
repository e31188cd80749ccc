"""Tables of settings that differ: from the defaults, from a recipe, or between runs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pipeline.report.render.content import Table

Settings = Mapping[str, Any]
SECTIONS: Final = ("model", "diffusion", "train", "ray")
"""Sections that apply to a run; the others belong to other verbs."""
_DECISIVE: Final = ("model", "diffusion", "train")
_UNSET: Final = "unset"


def nearest_recipe(settings: Settings, defaults: Settings, recipes: Mapping[str, Settings]) -> str | None:
    """The recipe with the fewest differences from a run's settings; None when the defaults have at most as many."""
    distance = {name: len(_differing([settings, recipe], _DECISIVE)) for name, recipe in recipes.items()}
    name = min(distance, key=lambda name: (distance[name], name), default=None)
    return name if name and distance[name] < len(_differing([settings, defaults], _DECISIVE)) else None


def changed_settings(name: str, settings: Settings, defaults: Settings, recipes: Mapping[str, Settings]) -> Table:
    """A run's settings that differ from the defaults or from the nearest recipe."""
    recipe = nearest_recipe(settings, defaults, recipes)
    against = [settings, *([recipes[recipe]] if recipe else []), defaults]
    paths = _differing(against, SECTIONS)
    title = f"Settings of {name} that differ from the defaults"
    columns = ("Setting", "This run", *([f"Recipe {recipe}"] if recipe else []), "Default")
    rows = tuple((path, *(_text(_value(of, path)) for of in against)) for path in paths)
    if not recipe:
        return Table(title, columns, rows, words=len(columns))
    own = [path for path in paths if _value(settings, path) != _value(recipes[recipe], path)]
    note = f"Differs from recipe {recipe} in {', '.join(own)}." if own else f"Identical to recipe {recipe}."
    return Table(title, columns, rows, words=len(columns), note=note)


def different_settings(runs: Mapping[str, Settings]) -> Table:
    """Settings that differ between runs, one column per run."""
    every = list(runs.values())
    paths = _differing(every, SECTIONS)
    rows = tuple((path, *(_text(_value(of, path)) for of in every)) for path in paths)
    note = "All other settings of model, diffusion, train and ray are equal." if rows else "No settings differ."
    return Table("Settings that differ", ("Setting", *runs), rows, words=1 + len(runs), note=note)


def _differing(every: Sequence[Settings], sections: Sequence[str]) -> list[str]:
    """Dotted names of settings with unequal values, in order of first appearance."""
    paths: dict[str, None] = {}
    for settings in every:
        for section in sections:
            paths |= dict.fromkeys(_leaves(settings.get(section, {}), section))
    return [path for path in paths if len({_text(_value(settings, path)) for settings in every}) > 1]


def _leaves(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}")
    else:
        yield path


def _value(settings: Settings, path: str) -> Any:
    value: Any = settings
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _text(value: Any) -> str:
    """A value as on the command line."""
    if value is None:
        return _UNSET
    if isinstance(value, list | tuple):
        return ",".join(map(_text, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value)

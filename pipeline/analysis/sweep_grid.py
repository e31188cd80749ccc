"""The grid of a sweep: settings and a model -> points, or one error that lists all that is wrong."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from pipeline.analysis.sweep_results import POINTS
from pipeline.config.generation import SAMPLERS, GenerateConfig, SweepConfig
from pipeline.config.root import Config
from pipeline.errors import ConfigError
from pipeline.generation.generator import network_evaluations
from pipeline.generation.make_plan import make_plan
from pipeline.generation.manifest import SamplePlan
from pipeline.model_store.load_model import find_model, weight_names
from pipeline.storage.store import Store

AXES = ("sampler", "steps", "weights")
"""Settings of `generate` that the sweep varies."""
ONLY_OF = {"eta": "ddim", "variance": "ddpm"}
"""Settings of one sampler; points of other samplers use the default."""


@dataclass(frozen=True)
class Point:
    """One samples folder of the sweep, with its settings and plan."""

    store: Store
    config: Config
    plan: SamplePlan
    evaluations: int  # of the network, per sample

    @property
    def name(self) -> str:
        return self.store.uri.rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.plan.sampler}, {self.plan.steps} steps, {self.plan.weights}"


def shared_settings(config: GenerateConfig) -> dict[str, object]:
    """Settings that all points share: all that decide samples, except AXES."""
    return config.model_dump(mode="json", exclude={*AXES, "price_per_hour"})


def make_points(config: Config, model: str, out: Store) -> tuple[Point, ...]:
    """Every combination of sampler, steps and weights, in the given order.

    model: URI of a checkpoint or model folder. Raises one ConfigError with all errors, DataError for a missing model.
    """
    names = weight_names(model, config.storage)
    storage, null_label = config.storage, config.generate.null_label
    found = {name: find_model(model, name, storage, null_label) for name in config.sweep.ema if name in names}
    timesteps = find_model(model, names[0], storage, null_label).diffusion.num_timesteps
    wrong = list(grid_errors(config.sweep, config.generate, timesteps, names))
    points: list[Point] = []
    axes = config.sweep.samplers, config.sweep.steps, config.sweep.ema
    for sampler, steps, ema in product(*axes) if not wrong else ():
        settings = _point_settings(config, sampler, steps, ema)
        try:
            plan = make_plan(settings.generate, found[ema])
        except ConfigError as error:
            wrong.append(str(error))
            continue
        store = out.child(POINTS, f"{sampler}-{steps}-{ema}")
        points.append(Point(store, settings, plan, network_evaluations(plan)))
    if wrong:
        raise ConfigError("\n".join(dict.fromkeys(wrong)))
    return tuple(points)


def grid_errors(
    sweep: SweepConfig, generate: GenerateConfig, num_timesteps: int, names: Sequence[str]
) -> Iterator[str]:
    """All errors of the grid. names: weights of the model."""
    for sampler in dict.fromkeys(sweep.samplers):
        if sampler not in SAMPLERS:
            yield f"sweep.samplers: no sampler {sampler!r}{_hint(sampler, SAMPLERS)}; there are {', '.join(SAMPLERS)}"
    for steps in dict.fromkeys(sweep.steps):
        if steps > num_timesteps:
            yield f"sweep.steps: {steps} are more than the {num_timesteps} timesteps of the model"
    for name in dict.fromkeys(sweep.ema):
        if name not in names:
            yield f"sweep.ema: the model has no weights {name!r}{_hint(name, names)}; it has {', '.join(names)}"
    for axis, values in sweep:
        twice = [str(value) for value in dict.fromkeys(values) if values.count(value) > 1]
        if twice:
            yield f"sweep.{axis}: {', '.join(twice)} more than once"
    for setting, sampler in ONLY_OF.items():
        if getattr(generate, setting) != _default(setting) and sampler not in sweep.samplers:
            yield f"generate.{setting} belongs to sampler {sampler!r}, which is not in sweep.samplers"


def _hint(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _default(setting: str) -> object:
    return GenerateConfig.model_fields[setting].default


def _point_settings(config: Config, sampler: str, steps: int, ema: str) -> Config:
    foreign = {setting: _default(setting) for setting, only in ONLY_OF.items() if only != sampler}
    axes = dict(zip(AXES, (sampler, steps, ema), strict=True))
    return config.model_copy(update={"generate": config.generate.model_copy(update={**foreign, **axes})})

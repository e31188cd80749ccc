"""Settings and a model -> the points of a sweep, or all reasons why there can be none."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.analysis.sweep_results import POINTS
from pipeline.config.generation import SAMPLERS, GenerateConfig, SweepConfig
from pipeline.config.root import Config
from pipeline.errors import ConfigError
from pipeline.generation.cost import network_evaluations
from pipeline.generation.make_plan import make_plan
from pipeline.generation.manifest import SamplePlan
from pipeline.model_store.load_model import find_model, weight_names
from pipeline.storage.store import Store

__all__ = ["Point", "make_points", "refusals", "shared_settings"]

AXES = ("sampler", "steps", "weights")
"""What `generate` says of a point is the sweep's, not the settings'."""
ONLY_OF = {"eta": "ddim", "variance": "ddpm"}
"""Settings of one sampler; the points of the others go without."""


@dataclass(frozen=True)
class Point:
    """One generation job: its folder, the settings that ask for it, and the plan that follows from them."""

    store: Store
    config: Config
    plan: SamplePlan
    evaluations: int  # of the network, a sample

    @property
    def name(self) -> str:
        return self.store.uri.rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.plan.sampler}, {self.plan.steps} steps, {self.plan.weights}"


def shared_settings(config: GenerateConfig) -> dict[str, object]:
    """What every point has: all that decides samples but AXES."""
    return config.model_dump(mode="json", exclude={*AXES, "price_per_hour"})


def make_points(config: Config, model: str, out: Store) -> tuple[Point, ...]:
    """Every sampler with every number of steps and every set of weights, in the order given.

    model: URI of a checkpoint or folder. Raises one ConfigError with all that is wrong, DataError without a model.
    """
    names = weight_names(model, config.storage)
    found = {name: find_model(model, name, config.storage) for name in config.sweep.ema if name in names}
    timesteps = find_model(model, names[0], config.storage).diffusion.num_timesteps
    wrong = list(refusals(config.sweep, config.generate, timesteps, names))
    points: list[Point] = []
    for sampler in config.sweep.samplers if not wrong else ():
        for steps in config.sweep.steps:
            for ema in config.sweep.ema:
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


def refusals(sweep: SweepConfig, generate: GenerateConfig, num_timesteps: int, names: Sequence[str]) -> Iterator[str]:
    """All that is wrong with the grid. names: of the weights that the model has."""
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
        if _is_set(generate, setting) and sampler not in sweep.samplers:
            yield f"generate.{setting} belongs to sampler {sampler!r}, which is not in sweep.samplers"


def _hint(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _default(setting: str) -> object:
    return GenerateConfig.model_fields[setting].default


def _is_set(generate: GenerateConfig, setting: str) -> bool:
    return bool(getattr(generate, setting) != _default(setting))


def _point_settings(config: Config, sampler: str, steps: int, ema: str) -> Config:
    foreign = {setting: _default(setting) for setting, only in ONLY_OF.items() if only != sampler}
    axes = dict(zip(AXES, (sampler, steps, ema), strict=True))
    return config.model_copy(update={"generate": config.generate.model_copy(update={**foreign, **axes})})

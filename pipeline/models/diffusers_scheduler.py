"""Converts diffusion settings to and from the fields of diffusers' DDPMScheduler.

Settings without a scheduler field (objective, loss weighting, the sigmoid schedule) are in the key `_diffusion`:
diffusers ignores keys with an underscore. If `_diffusion` is present, the public fields must agree with its values.
Sampling fields (clipping, thresholding, spacing of steps) are not read: a generation request sets them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline.config.model import DiffusionConfig
from pipeline.errors import ConfigError, DataError

DIFFUSERS_VERSION = "0.33.0"  # the oldest that reads these fields
SCHEDULER_FILE = "scheduler/scheduler_config.json"

_SCHEDULES = {"linear": "linear", "quadratic": "scaled_linear", "cosine": "squaredcos_cap_v2"}
_PREDICTIONS = {"epsilon": "epsilon", "x_0": "sample", "v": "v_prediction"}
_VARIANCES = {name: name for name in ("fixed_small", "fixed_large", "learned_range")}
# DDPMScheduler's defaults for absent fields.
_DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "variance_type": "fixed_small",
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
}

S = TypeVar("S", bound=BaseModel)


def validated(section: type[S], values: Any, file: str) -> S:
    """A `section` with these values. Raises DataError naming `file` and the first invalid field."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{file}: {'.'.join(map(str, first['loc'])) or 'settings'}: {first['msg']}") from error


def scheduler_fields(diffusion: DiffusionConfig, betas: Sequence[float] | None) -> dict[str, Any]:
    """DDPMScheduler's constructor fields. Raises ConfigError for settings that DDPMScheduler cannot run.

    betas: float64 [T], needed only for a schedule that diffusers has no name for.
    """
    if diffusion.prediction not in _PREDICTIONS:
        raise ConfigError(f"diffusion.prediction '{diffusion.prediction}': diffusers' scheduler has no such prediction")
    if diffusion.variance not in _VARIANCES:
        raise ConfigError("diffusion.variance 'learned': diffusers' scheduler only learns 'learned_range'")
    named = diffusion.schedule in _SCHEDULES
    if not named and (betas is None or len(betas) != diffusion.num_timesteps):
        raise ConfigError(f"diffusion.schedule '{diffusion.schedule}': diffusers has no name for it, so pass its betas")
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        "_diffusion": diffusion.model_dump(mode="json"),
        "num_train_timesteps": diffusion.num_timesteps,
        "beta_start": diffusion.beta_start,
        "beta_end": diffusion.beta_end,
        "beta_schedule": _SCHEDULES.get(diffusion.schedule, "linear"),
        "trained_betas": None if named or betas is None else [float(beta) for beta in betas],
        "variance_type": diffusion.variance,
        "prediction_type": _PREDICTIONS[diffusion.prediction],
        "rescale_betas_zero_snr": diffusion.zero_terminal_snr and named,
        "clip_sample": True,
        "clip_sample_range": 1.0,
    }


def diffusion_config(fields: dict[str, Any], file: str = SCHEDULER_FILE) -> DiffusionConfig:
    """The diffusion settings of a scheduler file from this program or diffusers. Raises DataError naming the field."""
    given = {name: fields.get(name, absent) for name, absent in _DEFAULTS.items()}
    if "_diffusion" in fields:
        diffusion = validated(DiffusionConfig, fields["_diffusion"], f"{file}: _diffusion")
        try:
            wanted = scheduler_fields(diffusion, given["trained_betas"])
        except ConfigError as error:
            raise DataError(f"{file}: _diffusion: {error}") from error
        for name, value in given.items():
            if wanted[name] != value:
                raise DataError(f"{file}: {name} is {value!r}, but _diffusion says {wanted[name]!r}")
        return diffusion
    if given["trained_betas"] is not None:
        raise DataError(f"{file}: trained_betas: a schedule without a name is not supported")
    variance = _ours(_VARIANCES, "variance_type", given, file)
    values = {
        "num_timesteps": given["num_train_timesteps"],
        "schedule": _ours(_SCHEDULES, "beta_schedule", given, file),
        "beta_start": given["beta_start"],
        "beta_end": given["beta_end"],
        "zero_terminal_snr": given["rescale_betas_zero_snr"],
        "prediction": _ours(_PREDICTIONS, "prediction_type", given, file),
        "variance": variance,
        "objective": "hybrid" if variance == "learned_range" else "simple",
    }
    return validated(DiffusionConfig, values, file)


def _ours(names: Mapping[str, str], field: str, given: Mapping[str, Any], file: str) -> str:
    for ours, theirs in names.items():
        if theirs == given[field]:
            return ours
    raise DataError(f"{file}: {field} is {given[field]!r}, not one of {sorted(names.values())}")

"""Settings of `ddpm nightly`: time limits, promotion gate and notification hooks."""

import re
from datetime import date
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, FiniteFloat, model_validator

from pipeline.config.base import Section
from pipeline.config.cron import TimeZone


def as_date(text: str) -> date:
    """Parse YYYY-MM-DD; other ISO 8601 forms are refused. Raises ValueError."""
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        raise ValueError(f"{text!r} is not a date: write YYYY-MM-DD")
    return date.fromisoformat(text)


def _check_name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", value):
        raise ValueError("must hold only a-z, 0-9, '.', '_' or '-', and start with a letter or digit")
    return value


class GateConfig(Section):
    """When a newly trained model replaces the champion.

    The gate compares kernel distances. Their estimator is unbiased for any number of images, so a small evaluation
    does not favour either model.
    """

    tolerance: float = Field(
        0.01,
        ge=0,
        description="accepted loss against the champion, as a share of the range from floor to ceiling; 0: the whole "
        "interval of the difference must be an improvement",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="confidence of the two-sided interval of the difference")
    ceiling: FiniteFloat | None = Field(
        None,
        description="without a champion: the kernel distance must be below this; unset: below those of blurred real "
        "images and of noise",
    )


class HookConfig(Section):
    """One notification of a night's outcome: a webhook, a command or a Prometheus text file.

    A webhook URL often holds a token, so the URL itself stays in the environment and the setting names the variable.
    """

    webhook_env: str | None = Field(
        None, description="name of the environment variable that holds the URL; the event is posted as JSON"
    )
    command: tuple[str, ...] | None = Field(
        None, min_length=1, description="program and arguments; the event is JSON on the program's stdin"
    )
    textfile: str | None = Field(None, description="path of a .prom file for Prometheus' textfile collector")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in (self.webhook_env, self.command, self.textfile)) != 1:
            raise ValueError("a hook is exactly one of webhook_env, command, textfile")
        if self.webhook_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.webhook_env):
            raise ValueError("webhook_env is the name of an environment variable that holds the URL, not the URL")
        return self


Hooks = tuple[HookConfig, ...]


class NightlyConfig(Section):
    """One night: snapshot, train from the champion, compare, promote or hold."""

    name: Annotated[str, AfterValidator(_check_name)] = Field(
        "model", description="name of the dataset, the model and the ledgers below the storage root"
    )
    root: str | None = Field(None, description="URI of the storage root: datasets, runs, models, samples and ledgers")
    source: str | None = Field(None, description="source of the images, as in ddpm ingest --source")
    time_zone: TimeZone = Field("UTC", description="time zone that decides the date of a night")
    steps: int | None = Field(
        None, ge=1, description="optimiser steps of a night that continues from the champion; unset: train.steps"
    )
    images: int | None = Field(None, ge=1, description="replaces steps: number of images to train on")
    train_seconds: float | None = Field(
        None, gt=0, description="time limit of training, seconds; training then ends with a checkpoint; unset: none"
    )
    max_seconds: float | None = Field(
        None, gt=0, description="time limit of one command, seconds; the next command continues; unset: none"
    )
    catch_up: Literal["none", "latest", "all"] = Field(
        "latest", description="missed nights to run now: none, the latest, or all in order"
    )
    overlap: Literal["skip", "queue", "replace"] = Field(
        "skip", description="while another night runs: exit, wait for its end, or stop it and take over"
    )
    queue_seconds: float = Field(4 * 3600.0, gt=0, description="longest wait for another night, seconds")
    retrain_unchanged: bool = Field(False, description="train even if neither data nor settings changed")
    keep_nights: int = Field(7, ge=1, description="number of newest trained nights whose run and samples are kept")
    on_success: Hooks = Field((), description="hooks called after a promotion")
    on_failure: Hooks = Field((), description="hooks called when a night failed or was stopped")
    on_hold: Hooks = Field((), description="hooks called when the gate kept the champion")
    on_skipped: Hooks = Field((), description="hooks called when nothing was to do, or another night was running")

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if self.steps is not None and self.images is not None:
            raise ValueError("give steps or images, not both")
        return self

"""Settings of nightly retraining: when, how long, what it takes to be champion, who is told."""

import re
from datetime import date
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, FiniteFloat, model_validator

from pipeline.config.base import Section
from pipeline.config.cron import TimeZone

__all__ = ["GateConfig", "HookConfig", "NightlyConfig", "as_date"]


def as_date(text: str) -> date:
    """Of YYYY-MM-DD, and of nothing else. Raises ValueError."""
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
        raise ValueError(f"{text!r} is no date: write YYYY-MM-DD")
    return date.fromisoformat(text)


def _check_name(value: str) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", value):
        raise ValueError("has a-z, 0-9, '.', '_' or '-', and begins with a letter or digit")
    return value


class GateConfig(Section):
    """What a challenger must show. Kernel distances: unbiased, so a small evaluation is no worse than a large one."""

    tolerance: float = Field(
        0.01,
        ge=0,
        description="how much worse than the champion is accepted, as a share of the way from floor to ceiling; 0: it "
        "must be better beyond doubt",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of the two-sided interval of the difference")
    ceiling: FiniteFloat | None = Field(
        None, description="without a champion: the value to be better than; unset: blurred real images and noise, both"
    )


class HookConfig(Section):
    """One way to tell about a night. URLs often hold a token, so a webhook's is in the environment and only named."""

    webhook_env: str | None = Field(None, description="environment variable with the URL that gets the event as JSON")
    command: tuple[str, ...] | None = Field(None, min_length=1, description="argv; the event is JSON on its stdin")
    textfile: str | None = Field(None, description="path of a .prom file for Prometheus' textfile collector")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in (self.webhook_env, self.command, self.textfile)) != 1:
            raise ValueError("a hook is one of webhook_env, command, textfile")
        if self.webhook_env is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.webhook_env):
            raise ValueError("webhook_env is the name of an environment variable: the URL itself is stored nowhere")
        return self


Hooks = tuple[HookConfig, ...]


class NightlyConfig(Section):
    """One night: snapshot, train from the champion, compare, promote or hold."""

    name: Annotated[str, AfterValidator(_check_name)] = Field("model", description="of dataset, models and nights")
    root: str | None = Field(None, description="storage root of datasets, runs, models, samples and ledgers")
    source: str | None = Field(None, description="images, as for ddpm ingest --source")
    time_zone: TimeZone = Field("UTC", description="whose date a night has")
    steps: int | None = Field(None, ge=1, description="of a night that goes on from the champion; unset: train.steps")
    images: int | None = Field(None, ge=1, description="instead of steps: images to train on")
    train_seconds: float | None = Field(None, gt=0, description="training ends with a checkpoint after this time")
    max_seconds: float | None = Field(None, gt=0, description="time limit of one invocation; the next one goes on")
    catch_up: Literal["none", "latest", "all"] = Field(
        "latest", description="nights missed: none is made up for, the latest one is, or all in order"
    )
    overlap: Literal["skip", "queue", "replace"] = Field(
        "skip", description="while another night runs: leave it, wait for it, or ask it to stop and take over"
    )
    queue_seconds: float = Field(4 * 3600.0, gt=0, description="longest wait for another night")
    retrain_unchanged: bool = Field(False, description="train although neither data nor settings changed")
    keep_nights: int = Field(7, ge=1, description="newest trained nights whose run and samples stay")
    on_success: Hooks = Field((), description="told when a model was promoted")
    on_failure: Hooks = Field((), description="told when a night failed or was stopped")
    on_hold: Hooks = Field((), description="told when the champion stays")
    on_skipped: Hooks = Field((), description="told when there was nothing to do, or another night was running")

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if self.steps is not None and self.images is not None:
            raise ValueError("give steps or images, not both")
        return self

"""Settings of what runs without a person: when, and which command."""

from typing import Annotated

from pydantic import AfterValidator, Field

from pipeline.cron import Cron
from pipeline.section import Section
from pipeline.zone import TimeZone

__all__ = ["DATE", "RegistryConfig", "ScheduleConfig"]

DATE = "{date}"
"""In a command: the calendar day, in the schedule's zone, of the run that is due."""


def _check_cron(value: str) -> str:
    Cron.parse(value)
    return " ".join(value.split())


def _check_command(value: tuple[str, ...]) -> tuple[str, ...]:
    if any(not word.isprintable() for word in value):
        raise ValueError("must not hold line breaks or control characters")
    return value


class ScheduleConfig(Section):
    """One section for every trigger: `ddpm schedule run`, and what `ddpm schedule render` writes."""

    name: str = Field("ddpm-nightly", pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$", description="of units, jobs, DAGs")
    cron: Annotated[str, AfterValidator(_check_cron)] = Field("0 3 * * *", description="minute hour day month weekday")
    time_zone: TimeZone = Field("UTC", description="whose clock `cron` is read by")
    grace_hours: float = Field(6.0, gt=0, le=24 * 7, description="a run that could not start on time still starts")
    command: Annotated[tuple[str, ...], AfterValidator(_check_command)] = Field(
        ("ddpm", "nightly", "--date", DATE), min_length=1, description="words; {date} is the day of the run"
    )
    rayjob: str = Field(
        "deploy/kuberay/rayjob.yaml", description="RayJob manifest that Kubernetes targets start, with `command` in it"
    )
    kubectl_image: str = Field("registry.k8s.io/kubectl:v1.34.1", description="what the k8s-cronjob target runs")


class RegistryConfig(Section):
    """Who else is told of versions and champions."""

    mlflow: str | None = Field(
        None, min_length=1, description="registered model in MLflow that follows the registry; its server: environment"
    )

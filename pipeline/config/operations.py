"""Settings of what runs without a person, or on another machine: when, which command, with what."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from pipeline.config.base import Section
from pipeline.config.cron import Cron, TimeZone

__all__ = ["CREDENTIAL_NAME", "DATE", "RegistryConfig", "ScheduleConfig", "SubmitConfig"]

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


CREDENTIAL_NAME = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|(API|ACCESS|PRIVATE)_?KEY", re.IGNORECASE)
"""Variables whose value is a secret."""


def _check_environment(value: dict[str, str]) -> dict[str, str]:
    bad = [name for name in value if CREDENTIAL_NAME.search(name)]
    if bad:
        raise ValueError(f"{', '.join(bad)}: credentials are not sent, the cluster has its own")
    return value


def _check_address(value: str | None) -> str | None:
    if value is None:
        return None
    url = (value if "://" in value else f"http://{value}").rstrip("/")
    if value in ("auto", "local") or not re.fullmatch(r"https?://[^/@\s]+(/\S*)?", url):
        raise ValueError("must be the URL of the head's dashboard, such as http://127.0.0.1:8265")
    return url


class SubmitConfig(Section):
    """What `ddpm submit` gives a job beside its command line."""

    address: Annotated[str | None, AfterValidator(_check_address)] = Field(
        None, description="URL of the dashboard (default: $RAY_API_SERVER_ADDRESS, http://127.0.0.1:8265)"
    )
    num_cpus: float = Field(0, ge=0, description="CPUs reserved for the driver; with none of these four it is the head")
    num_gpus: float = Field(0, ge=0, description="GPUs reserved for the driver, beside those of its workers")
    memory: int = Field(0, ge=0, description="bytes reserved for the driver")
    resources: dict[str, float] = Field({}, description="custom resources reserved for the driver, by name")
    pip: tuple[str, ...] = Field((), description="requirements installed on the cluster for this job alone")
    env_vars: Annotated[dict[str, str], AfterValidator(_check_environment)] = Field(
        {}, description="environment variables of the job; credentials are refused"
    )
    include: tuple[str, ...] = Field((), description="files and folders below this folder that the job reads")
    stop_seconds: int = Field(60, ge=1, description="what a job that is stopped has for its last checkpoint")

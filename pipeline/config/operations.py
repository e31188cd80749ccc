"""Settings of `ddpm schedule`, `ddpm submit` and of the model registry."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from pipeline.config.base import Section
from pipeline.config.cron import Cron, TimeZone

DATE = "{date}"
"""Placeholder in schedule.command: the calendar day of the run in the schedule's time zone."""


def _check_cron(value: str) -> str:
    Cron.parse(value)
    return " ".join(value.split())


def _check_command(value: tuple[str, ...]) -> tuple[str, ...]:
    if any(not word.isprintable() for word in value):
        raise ValueError("must not hold line breaks or control characters")
    return value


class ScheduleConfig(Section):
    """A repeated command: for `ddpm schedule run` and for the files that `ddpm schedule render` writes."""

    name: str = Field(
        "ddpm-nightly",
        pattern=r"^[a-z]([a-z0-9-]{0,38}[a-z0-9])?$",
        description="name of the systemd unit, cron job or DAG",
    )
    cron: Annotated[str, AfterValidator(_check_cron)] = Field(
        "0 3 * * *", description="cron expression: minute, hour, day of month, month, day of week"
    )
    time_zone: TimeZone = Field("UTC", description="time zone of `cron`")
    grace_hours: float = Field(
        6.0, gt=0, le=24 * 7, description="how late a missed run may still start, hours; at most a week"
    )
    command: Annotated[tuple[str, ...], AfterValidator(_check_command)] = Field(
        ("ddpm", "nightly", "--date", DATE),
        min_length=1,
        description="program and arguments; {date} becomes the day of the run",
    )
    rayjob: str = Field(
        "deploy/kuberay/rayjob.yaml",
        description="path of the RayJob manifest that the Kubernetes targets start with `command` as entrypoint",
    )
    kubectl_image: str = Field(
        "registry.k8s.io/kubectl:v1.34.1", description="container image with kubectl for the k8s-cronjob target"
    )


class RegistryConfig(Section):
    """Copies of the model registry in other systems."""

    mlflow: str | None = Field(
        None,
        min_length=1,
        description="name of the registered MLflow model that mirrors versions and champion; $MLFLOW_TRACKING_URI "
        "gives the server",
    )


CREDENTIAL_NAME = re.compile(r"SECRET|TOKEN|PASSW|CREDENTIAL|(API|ACCESS|PRIVATE)_?KEY", re.IGNORECASE)
"""Names of environment variables whose value is a secret."""


def _check_environment(value: dict[str, str]) -> dict[str, str]:
    bad = [name for name in value if CREDENTIAL_NAME.search(name)]
    if bad:
        raise ValueError(f"{', '.join(bad)}: credentials are not sent; give the cluster its own")
    return value


def _check_address(value: str | None) -> str | None:
    if value is None:
        return None
    url = (value if "://" in value else f"http://{value}").rstrip("/")
    if value in ("auto", "local") or not re.fullmatch(r"https?://[^/@\s]+(/\S*)?", url):
        raise ValueError("must be the URL of the Ray dashboard, such as http://127.0.0.1:8265")
    return url


class SubmitConfig(Section):
    """Resources and environment of a Ray job that `ddpm submit` creates."""

    address: Annotated[str | None, AfterValidator(_check_address)] = Field(
        None, description="URL of the Ray dashboard (default: $RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265)"
    )
    num_cpus: float = Field(
        0,
        ge=0,
        description="CPUs reserved for the driver; the driver runs on the head node if num_cpus, num_gpus, memory and "
        "resources are all unset",
    )
    num_gpus: float = Field(0, ge=0, description="GPUs reserved for the driver, in addition to those of its workers")
    memory: int = Field(0, ge=0, description="memory reserved for the driver, bytes")
    resources: dict[str, float] = Field({}, description="custom Ray resources reserved for the driver, by name")
    pip: tuple[str, ...] = Field((), description="pip requirements installed on the cluster for this job only")
    env_vars: Annotated[dict[str, str], AfterValidator(_check_environment)] = Field(
        {}, description="environment variables of the job; credentials are refused"
    )
    include: tuple[str, ...] = Field(
        (), description="files and folders below the current folder to send along with the job"
    )
    stop_seconds: int = Field(60, ge=1, description="time from SIGTERM to SIGKILL when a job is stopped, seconds")

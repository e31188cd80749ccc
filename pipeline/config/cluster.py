"""Settings of the Ray cluster and of the workers on it."""

import os
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from pipeline.config.base import Section


def _check_workers(value: str) -> str:
    bounds = value.split("..", 1)
    if not all(bound.isdigit() and int(bound) >= 1 for bound in bounds) or int(bounds[0]) > int(bounds[-1]):
        raise ValueError("must be N or MIN..MAX with 1 <= MIN <= MAX")
    return value


Workers = Annotated[str, BeforeValidator(str), AfterValidator(_check_workers)]


def _address_from_environment() -> str:
    """RAY_ADDRESS may also hold the URL of a dashboard, for `ray job` and `ddpm submit`; no cluster is joined by it."""
    address = os.environ.get("RAY_ADDRESS", "")
    return "local" if not address or "://" in address.removeprefix("ray://") else address


class RayConfig(Section):
    """The Ray cluster and how many of its processes to use."""

    address: str = Field(
        default_factory=_address_from_environment,
        description="'local': start a cluster for this command; 'auto' or HOST:PORT: join one; unset: join "
        "$RAY_ADDRESS where it is set, as in every Ray job, else 'local'",
    )
    workers: Workers = Field("1", description="training workers or generation actors: N, or MIN..MAX for elastic")
    use_gpu: bool = Field(False, description="reserve one GPU for each worker or actor")
    num_cpus: int | None = Field(
        None, ge=1, description="logical CPUs of a local cluster; unset: as many as the command needs"
    )
    max_failures: int = Field(3, ge=-1, description="worker or actor failures tolerated by one command; -1: no limit")
    resize_seconds: float = Field(
        60.0, gt=0, description="training with MIN..MAX workers: seconds between checks for a better worker count"
    )

    @property
    def min_workers(self) -> int:
        return int(self.workers.partition("..")[0])

    @property
    def max_workers(self) -> int:
        return int(self.workers.rpartition("..")[2])

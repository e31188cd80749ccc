"""Ray's Jobs API at one dashboard: its token, its answers, and its failures as errors of ours."""

import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from pipeline.errors import ConfigError, PipelineError
from pipeline.operations.cluster_info import answers
from pipeline.operations.submission import first_line

__all__ = ["Jobs", "State", "dashboard_address", "find_token", "ray_version"]

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ANSWER_SECONDS = 30.0
AGENT_SECONDS, AGENT_POLL_SECONDS = 60.0, 1.0
_NO_AGENT = "No available agent"
_OVERRIDE = "RAY_API_SERVER_ADDRESS"


class State(NamedTuple):
    """What the cluster says of one job; `status` as Ray names it."""

    status: str
    message: str | None
    driver_exit_code: int | None

    @property
    def ended(self) -> bool:
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


def dashboard_address(given: str | None, environment: Mapping[str, str]) -> str:
    """`submit.address`, or what Ray's own command line reads, when that is a URL."""
    named = (environment.get(name, "") for name in (_OVERRIDE, "RAY_ADDRESS"))
    urls = (url for url in named if url.startswith(("http://", "https://")))
    return (given or next(urls, DEFAULT_ADDRESS)).rstrip("/")


def find_token(environment: Mapping[str, str]) -> str | None:
    """RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token, as Ray looks for it.

    None when there is none and RAY_AUTH_MODE does not ask for one, or is `disabled`. Raises ConfigError.
    """
    mode = environment.get("RAY_AUTH_MODE", "").lower()
    if mode == "disabled":
        return None
    if token := environment.get("RAY_AUTH_TOKEN", "").strip():
        return token
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        if named:
            raise ConfigError(f"RAY_AUTH_TOKEN_PATH: cannot read {path}: {error}") from error
    if not token and mode == "token":
        raise ConfigError(f"RAY_AUTH_MODE is token, but there is none: set RAY_AUTH_TOKEN, or write it to {path}")
    return token or None


def ray_version(address: str, token: str | None) -> str:
    """The cluster's Ray. Raises ConfigError when nothing answers, or no dashboard, or one that wants another token."""
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    away = f"no dashboard answers at {address}: start the head, open a tunnel (ray dashboard CLUSTER.yaml), or name it"
    if not answers(f"{parts.hostname}:{port}"):
        raise ConfigError(f"{away} with --submit.address")
    request = urllib.request.Request(f"{address}/api/version", headers=_headers(token))
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as reply:
            return str(json.load(reply)["ray_version"])
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            raise ConfigError(_refused(address, error.code, token)) from error
        raise ConfigError(f"what answers at {address} is no dashboard of Ray's (HTTP status {error.code})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"what answers at {address} is no dashboard of Ray's") from error
    except OSError as error:
        raise ConfigError(f"{away} with --submit.address ({error})") from error


def _headers(token: str | None) -> dict[str, str]:
    return {} if token is None else {"Authorization": f"Bearer {token}"}


def _refused(address: str, status: int, token: str | None) -> str:
    how = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
    if status == 401 or token is None:
        off = " (RAY_AUTH_MODE is disabled here)" if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled" else ""
        return f"the cluster at {address} asks for a token{off}: set RAY_AUTH_MODE=token and {how}"
    return f"the cluster at {address} refuses this token: put the head's into {how}"


class Jobs:
    """The jobs of one cluster. Every call raises ConfigError for a refused token, PipelineError when it went wrong."""

    def __init__(self, address: str, token: str | None) -> None:
        self.address, self._token = address, token
        logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)
        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
        with self._answering(), _named(address):
            self._client = JobSubmissionClient(address, headers=_headers(token))

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            raise ConfigError(_refused(self.address, 403 if "failed" in error.message else 401, self._token)) from error
        except (RuntimeError, ValueError, OSError) as error:
            raise PipelineError(f"the dashboard at {self.address}: {_reason(error)}") from error

    def all(self) -> list[tuple[str, str]]:
        """(submission id, status) of every job that was submitted."""
        with self._answering():
            return [(str(job.submission_id), str(job.status)) for job in self._client.list_jobs() if job.submission_id]

    def submit(self, job_id: str, entrypoint: str, runtime_env: Mapping[str, Any], **options: Any) -> bool:
        """False when there is a job of that id: somebody was quicker. Uploads a local `working_dir`.

        A dashboard answers some seconds before its cluster can run a job; that long it is asked again.
        """
        deadline = time.monotonic() + AGENT_SECONDS
        with self._answering():
            while True:
                try:
                    self._client.submit_job(
                        submission_id=job_id, entrypoint=entrypoint, runtime_env=dict(runtime_env), **options
                    )
                except RuntimeError as error:
                    if f"{job_id} already exists" in str(error):
                        return False
                    if _NO_AGENT not in str(error) or time.monotonic() >= deadline:
                        raise
                    time.sleep(AGENT_POLL_SECONDS)
                else:
                    return True

    def state(self, job_id: str) -> State:
        with self._answering():
            info = self._client.get_job_info(job_id)
            return State(str(info.status), info.message, info.driver_exit_code)

    def logs(self, job_id: str) -> str:
        with self._answering():
            return str(self._client.get_job_logs(job_id))

    def stop(self, job_id: str) -> None:
        with self._answering():
            self._client.stop_job(job_id)

    def tail(self, job_id: str) -> AsyncIterator[str]:
        """Pieces of the log from its beginning, until the job ends; raises what aiohttp raises."""
        pieces: AsyncIterator[str] = self._client.tail_job_logs(job_id)
        return pieces


@contextmanager
def _named(address: str) -> Iterator[None]:
    """Ray prefers its variables to the address that it is given."""
    before = os.environ.get(_OVERRIDE)
    os.environ[_OVERRIDE] = address
    try:
        yield
    finally:
        os.environ.pop(_OVERRIDE)
        if before is not None:
            os.environ[_OVERRIDE] = before


def _reason(error: Exception) -> str:
    """One line: of a traceback that the cluster sent, its last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" .")]
    return lines[-1] if "Traceback" in str(error) and lines else first_line(str(error))

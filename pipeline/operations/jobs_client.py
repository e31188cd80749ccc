"""Client of Ray's Jobs API: finds address and token, and maps failures to the errors of `pipeline.errors`."""

import logging
import os
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from pipeline.errors import ConfigError, PipelineError
from pipeline.operations.cluster_info import is_listening
from pipeline.operations.submission import first_line

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ANSWER_SECONDS = 60.0
AGENT_SECONDS, AGENT_POLL_SECONDS = 60.0, 1.0
_NO_AGENT = "No available agent"
_OVERRIDE = "RAY_API_SERVER_ADDRESS"


class JobState(NamedTuple):
    """State of one job. status: Ray's JobStatus."""

    status: str
    message: str | None
    driver_exit_code: int | None

    @property
    def ended(self) -> bool:
        return self.status in ("STOPPED", "SUCCEEDED", "FAILED")


def dashboard_address(given: str | None, environment: Mapping[str, str]) -> str:
    """`submit.address`, else the first URL in the variables of Ray's own command line, else this machine."""
    named = (environment.get(name, "") for name in (_OVERRIDE, "RAY_ADDRESS"))
    urls = (url for url in named if url.startswith(("http://", "https://")))
    return (given or next(urls, DEFAULT_ADDRESS)).rstrip("/")


def find_token(environment: Mapping[str, str]) -> str | None:
    """The token, searched as Ray does: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

    None when RAY_AUTH_MODE is `disabled`, or no token exists. Raises ConfigError when RAY_AUTH_MODE is `token` and no
    token exists, and for an unreadable RAY_AUTH_TOKEN_PATH.
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
        raise ConfigError(
            f"RAY_AUTH_MODE is token, but no token exists: set RAY_AUTH_TOKEN, or write the token to {path}"
        )
    return token or None


def _refused(address: str, status: int, token: str | None) -> str:
    how = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
    if status == 401 or token is None:
        off = " (RAY_AUTH_MODE is disabled here)" if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled" else ""
        return f"the cluster at {address} requires a token{off}: set RAY_AUTH_MODE=token and {how}"
    return f"the cluster at {address} refuses this token: put the token of the head into {how}"


class _Client(JobSubmissionClient):  # type: ignore[misc]
    """Ray's client, which has no timeout of its own; a half-open tunnel would block it forever."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=ANSWER_SECONDS, **options)


class JobsClient:
    """The jobs of one cluster. Every call raises ConfigError for a refused token, PipelineError for other failures."""

    def __init__(self, address: str, token: str | None) -> None:
        """Connect to the dashboard at `address`. Raises ConfigError when none answers there."""
        self.address, self._token = address, token
        logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)
        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
        if not is_listening(address):
            advice = "start the head, open a tunnel (ray dashboard CLUSTER.yaml), or set --submit.address"
            raise ConfigError(f"no dashboard answers at {address}: {advice}")
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        try:
            with self._mapped_errors(), _ray_address(address):
                self._client = _Client(address, headers=headers)
        except (PipelineError, KeyError, TypeError) as error:  # no JSON object with a version of Ray
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"the server at {address} is no Ray dashboard: {error}") from error

    @property
    def ray_version(self) -> str:
        """Ray version of the cluster, as read when connecting."""
        return str(self._client._server_ray_version)

    @contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        try:
            yield
        except AuthenticationError as error:
            raise ConfigError(_refused(self.address, 403 if "failed" in error.message else 401, self._token)) from error
        except (RuntimeError, ValueError, OSError) as error:
            raise PipelineError(f"the dashboard at {self.address}: {_reason(error)}") from error

    def all(self) -> list[tuple[str, str]]:
        """(submission id, status) of every submitted job."""
        with self._mapped_errors():
            return [(str(job.submission_id), str(job.status)) for job in self._client.list_jobs() if job.submission_id]

    def submit(self, job_id: str, entrypoint: str, runtime_env: Mapping[str, Any], **options: Any) -> bool:
        """False when a job with this id exists already. Uploads a local `working_dir`.

        Retries for AGENT_SECONDS while the cluster has no agent: a new dashboard answers seconds before its agents.
        """
        deadline = time.monotonic() + AGENT_SECONDS
        with self._mapped_errors():
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

    def state(self, job_id: str) -> JobState:
        with self._mapped_errors():
            info = self._client.get_job_info(job_id)
            return JobState(str(info.status), info.message, info.driver_exit_code)

    def logs(self, job_id: str) -> str:
        with self._mapped_errors():
            return str(self._client.get_job_logs(job_id))

    def stop(self, job_id: str) -> None:
        with self._mapped_errors():
            self._client.stop_job(job_id)

    def tail(self, job_id: str) -> AsyncIterator[str]:
        """Chunks of the log from its beginning until the job ends. Raises errors of aiohttp."""
        pieces: AsyncIterator[str] = self._client.tail_job_logs(job_id)
        return pieces


@contextmanager
def _ray_address(address: str) -> Iterator[None]:
    """Ray's client reads this variable before its argument."""
    before = os.environ.get(_OVERRIDE)
    os.environ[_OVERRIDE] = address
    try:
        yield
    finally:
        os.environ.pop(_OVERRIDE)
        if before is not None:
            os.environ[_OVERRIDE] = before


def _reason(error: Exception) -> str:
    """One line of an error; of a traceback sent by the cluster, the last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" .")]
    return lines[-1] if "Traceback" in str(error) and lines else first_line(str(error))

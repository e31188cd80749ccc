"""Driver of `ddpm submit VERB ...`: runs a verb as a Ray job and follows its log to its exit code.

One job a day and configuration: a repeated command attaches to a running job instead of starting a second one.
"""

import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

import pipeline
from pipeline.config.base import digest_of
from pipeline.config.nightly import as_date
from pipeline.config.operations import SubmitConfig
from pipeline.errors import ConfigError, PipelineError
from pipeline.operations import submission
from pipeline.operations.cluster_info import installed_versions
from pipeline.operations.jobs_client import JobsClient, JobState, dashboard_address, find_token
from pipeline.operations.log_follower import LogFollower
from pipeline.operations.package import UPLOAD_LIMIT, job_files, sizes_of, zipped
from pipeline.operations.submission import SubmittedJob

logger = logging.getLogger("ddpm.operations")

FILES = "submitted"
"""Folder in the package for the configuration files of the command line."""
PROBE_SECONDS, PIP_SECONDS = 180.0, 1200.0  # longest wait for the probe job, without and with pip packages
POLL_SECONDS = 0.5
_MARK = "ddpm-versions"
_PROBE = (
    "import importlib.metadata as m, json, platform; "
    "f = {(d.metadata['Name'] or '').lower(): d.version for d in m.distributions()}; "
    f"print('{_MARK}', json.dumps(dict(python=platform.python_version(), ray=f.get('ray'), torch=f.get('torch'))))"
)


def _to_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _ask_after_interrupt() -> Literal["detach", "stop", "follow"]:
    """Ask the user what Ctrl-C should do. Without a terminal, or on a second Ctrl-C: detach."""
    if not sys.stdin.isatty():
        return "detach"
    try:
        sys.stderr.write("\nd = detach (the job continues), s = stop the job, any other key = keep following: ")
        sys.stderr.flush()
        answer = sys.stdin.readline()[:1].lower()
    except KeyboardInterrupt:
        return "detach"
    return "stop" if answer == "s" else "detach" if answer in ("d", "") else "follow"


@dataclass(frozen=True)
class _Request:
    """One submission to the Jobs API. options: metadata and resources of the entrypoint; package: zip."""

    entrypoint: str
    runtime_env: Mapping[str, Any]
    options: Mapping[str, Any]
    package: bytes


def submit(job: SubmittedJob, day: str | None, *, again: bool, detach: bool, dry_run: bool) -> dict[str, Any]:
    """Send the job of this command and day, or attach to the running one; `exit_code` is the verb's own.

    day: of the submission id, YYYY-MM-DD; None: today in `nightly.time_zone`.
    Raises ConfigError before anything is sent: local paths, a package that is too large, credentials in the package,
    no dashboard, a refused token, incompatible versions of Python or Ray.
    """
    base = submission.submission_id(job.verb, job.digest(), _day(day, job.config.nightly.time_zone))
    address, token = dashboard_address(job.config.submit.address, os.environ), find_token(os.environ)
    request = _request(job, base, token)
    if dry_run:
        size = f"{len(request.package) / submission.MIB:.2f} MiB"
        summary = f"would submit {base} to {address}, {size}: {request.entrypoint}"
        return {"submission_id": base, "address": address, "entrypoint": request.entrypoint, "summary": summary}
    jobs = JobsClient(address, token)
    last = submission.newest_attempt(base, jobs.all())
    action = submission.decision(last, again)
    if last is not None and action == "done":
        done = f"already done: {last.id} (--again runs it anew; ray job logs {last.id} --address {address})"
        return {"submission_id": last.id, "address": address, "status": last.status, "summary": done}
    if last is not None and action == "attach":
        return _follow(jobs, last.id, attached=True, detach=detach)
    _check_versions(jobs, job.config.submit)
    job_id = submission.next_id(base, last)
    started = _send(jobs, job_id, request)
    if started and last is not None:
        logger.info("%s %s: run anew", last.id, last.status.lower())
    return _follow(jobs, job_id, attached=not started, detach=detach)


def _day(given: str | None, zone: str) -> date:
    try:
        return datetime.now(ZoneInfo(zone)).date() if given is None else as_date(given)
    except ValueError as error:
        raise ConfigError(f"--date: {error}") from error


def _request(job: SubmittedJob, base: str, token: str | None) -> _Request:
    settings, here = job.config.submit, Path.cwd()
    submission.refuse_local_paths(job, here, settings.include)
    files = job_files(Path(pipeline.__file__).parents[1], here, settings.include)
    submission.refuse_package(sizes_of(files.items()), UPLOAD_LIMIT)
    contents = {name: path.read_bytes() for name, path in files.items()}
    contents |= {f"{FILES}/{name}": text for name, text in job.files.items()}
    entrypoint = submission.entrypoint(job, FILES)
    variables = {**settings.env_vars, "RAY_JOB_STOP_WAIT_TIME_S": str(settings.stop_seconds)}
    runtime_env = {"env_vars": variables, **_pip(settings)}
    texts = {
        "the command line": entrypoint.encode(),
        "the submit section": json.dumps(runtime_env, ensure_ascii=False).encode(),
        **contents,
    }
    submission.refuse_credentials(texts, submission.credentials(os.environ, token))
    resources = settings.model_dump(include={"num_cpus", "num_gpus", "memory", "resources"})
    metadata = {
        "ddpm_verb": job.verb,
        "ddpm_digest": job.digest(),
        "ddpm_version": pipeline.__version__,
        "job_name": base,
    }
    options = {"metadata": metadata, **{f"entrypoint_{name}": value for name, value in resources.items() if value}}
    return _Request(entrypoint, runtime_env, options, zipped(contents))


def _pip(settings: SubmitConfig) -> dict[str, Any]:
    return {"pip": list(settings.pip)} if settings.pip else {}


def _send(jobs: JobsClient, job_id: str, request: _Request) -> bool:
    """False when a concurrent submit created the job first."""
    with tempfile.TemporaryDirectory(prefix="ddpm-submit-") as folder:
        package = Path(folder) / "job.zip"
        package.write_bytes(request.package)
        env = {**request.runtime_env, "working_dir": str(package)}
        return jobs.submit(job_id, request.entrypoint, env, **request.options)


def _follow(jobs: JobsClient, job_id: str, *, attached: bool, detach: bool) -> dict[str, Any]:
    url = jobs.address
    attach = f"the same command attaches; to stop it: ray job stop {job_id} --address {url}"
    result = {"submission_id": job_id, "address": url, "attached": attached}
    if detach:
        return {**result, "summary": f"{'running' if attached else 'submitted'}: {job_id} ({attach})"}
    logger.info("%s %s at %s", "attached to" if attached else "submitted", job_id, url)
    follower = LogFollower(jobs, job_id, _to_stdout)
    while True:
        try:
            state = follower.run()
        except KeyboardInterrupt:
            answer = _ask_after_interrupt()
            if answer == "stop":
                is_pending = jobs.state(job_id).status == "PENDING"
                jobs.stop(job_id)
                how = "Ray stops a pending job only once it starts" if is_pending else "it may write a last checkpoint"
                logger.info("stopping %s: %s", job_id, how)
            elif answer == "detach":
                logger.info("detached, %s continues (%s)", job_id, attach)
                return {**result, "status": "RUNNING", "exit_code": 130}
        else:
            return {**result, **_outcome(job_id, state)}


def _outcome(job_id: str, state: JobState) -> dict[str, Any]:
    code = submission.exit_code(state.status, state.driver_exit_code, state.message)
    if state.status == "FAILED" and state.driver_exit_code is None:  # the verb did not run, so it logged no error
        logger.error("%s: %s", job_id, submission.first_line(state.message))
    logger.info("%s %s%s", job_id, state.status.lower(), f", exit code {code}" if code else "")
    return {"status": state.status, "exit_code": code}


def _check_versions(jobs: JobsClient, settings: SubmitConfig) -> None:
    """Compares Ray as reported by the dashboard, then Python and torch as reported by a probe job."""
    here = installed_versions()
    submission.version_differences({"ray": here["ray"]}, {"ray": jobs.ray_version})
    there = _probe_versions(jobs, settings)
    there["torch"] = (there.get("torch") or "").partition("+")[0] or None
    for warning in submission.version_differences(here, there):
        logger.warning("%s", warning)


def _probe_versions(jobs: JobsClient, settings: SubmitConfig) -> dict[str, str | None]:
    """Versions printed by the last successful probe with this `submit.pip` on the cluster, or by a new probe."""
    env = _pip(settings)
    base = f"{_MARK}-{digest_of([_PROBE, env])[:10]}"
    last = submission.newest_attempt(base, jobs.all())
    if last is not None and submission.decision(last, again=False) != "start":
        job_id = last.id
    else:
        job_id = submission.next_id(base, last)
        jobs.submit(job_id, f'python -c "{_PROBE}"', env)
    state = _wait(jobs, job_id, PIP_SECONDS if settings.pip else PROBE_SECONDS)
    for line in jobs.logs(job_id).splitlines() if state.status == "SUCCEEDED" else ():
        if line.startswith(f"{_MARK} {{"):
            found: dict[str, str | None] = json.loads(line.removeprefix(_MARK))
            return found
    raise ConfigError(f"no job starts on the cluster at {jobs.address}: {submission.first_line(state.message)}")


def _wait(jobs: JobsClient, job_id: str, seconds: float) -> JobState:
    deadline = time.monotonic() + seconds
    while not (state := jobs.state(job_id)).ended:
        if time.monotonic() > deadline:
            raise PipelineError(f"the probe job {job_id} did not end in {seconds:.0f} s: {state.message}")
        time.sleep(POLL_SECONDS)
    return state

"""`ddpm submit VERB ...`: a verb as a job of a Ray cluster, once a day and configuration, followed to its exit code."""

import importlib.metadata
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pipeline
from pipeline.config.base import digest_of
from pipeline.config.nightly import as_date
from pipeline.config.operations import SubmitConfig
from pipeline.errors import ConfigError, PipelineError
from pipeline.operations import submission
from pipeline.operations.jobs_client import Jobs, State, dashboard_address, find_token, ray_version
from pipeline.operations.log_follower import Follower
from pipeline.operations.package import UPLOAD_LIMIT, collect, sizes_of, zipped
from pipeline.operations.submission import SubmittedJob

__all__ = ["FILES", "Options", "submit"]

logger = logging.getLogger("ddpm.operations")

FILES = "submitted"
"""Folder of the package that holds the configuration files of the command line."""
PROBE_SECONDS, PIP_SECONDS = 180.0, 1200.0  # until a job that does nothing has ended
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


def ask_person() -> str:
    """What Ctrl-C meant: `detach`, `stop` or `follow`. Without a terminal nobody can be asked: detach."""
    if not sys.stdin.isatty():
        return "detach"
    try:
        print(
            "\nd = detach (the job goes on), s = stop the job, anything else = keep following: ",
            end="",
            file=sys.stderr,
        )
        sys.stderr.flush()
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        return "detach"
    return {"d": "detach", "s": "stop", "": "detach"}.get(answer[:1].lower(), "follow")


@dataclass(frozen=True)
class Options:
    """How to send and follow. day: of the submission id, YYYY-MM-DD; unset: today in `nightly.time_zone`."""

    day: str | None = None
    again: bool = False
    detach: bool = False
    dry_run: bool = False
    write: Callable[[str], None] = _to_stdout
    ask: Callable[[], str] = ask_person


@dataclass(frozen=True)
class Parcel:
    """What is sent."""

    entrypoint: str
    runtime_env: Mapping[str, Any]
    metadata: Mapping[str, str]
    package: bytes


def submit(job: SubmittedJob, options: Options) -> dict[str, Any]:
    """Send, or attach to, the job of this command and day; `exit_code` is the verb's own.

    Raises ConfigError before anything is sent: local paths, a package that is too large, credentials in what would
    be sent, no dashboard, a refused token, other versions of Python or Ray.
    """
    settings = job.config.submit
    day = _day(options.day, job.config.nightly.time_zone)
    base = submission.submission_id(job.verb, job.digest(), day)
    address, token = dashboard_address(settings.address, os.environ), find_token(os.environ)
    parcel = _packed(job, base, token)
    if options.dry_run:
        size = f"{len(parcel.package) / submission.MIB:.2f} MiB"
        summary = f"would submit {base} to {address}, {size}: {parcel.entrypoint}"
        return {"submission_id": base, "address": address, "entrypoint": parcel.entrypoint, "summary": summary}
    version = ray_version(address, token)
    jobs = Jobs(address, token)
    last = submission.newest(base, jobs.all())
    what = submission.decision(last, options.again)
    if last is not None and what == "done":
        done = f"already done: {last.id} (--again runs it anew; ray job logs {last.id} --address {address})"
        return {"submission_id": last.id, "address": address, "status": last.status, "summary": done}
    if last is not None and what == "attach":
        return _followed(jobs, last.id, options, attached=True)
    _check_versions(jobs, version, settings)
    job_id = submission.submission_id(job.verb, job.digest(), day, 1 if last is None else last.number + 1)
    started = _send(jobs, job_id, parcel, settings)
    if started and last is not None:
        logger.info("%s %s: run anew", last.id, last.status.lower())
    return _followed(jobs, job_id, options, attached=not started)


def _day(given: str | None, zone: str) -> date:
    try:
        return datetime.now(ZoneInfo(zone)).date() if given is None else as_date(given)
    except ValueError as error:
        raise ConfigError(f"--date: {error}") from error


def _packed(job: SubmittedJob, base: str, token: str | None) -> Parcel:
    settings, here = job.config.submit, Path.cwd()
    submission.refuse_local_paths(job, here, settings.include)
    files = collect(Path(pipeline.__file__).parents[1], here, settings.include)
    submission.refuse_package(sizes_of(files), UPLOAD_LIMIT)
    contents = {name: path.read_bytes() for name, path in files.items()}
    contents |= {f"{FILES}/{name}": text for name, text in job.files.items()}
    entrypoint = submission.entrypoint(job, FILES)
    runtime_env: dict[str, Any] = {
        "env_vars": {**settings.env_vars, "RAY_JOB_STOP_WAIT_TIME_S": str(settings.stop_seconds)}
    }
    if settings.pip:
        runtime_env["pip"] = list(settings.pip)
    metadata = {
        "ddpm_verb": job.verb,
        "ddpm_digest": job.digest(),
        "ddpm_version": pipeline.__version__,
        "job_name": base,
    }
    texts = {
        "the command line": entrypoint.encode(),
        "the submit section": json.dumps(runtime_env, ensure_ascii=False).encode(),
        **contents,
    }
    submission.refuse_credentials(texts, submission.credentials(os.environ, token))
    return Parcel(entrypoint, runtime_env, metadata, zipped(contents))


def _resources(settings: SubmitConfig) -> dict[str, Any]:
    given = {
        "entrypoint_num_cpus": settings.num_cpus,
        "entrypoint_num_gpus": settings.num_gpus,
        "entrypoint_memory": settings.memory,
        "entrypoint_resources": settings.resources,
    }
    return {name: value for name, value in given.items() if value}


def _send(jobs: Jobs, job_id: str, parcel: Parcel, settings: SubmitConfig) -> bool:
    """False when another submit was quicker."""
    with tempfile.TemporaryDirectory(prefix="ddpm-submit-") as folder:
        package = Path(folder) / "job.zip"
        package.write_bytes(parcel.package)
        env = {**parcel.runtime_env, "working_dir": str(package)}
        options = {"metadata": dict(parcel.metadata), **_resources(settings)}
        return jobs.submit(job_id, parcel.entrypoint, env, **options)


def _followed(jobs: Jobs, job_id: str, options: Options, *, attached: bool) -> dict[str, Any]:
    url = jobs.address
    attach = f"the same command attaches; to stop it: ray job stop {job_id} --address {url}"
    result = {"submission_id": job_id, "address": url, "attached": attached}
    if options.detach:
        return {**result, "summary": f"{'running' if attached else 'submitted'}: {job_id} ({attach})"}
    logger.info("%s %s at %s", "attached to" if attached else "submitted", job_id, url)
    follower = Follower(jobs, job_id, options.write)
    while True:
        try:
            state = follower.run()
        except KeyboardInterrupt:
            answer = options.ask()
            if answer == "stop":
                waits = jobs.state(job_id).status == "PENDING"
                jobs.stop(job_id)
                how = "as soon as it starts, Ray does not sooner" if waits else "it may write a last checkpoint first"
                logger.info("stopping %s: %s", job_id, how)
            elif answer == "detach":
                logger.info("detached, %s goes on (%s)", job_id, attach)
                return {**result, "status": "RUNNING", "exit_code": 130}
        else:
            return {**result, **_ending(job_id, state)}


def _ending(job_id: str, state: State) -> dict[str, Any]:
    code = submission.exit_code(state.status, state.driver_exit_code, state.message)
    if state.status == "FAILED" and state.driver_exit_code is None:  # the verb itself never said a word
        logger.error("%s: %s", job_id, submission.first_line(state.message))
    logger.info("%s %s%s", job_id, state.status.lower(), f", exit code {code}" if code else "")
    return {"status": state.status, "exit_code": code}


def _check_versions(jobs: Jobs, cluster_ray: str, settings: SubmitConfig) -> None:
    """Ray's is the dashboard's word; Python's and torch's that of a job that only looks, once a cluster."""
    names = ("ray", "torch")
    here = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in names}}
    here["torch"] = here["torch"].partition("+")[0]
    submission.version_differences({"ray": here["ray"]}, {"ray": cluster_ray})
    there = _probed(jobs, settings)
    there["torch"] = (there.get("torch") or "").partition("+")[0] or None
    for warning in submission.version_differences(here, there):
        logger.warning("%s", warning)


def _probed(jobs: Jobs, settings: SubmitConfig) -> dict[str, str | None]:
    """The answer of the last probe of the same environment, or of a new one."""
    env: dict[str, Any] = {"pip": list(settings.pip)} if settings.pip else {}
    base = f"{_MARK}-{digest_of([_PROBE, env])[:10]}"
    last = submission.newest(base, jobs.all())
    if submission.decision(last, again=False) == "start":
        number = 1 if last is None else last.number + 1
        last = submission.Attempt(number, base if number == 1 else f"{base}-{number}", "PENDING")
        jobs.submit(last.id, f'python -c "{_PROBE}"', env)
    assert last is not None
    state = _ended(jobs, last.id, PIP_SECONDS if settings.pip else PROBE_SECONDS)
    for line in jobs.logs(last.id).splitlines() if state.status == "SUCCEEDED" else ():
        if line.startswith(f"{_MARK} {{"):
            found: dict[str, str | None] = json.loads(line.removeprefix(_MARK))
            return found
    raise ConfigError(f"no job starts on the cluster at {jobs.address}: {submission.first_line(state.message)}")


def _ended(jobs: Jobs, job_id: str, seconds: float) -> State:
    deadline = time.monotonic() + seconds
    while not (state := jobs.state(job_id)).ended:
        if time.monotonic() > deadline:
            raise PipelineError(f"{job_id}, a job that does nothing, did not end in {seconds:.0f} s: {state.message}")
        time.sleep(POLL_SECONDS)
    return state

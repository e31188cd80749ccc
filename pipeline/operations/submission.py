"""Rules of `ddpm submit`: submission ids, attach or start, exit codes, and checks before upload. Pure."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.config.base import digest_of
from pipeline.config.operations import CREDENTIAL_NAME
from pipeline.config.root import Config
from pipeline.errors import ConfigError

MIB = 2**20
Decision = Literal["start", "attach", "done"]
MIN_CREDENTIAL_LENGTH = 8  # a shorter value may be an ordinary word
URIS = {
    *("dataset", "run", "out", "samples", "root", "model", "registry", "uri", "uris", "jobs"),
    *("against", "source", "requests"),
}
"""Arguments of verbs whose value is a URI or path."""
_URI_SETTINGS = (("train", "init_from"), ("nightly", "source"), ("ingest", "label_map"))
_LOCATION = re.compile(r"_(PATH|FILE|DIR|URI|MODE|TTL)$|^AWS_CONTAINER_", re.IGNORECASE)  # where a credential is


@dataclass(frozen=True)
class SubmittedJob:
    """A validated command line of a verb.

    words: after the verb, without `--config`. config: resolved from all layers. arguments: flags that are no settings,
    by name. files: contents for `--config` by name; later files override earlier ones.
    """

    verb: str
    words: tuple[str, ...]
    config: Config
    arguments: Mapping[str, Any]
    files: Mapping[str, bytes]

    def digest(self) -> str:
        """sha256 (hex) of verb, arguments and settings; where and how the job is sent does not count."""
        settings = self.config.model_dump(mode="json", exclude={"schedule", "storage", "submit"})
        settings["ray"].pop("address")
        given = {name: value for name, value in self.arguments.items() if value not in (None, False, [])}
        # Defaults of storage come from this machine's environment.
        storage = self.config.storage.model_dump(mode="json", exclude_unset=True)
        return digest_of({"verb": self.verb, "arguments": given, "settings": settings, "storage": storage})


class Attempt(NamedTuple):
    """One job on the cluster. status: Ray's JobStatus."""

    number: int
    id: str
    status: str


def submission_id(verb: str, digest: str, day: date) -> str:
    """Id of a command's first attempt on a day, such as `ddpm-train-0123456789-20260131`."""
    return f"ddpm-{verb}-{digest[:10]}-{day:%Y%m%d}"


def next_id(base: str, last: Attempt | None) -> str:
    """`base` for the first attempt, then `base-2`, `base-3`, ..."""
    return base if last is None else f"{base}-{last.number + 1}"


def newest_attempt(base: str, jobs: Iterable[tuple[str, str]]) -> Attempt | None:
    """The latest attempt of `base`. jobs: (id, status) of all jobs of the cluster."""
    pattern = re.compile(rf"{re.escape(base)}(?:-(\d+))?")
    found = [Attempt(int(match[1] or 1), name, status) for name, status in jobs if (match := pattern.fullmatch(name))]
    return max(found, default=None)


def decision(last: Attempt | None, again: bool) -> Decision:
    """Attach to a running attempt; start anew after a failure, or after a success with `again`; else nothing to do."""
    if last is not None and last.status in ("PENDING", "RUNNING"):
        return "attach"
    return "done" if last is not None and last.status == "SUCCEEDED" and not again else "start"


def entrypoint(job: SubmittedJob, folder: str) -> str:
    """The shell command of the job. folder: of the package, with its configuration files."""
    files = [word for name in job.files for word in ("--config", f"{folder}/{name}")]
    return shlex.join(["python", "-m", "jobs", job.verb, *files, *job.words, "--address", "auto"])


def exit_code(status: str, driver_exit_code: int | None, message: str | None) -> int:
    """Exit code of the verb; 128 + n after signal n, 143 after a stop.

    driver_exit_code, message: as Ray reports them; the message also names the code when the field is empty.
    """
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return 143
    code = driver_exit_code
    if code is None:
        match = re.search(r"exit code (-?\d+)", first_line(message))
        code = int(match[1]) if match else 1
    return 128 - code if code < 0 else code or 1


def first_line(message: str | None) -> str:
    """The first line of a message that is not blank."""
    return next((line.strip() for line in (message or "").splitlines() if line.strip()), "no reason was given")


def version_differences(here: Mapping[str, str], there: Mapping[str, str | None]) -> list[str]:
    """Warnings. Raises ConfigError when major or minor versions of Python or Ray differ, or torch is missing.

    here, there: versions by name (python, ray, torch) on this machine and on the cluster.
    """
    names = {"python": "Python", "ray": "Ray", "torch": "torch"}
    text = {n: f"{names[n]} is {there.get(n) or 'missing'} on the cluster and {here[n]} here" for n in here}
    differ = [n for n in here if there.get(n) != here[n]]
    minor = [n for n in differ if (there.get(n) or "").split(".")[:2] != here[n].split(".")[:2]]
    refused = [n for n in minor if n != "torch" or not there.get(n)]
    if refused:
        advice = "submit from an environment like the cluster's, or build its image from constraints.txt"
        raise ConfigError(f"{'; '.join(text[n] for n in refused)}: {advice}")
    return [f"{text['torch']}: images may differ in the last bit"] if "torch" in differ else []


def refuse_local_paths(job: SubmittedJob, here: Path, include: Sequence[str]) -> None:
    """Raises ConfigError for a relative path: the job would read it below its temporary working directory.

    here: the current folder. include: `submit.include`, whose files travel with the job.
    """
    settings = {f"{s}.{name}": getattr(getattr(job.config, s), name) for s, name in _URI_SETTINGS}
    named = {name.replace("_", "-"): value for name, value in job.arguments.items() if name in URIS}
    for name, value in {**named, **settings}.items():
        for uri in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(uri, str) or "://" in uri or uri.startswith("/") or uri == "digits":
                continue
            path = (here / uri).resolve()
            if any(path.is_relative_to((here / part).resolve()) for part in include):
                continue
            advice = "give s3://..., or the absolute path on a file system that all nodes share"
            more = f", or send it along: --submit.include {uri}" if path.exists() else ""
            raise ConfigError(f"{name}: {uri} is a path on this machine: {advice}{more}")


def largest(sizes: Mapping[str, int]) -> str:
    """The three largest parts, for a message. sizes: bytes by name."""
    return ", ".join(f"{name} {sizes[name] / MIB:.1f} MiB" for name in sorted(sizes, key=lambda n: -sizes[n])[:3])


def refuse_package(sizes: Mapping[str, int], limit: int) -> None:
    """Raises ConfigError at `limit` bytes. sizes: bytes by first part of the path."""
    total = sum(sizes.values())
    if total >= limit:
        raise ConfigError(
            f"the job's files are {total / MIB:.1f} MiB, and Ray's dashboard takes less than {limit / MIB:.0f} "
            f"({largest(sizes)}): keep data in the store, list files that no job needs in .rayignore"
        )


def credentials(environment: Mapping[str, str], token: str | None) -> dict[str, str]:
    """Credentials of this machine by variable name; none of their values may be sent."""
    found = {
        name: value
        for name, value in environment.items()
        if CREDENTIAL_NAME.search(name) and not _LOCATION.search(name) and len(value) >= MIN_CREDENTIAL_LENGTH
    }
    return found if token is None else {**found, "the cluster's token": token}


def refuse_credentials(texts: Mapping[str, bytes], secrets: Mapping[str, str]) -> None:
    """Raises ConfigError naming source and variable, never the value. texts: everything that is sent, by source."""
    for where, text in texts.items():
        for name, value in secrets.items():
            if value.encode() in text:
                raise ConfigError(
                    f"{where} contains the value of {name}: credentials are never sent, the cluster needs its own"
                )

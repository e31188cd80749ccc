"""What `ddpm submit` sends to a cluster, and what the answers mean. Pure."""

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

__all__ = [
    "Attempt",
    "Decision",
    "SubmittedJob",
    "credentials",
    "decision",
    "entrypoint",
    "exit_code",
    "first_line",
    "newest",
    "refuse_credentials",
    "refuse_local_paths",
    "refuse_package",
    "submission_id",
    "version_differences",
]

MIB = 2**20
Decision = Literal["start", "attach", "done"]
UNSEEN = 8  # shorter values are words, not credentials
URIS = {
    *("dataset", "run", "out", "samples", "root", "model", "registry", "uri", "uris", "jobs"),
    *("against", "source", "requests"),
}
"""Arguments of verbs that name something at rest."""
_URI_SETTINGS = (("train", "init_from"), ("nightly", "source"), ("ingest", "label_map"))
_NOT_ITSELF = re.compile(r"_(PATH|FILE|DIR|URI|MODE|TTL)$|^AWS_CONTAINER_", re.IGNORECASE)  # tell where it is


@dataclass(frozen=True)
class SubmittedJob:
    """A verb's command line that was checked here.

    words: after the verb, without `--config`; config: resolved from all of them; arguments: those that are no
    settings, by name; files: YAML for `--config`, by name, later ones win.
    """

    verb: str
    words: tuple[str, ...]
    config: Config
    arguments: Mapping[str, Any]
    files: Mapping[str, bytes]

    def digest(self) -> str:
        """sha256 (hex) of what is to be done: verb, arguments and settings, not how it is sent."""
        settings = self.config.model_dump(mode="json", exclude={"schedule", "storage", "submit"})
        settings["ray"].pop("address")
        given = {name: value for name, value in self.arguments.items() if value not in (None, False, [])}
        storage = self.config.storage.model_dump(mode="json", exclude_unset=True)  # the rest is of this machine
        return digest_of({"verb": self.verb, "arguments": given, "settings": settings, "storage": storage})


class Attempt(NamedTuple):
    """One job on the cluster: `status` as Ray names it."""

    number: int
    id: str
    status: str


def submission_id(verb: str, digest: str, day: date, number: int = 1) -> str:
    """`ddpm-train-0123456789-20260131`, and `...-2` when it has to be run again that day."""
    return f"ddpm-{verb}-{digest[:10]}-{day:%Y%m%d}{'' if number == 1 else f'-{number}'}"


def newest(base: str, jobs: Iterable[tuple[str, str]]) -> Attempt | None:
    """The last attempt of `base` among (id, status) of all jobs of the cluster."""
    pattern = re.compile(rf"{re.escape(base)}(?:-(\d+))?")
    found = [Attempt(int(match[1] or 1), name, status) for name, status in jobs if (match := pattern.fullmatch(name))]
    return max(found, default=None)


def decision(last: Attempt | None, again: bool) -> Decision:
    """What a submit does about the attempt before it: only a success is final, unless it is asked for `again`."""
    if last is not None and last.status in ("PENDING", "RUNNING"):
        return "attach"
    return "done" if last is not None and last.status == "SUCCEEDED" and not again else "start"


def entrypoint(job: SubmittedJob, folder: str) -> str:
    """The shell command of the job; its config files are in `folder` of the package."""
    files = [word for name in job.files for word in ("--config", f"{folder}/{name}")]
    return shlex.join(["python", "-m", "jobs", job.verb, *files, *job.words, "--address", "auto"])


def exit_code(status: str, driver_exit_code: int | None, message: str | None) -> int:
    """What the verb itself would have returned: 128 + n when signal n ended it, 143 when it was asked to stop."""
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return 143
    code = driver_exit_code
    if code is None:
        told = re.search(r"exit code (-?\d+)", first_line(message))
        code = int(told[1]) if told else 1
    return 128 - code if code < 0 else code or 1


def first_line(message: str | None) -> str:
    """The first line of Ray's message that says something."""
    return next((line.strip() for line in (message or "").splitlines() if line.strip()), "no reason was given")


def version_differences(here: Mapping[str, str], there: Mapping[str, str | None]) -> list[str]:
    """Warnings. Raises ConfigError when Python or Ray differ in more than the last number, or torch is missing.

    here, there: versions by name: python, ray, torch.
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
    """Raises ConfigError for a relative path: there it would be in the job's own folder, which goes with it."""
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


def refuse_package(sizes: Mapping[str, int], limit: int) -> None:
    """sizes: bytes by first part of the path; raises ConfigError at `limit` bytes."""
    total = sum(sizes.values())
    if total >= limit:
        largest = ", ".join(f"{n} {sizes[n] / MIB:.1f} MiB" for n in sorted(sizes, key=lambda n: -sizes[n])[:3])
        raise ConfigError(
            f"the job's files are {total / MIB:.1f} MiB, and Ray's dashboard takes less than {limit / MIB:.0f} "
            f"({largest}): put data into the store, name in .rayignore what no job needs"
        )


def credentials(environment: Mapping[str, str], token: str | None) -> dict[str, str]:
    """Values that may not leave this machine, by the name of their variable."""
    found = {
        name: value
        for name, value in environment.items()
        if CREDENTIAL_NAME.search(name) and not _NOT_ITSELF.search(name) and len(value) >= UNSEEN
    }
    return found if token is None else {**found, "the cluster's token": token}


def refuse_credentials(texts: Mapping[str, bytes], secrets: Mapping[str, str]) -> None:
    """texts: whatever is sent, by where it comes from. Raises ConfigError that names both, and no value."""
    for where, text in texts.items():
        for name, value in secrets.items():
            if value.encode() in text:
                raise ConfigError(
                    f"{where} holds the value of {name}: credentials are not sent, the cluster has its own"
                )

"""A sweep at rest: one document of what its points share, a samples folder a point, and what came out.

sweep.json          create-once: model, data and settings of every point; an equal one is joined
points/<name>/      a samples folder with its evaluation, as `ddpm generate` and `ddpm evaluate` make them
sweep.parquet       schema.SWEEP, a row a point        report.html     the same to look at
"""

from typing import Any, Literal

from pipeline.config.base import Section
from pipeline.errors import ConfigError, NotFound
from pipeline.schema import SCHEMA_VERSION
from pipeline.storage.create_once import try_create
from pipeline.storage.documents import find_document, to_json
from pipeline.storage.store import Store

__all__ = ["PAGE", "POINTS", "TABLE", "SweepPlan", "check_sweep", "join_sweep", "keep"]

SWEEP_PLAN = "sweep.json"
POINTS = "points"
TABLE = "sweep.parquet"
PAGE = "report.html"


class SweepPlan(Section):
    """`<sweep>/sweep.json`, created once: all that points share, so that they compare. Which points is not in it."""

    kind: Literal["sweep"] = "sweep"
    schema_version: int = SCHEMA_VERSION
    model_uri: str  # of the checkpoint or folder, for people
    model_digest: str  # of its raw weights, which tell checkpoints apart whatever they average
    dataset_uri: str  # for people
    dataset_digest: str
    generate: dict[str, Any]
    evaluate: dict[str, Any]

    def differences(self, other: "SweepPlan") -> list[str]:
        """What `other` asks for otherwise, one phrase each."""
        found = []
        if self.model_digest != other.model_digest:
            found.append(f"--model {self.model_uri} there, {other.model_uri} with other weights asked")
        if self.dataset_digest != other.dataset_digest:
            found.append(f"dataset {self.dataset_digest[:16]} there, {other.dataset_digest[:16]} asked")
        for section in ("generate", "evaluate"):
            ours, theirs = getattr(self, section), getattr(other, section)
            for name in sorted(ours.keys() | theirs.keys()):
                if repr(ours.get(name)) != repr(theirs.get(name)):
                    found.append(f"{section}.{name} {ours.get(name)!r} there, {theirs.get(name)!r} asked")
        return found


def check_sweep(out: Store, plan: SweepPlan) -> None:
    """Raises ConfigError when the folder holds a sweep of something else; nothing is fine."""
    there = find_document(out, SWEEP_PLAN, SweepPlan)
    if there is not None and (different := there.differences(plan)):
        raise ConfigError(
            f"{out.uri} holds another sweep ({'; '.join(different)}): choose another --out or ask for the same"
        )


def join_sweep(out: Store, plan: SweepPlan) -> None:
    """Fix what the points share, or join the sweep that is there. Raises ConfigError as `check_sweep` does."""
    if not try_create(out, SWEEP_PLAN, to_json(plan)):
        check_sweep(out, plan)


def keep(out: Store, key: str, data: bytes) -> bool:
    """Put what is not there already; whether that was needed."""
    try:
        if out.read(key) == data:
            return False
    except NotFound:
        pass
    out.put(key, data)
    return True

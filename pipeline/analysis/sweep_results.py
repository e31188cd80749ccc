"""Files of a sweep folder.

sweep.json          create-once: model, dataset and settings shared by all points; an equal sweep continues
points/<name>/      a samples folder with its evaluation, as written by `ddpm generate` and `ddpm evaluate`
sweep.parquet       schema.SWEEP, one row per point        report.html     the same as a page
"""

from typing import Any, Literal

from pipeline.config.base import Section
from pipeline.errors import ConfigError
from pipeline.schema import SCHEMA_VERSION
from pipeline.storage.create_once import try_create
from pipeline.storage.documents import find_document, to_json
from pipeline.storage.store import Store

SWEEP_PLAN = "sweep.json"
POINTS = "points"
TABLE = "sweep.parquet"
PAGE = "report.html"


class SweepPlan(Section):
    """`<sweep>/sweep.json`, created once: all that makes points comparable. The list of points is not in it."""

    kind: Literal["sweep"] = "sweep"
    schema_version: int = SCHEMA_VERSION
    model_uri: str  # of the checkpoint or folder; informative
    model_digest: str  # of the raw weights, which differ between checkpoints under any averaging
    dataset_uri: str  # informative
    dataset_digest: str
    generate: dict[str, Any]
    evaluate: dict[str, Any]

    def differences(self, other: "SweepPlan") -> list[str]:
        """Differences of `other` from this plan, one phrase each."""
        found = []
        if self.model_digest != other.model_digest:
            found.append(f"--model {self.model_uri} stored, {other.model_uri} with other weights requested")
        if self.dataset_digest != other.dataset_digest:
            found.append(f"dataset {self.dataset_digest[:16]} stored, {other.dataset_digest[:16]} requested")
        for section in ("generate", "evaluate"):
            ours, theirs = getattr(self, section), getattr(other, section)
            for name in sorted(ours.keys() | theirs.keys()):
                if repr(ours.get(name)) != repr(theirs.get(name)):
                    found.append(f"{section}.{name} {ours.get(name)!r} stored, {theirs.get(name)!r} requested")
        return found


def check_sweep(out: Store, plan: SweepPlan) -> None:
    """Raises ConfigError when the folder holds a different sweep. An empty folder passes."""
    there = find_document(out, SWEEP_PLAN, SweepPlan)
    if there is not None and (different := there.differences(plan)):
        raise ConfigError(
            f"{out.uri} holds another sweep ({'; '.join(different)}): choose another --out or the same settings"
        )


def join_sweep(out: Store, plan: SweepPlan) -> None:
    """Create sweep.json, or continue an equal sweep. Raises ConfigError as `check_sweep` does."""
    if not try_create(out, SWEEP_PLAN, to_json(plan)):
        check_sweep(out, plan)


def put_if_changed(out: Store, key: str, data: bytes) -> bool:
    """Write the object unless it already has these bytes. Returns whether it was written."""
    if out.exists(key) and out.read(key) == data:
        return False
    out.put(key, data)
    return True

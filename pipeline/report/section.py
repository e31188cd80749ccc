"""The contribution of one artefact (run, samples folder, dataset or night) to a report."""

from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import yaml

from pipeline.config.base import Section
from pipeline.evaluation.results import Evaluation
from pipeline.report.render.content import Fact, Picture, Table, ThroughputRow, Verdict
from pipeline.report.run_history import Work

ArtefactKind = Literal["run", "samples", "dataset", "night"]


@dataclass(frozen=True)
class ReportSection:
    """Content from one artefact. curves: METRICS of a run; neighbours: samples beside their nearest training images."""

    name: str
    kind: ArtefactKind
    facts: tuple[Fact, ...] = ()
    verdict: Verdict | None = None
    leading: tuple[Table, ...] = ()
    samples: tuple[Picture, ...] = ()
    neighbours: tuple[Picture, ...] = ()
    grids: tuple[Picture, ...] = ()
    throughput: tuple[ThroughputRow, ...] = ()
    running: tuple[Table | None, ...] = ()
    works: tuple[Work, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    curves: pa.Table | None = None
    settings: tuple[Table, ...] = ()
    config_yaml: str = ""


def as_yaml(title: str, values: Section | dict[str, Any]) -> str:
    """YAML with `title` as a comment in the first line."""
    plain = values.model_dump(mode="json") if isinstance(values, Section) else values
    return f"# {title}\n" + yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=100)

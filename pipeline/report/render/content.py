"""Content of a report as plain values. The page omits sections without content."""

from dataclasses import dataclass
from typing import Final, Literal

QUIET: Final = -1
"""Style of a series that is a reference level and not a curve."""


@dataclass(frozen=True)
class Fact:
    name: str
    value: str


@dataclass(frozen=True)
class Verdict:
    """The main conclusion of a report, in one sentence."""

    kind: Literal["good", "warning", "bad"]
    text: str


@dataclass(frozen=True)
class Series:
    """Points (x, y) with ascending x (in any order in a chart with dots). A NaN in y is a gap.

    muted: drawn in the background. look: QUIET or 0, 1, ... (`svg.stroke`); None: the index of the series.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    muted: bool = False
    look: int | None = None

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"series {self.label!r} has {len(self.x)} x and {len(self.y)} y values")


@dataclass(frozen=True)
class Chart:
    """ends: show the last value of the first curve beside the title, as the current state.

    log: logarithmic y axis. log_x: logarithmic x axis, for x > 0. dots: points are separate results, not a curve.
    """

    title: str
    x_label: str
    unit: str
    series: tuple[Series, ...]
    log: bool = False
    note: str = ""
    ends: bool = True
    log_x: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Picture:
    """A PNG; `alt` is the text alternative."""

    caption: str
    alt: str
    png: bytes


@dataclass(frozen=True)
class Anchor:
    """A score to compare with: the score of real, blurred or random images."""

    name: str
    value: float


@dataclass(frozen=True)
class MetricRow:
    """One score. n: images per side; protocol: everything that must be equal for scores to be comparable."""

    name: str
    value: float
    n: int
    protocol: str
    floor: Anchor | None = None
    ceilings: tuple[Anchor, ...] = ()
    interval: tuple[float, float] | None = None
    note: str = ""


@dataclass(frozen=True)
class ThroughputRow:
    name: str
    value: float
    unit: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Each row has one text per column; the first `words` columns hold words, the others numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    note: str = ""


@dataclass(frozen=True)
class Verification:
    """Result of verifying artefacts against their manifests. checks: counts; findings: contradictions."""

    ok: bool
    text: str
    checks: tuple[Fact, ...] = ()
    findings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """`leading` tables come before the pictures, `tables` after the charts; other fields have a section each."""

    title: str
    subtitle: str = ""
    verdict: Verdict | None = None
    facts: tuple[Fact, ...] = ()
    leading: tuple[Table, ...] = ()
    samples: tuple[Picture, ...] = ()
    samples_title: str = "Samples"
    neighbours: tuple[Picture, ...] = ()
    metrics: tuple[MetricRow, ...] = ()
    charts: tuple[Chart, ...] = ()
    charts_title: str = "Training"
    tables: tuple[Table, ...] = ()
    grids: tuple[Picture, ...] = ()
    throughput: tuple[ThroughputRow, ...] = ()
    running: tuple[Table, ...] = ()
    verification: Verification | None = None
    settings: tuple[Table, ...] = ()
    config_yaml: str = ""

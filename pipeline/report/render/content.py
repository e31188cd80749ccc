"""What a report says, as plain values. A section whose part is empty does not appear on the page."""

from dataclasses import dataclass
from typing import Final, Literal

__all__ = [
    "QUIET",
    "Anchor",
    "Chart",
    "Fact",
    "MetricRow",
    "Picture",
    "Report",
    "Series",
    "Table",
    "ThroughputRow",
    "Verdict",
    "Verification",
]


QUIET: Final = -1
"""Look of a series that is no curve, such as a level to compare with."""


@dataclass(frozen=True)
class Fact:
    name: str
    value: str


@dataclass(frozen=True)
class Verdict:
    """The one sentence a reader takes away."""

    kind: Literal["good", "warning", "bad"]
    text: str


@dataclass(frozen=True)
class Series:
    """Points (x, y) in order of x (of a chart with dots in any); y may hold NaN, which is a gap.

    A muted series is drawn as background. look: QUIET or 0, 1, ..., see `svg.stroke`; None: the series' place.
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
    """`ends`: the last value of its first curve is where things stand now, and is told beside the title.

    log: of y, log_x: of x, which then is above 0. dots: every point is a result of its own, not one of a curve.
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
    """A PNG; `alt` says in words what it shows."""

    caption: str
    alt: str
    png: bytes


@dataclass(frozen=True)
class Anchor:
    """A score that a reader can judge another one by: what real, blurred or random images get."""

    name: str
    value: float


@dataclass(frozen=True)
class MetricRow:
    """One score. `n` images a side; `protocol` is everything that must be equal for a comparison."""

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
    """Rows of as many texts as there are columns; the first `words` columns are words, the others figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: int = 1
    note: str = ""


@dataclass(frozen=True)
class Verification:
    """Result of checking the artefacts against their manifests. checks: what was counted; findings: what is wrong."""

    ok: bool
    text: str
    checks: tuple[Fact, ...] = ()
    findings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """`leading` tables stand before the pictures, `tables` after the charts; others in the section of their name."""

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

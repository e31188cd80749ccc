"""Tables and picture of docs/scaling.md, computed from the newest results.

    python benchmarks/scaling.py [--write]

Prints the tables; with --write replaces the page's text between `<!-- table: NAME -->` and `<!-- end -->` and draws
docs/pictures/memory.svg. A test compares the page with the results.
"""

import math
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from capacity import MeasuredCosts, dataset_needs, generation_needs
from figures import measured
from outcome import RESULTS, newest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "scaling.md"
CORES_A_NODE, HOURS = 32, 24.0
STEPS = 50
SIZES = (10**6, 10**8, 10**9)
PNG_BYTES = 2500
"""Size of the PNG of a 32x32 RGB photograph, about: CIFAR-10's mean is 2,300."""
SOURCES = ("model", "generate", "ingest", "million", "commit", "resume", "planning", "scaleout")
BUSY = 1.0
"""Load average a core at a script's start above which its times are marked as taken on a busy machine."""


def costs() -> MeasuredCosts:
    """Every constant, each from one results file. Raises FileNotFoundError, KeyError for a missing file or figure."""
    return MeasuredCosts(
        images_a_core_second=measured("model", "forward_ours_images_per_second") / STEPS,
        requests_a_shard=measured("commit", "requests_by_actor") + 1,  # one more: the read at the seal
        driver_cpu_a_shard=_if_measured("scaleout", "driver_cpu_ms_a_shard") / 1e3,
        efficiency=min(1.0, measured("generate", "pipeline_over_bare")),
        decision_a_shard=measured("resume", "s3_decision_cpu_us_a_shard") / 1e6,
        seal_a_shard=measured("resume", "s3_seal_cpu_us_a_shard") / 1e6,
        seal_memory_a_shard=measured("resume", "s3_seal_bytes_a_shard"),
        marker_bytes=measured("planning", "marker_bytes"),
        missing_bytes_a_shard=measured("planning", "missing_bytes_a_shard"),
        dataset_shard_bytes=measured("planning", "dataset_shard_bytes"),
        dataset_shard_memory=measured("planning", "dataset_shard_memory_bytes"),
        ingest_images_a_core_second=measured("ingest", "png28_ingest_images_per_core_second"),
        driver_memory=measured("million", "driver_peak_mb_at_10k") * 1e6,
    )


def _if_measured(script: str, figure: str) -> float:
    """The figure, or NaN without a results file of the script."""
    try:
        return measured(script, figure)
    except FileNotFoundError:
        return math.nan


def size(count: float) -> str:
    """Bytes as text with a unit, two significant digits."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{_two(count / scale)} {unit}"
    return f"{count:.0f} bytes"


def lasting(seconds: float) -> str:
    if seconds >= 5400:
        return f"{_two(seconds / 3600)} h"
    return f"{_two(seconds / 60)} min" if seconds >= 90 else f"{_two(seconds)} s"


def number(count: float) -> str:
    for word, scale in (("billion", 1e9), ("million", 1e6)):
        if count >= scale:
            return f"{_two(count / scale)} {word}"
    return f"{count:,.0f}"


def _two(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def generation_table(all_costs: MeasuredCosts) -> str:
    jobs = [(samples, shard) for samples in SIZES for shard in (512,)] + [(10**9, 64), (10**9, 10_000)]
    found = [generation_needs(samples, shard, all_costs, CORES_A_NODE, HOURS) for samples, shard in jobs]
    head = ["samples", *(f"{samples:.0e}".replace("e+0", "e") for samples, _ in jobs)]
    rows = [["shard size", *(f"{shard:,}" for _, shard in jobs)]]
    rows += [[name, *(tell(needs) for needs in found)] for name, tell in GENERATION_ROWS]
    return table(head, rows)


GENERATION_ROWS: list[tuple[str, Any]] = [
    ("core hours", lambda n: f"{n.core_hours:,.0f}"),
    (f"nodes of {CORES_A_NODE} cores for {HOURS:.0f} h", lambda n: f"{n.nodes:,}"),
    ("shards = markers", lambda n: f"{n.shards:,}"),
    ("requests to the store", lambda n: number(n.requests)),
    ("listings among these requests", lambda n: f"{n.listings:,}"),
    ("manifest", lambda n: size(n.manifest_bytes)),
    ("to find the missing shards, driver's CPU", lambda n: lasting(n.decision_seconds)),
    ("to seal, driver's CPU", lambda n: lasting(n.seal_seconds)),
    ("driver's memory at the seal", lambda n: size(n.driver_memory)),
    (
        "driver, share of one core",
        lambda n: "not measured" if math.isnan(n.driver_share) else f"{_two(100 * n.driver_share)} %",
    ),
]


def dataset_table(all_costs: MeasuredCosts) -> str:
    cases = [(images, 1) for images in SIZES] + [(10**9, 100)]
    found = [dataset_needs(images, PNG_BYTES, all_costs, 2000, 1024, parts) for images, parts in cases]
    head = ["images", *(f"{images:.0e}".replace("e+0", "e") for images, _ in cases)]
    rows = [["dataset versions", *(f"{parts}" for _, parts in cases)]]
    rows += [[name, *(tell(needs) for needs in found)] for name, tell in DATASET_ROWS]
    return table(head, rows)


DATASET_ROWS: list[tuple[str, Any]] = [
    ("core hours of ingest", lambda n: f"{n.core_hours:,.1f}"),
    ("shards", lambda n: f"{n.shards:,}"),
    ("sorted files between the passes", lambda n: f"{n.sorted_files:,}"),
    ("ranges that the second pass reads", lambda n: number(n.between_requests)),
    ("shards read again to find duplicates", lambda n: number(n.known_requests)),
    ("manifest", lambda n: size(n.manifest_bytes)),
    ("memory of the manifest, in every process that reads it", lambda n: size(n.manifest_memory)),
]


def sources_table() -> str:
    """Results files behind the page, and whether the machine was busy."""
    rows = []
    for name in SOURCES:
        found = sorted(p for p in RESULTS.glob(f"*-{name}.json") if p.stem.split("-", 4)[-1] == name)
        if not found:
            rows.append([name, "not measured", "", "", ""])
            continue
        path = found[-1]
        document = newest(name)
        about = document.get("machine", {})
        load = document.get("load")
        cores = about.get("cores", int(path.stem.split("-")[3]))
        state = "not noted" if load is None else f"{load}"
        if document.get("quick"):
            state += ", quick form"
        busy = " (busy: times are too long)" if load is not None and load > BUSY * cores else ""
        rows.append([name, path.name, document.get("commit") or "not noted", f"{cores}", state + busy])
    return table(["script", "file", "commit", "cores", "load at its start"], rows)


def tables() -> dict[str, str]:
    all_costs = costs()
    return {
        "generation": generation_table(all_costs),
        "dataset": dataset_table(all_costs),
        "sources": sources_table(),
    }


def with_tables(text: str, found: dict[str, str]) -> str:
    """The page with its tables replaced. Raises KeyError for the mark of an unknown table."""

    def replaced(match: re.Match[str]) -> str:
        return f"{match[1]}\n{found[match[2]]}\n{match[3]}"

    return re.sub(r"(<!-- table: (\w+) -->)\n.*?(<!-- end -->)", replaced, text, flags=re.DOTALL)


def memory_chart() -> Any:
    """Chart of the drivers' resident memory against committed samples, for a million samples."""
    from pipeline.report.render.content import Chart, Series

    document = newest("million")
    runs: list[list[tuple[float, float]]] = [[]]
    before = 0.0
    for _, samples, mb in document["driver_memory"]["rows"]:
        if mb < 0.8 * before:  # another driver began
            runs.append([])
        before = mb
        runs[-1].append((samples, mb))
    kept = [run for run in runs if len(run) > 2]
    series = tuple(
        Series(f"driver {place}", tuple(x for x, _ in run), tuple(y for _, y in run))
        for place, run in enumerate(kept, start=1)
    )
    return Chart("Resident memory of the driver", "samples committed", "MB", series)


def main() -> int:
    found = tables()
    if "--write" in sys.argv[1:]:
        from picture import write_picture

        PAGE.write_text(with_tables(PAGE.read_text(), found))
        write_picture(memory_chart(), ROOT / "docs" / "pictures" / "memory.svg")
    else:
        print("\n\n".join(found.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

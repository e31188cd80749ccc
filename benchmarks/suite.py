"""Runs the benchmarks one after another, each in a process, and prints one table. Method: benchmarks/README.md.

    python benchmarks/suite.py [--quick | --all] [--only NAME,NAME] [--save] [--check]

Without a flag 20 to 45 minutes on two cores; --quick about 3, on fewer images; --all takes every script's full form,
about two hours. A failed script is reported and the others continue. --save keeps each script's result, and the
table's figures as results/<date>-<cores>-suite.json. Exit 1 only with --check: a missed bar or a failed script.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

from machine import commit, machine
from outcome import LOAD, RESULTS, result_file, shown

HERE = Path(__file__).resolve().parent
QUICK = ("--quick",)


class Run(NamedTuple):
    """A script with its arguments in the three forms of the suite; None: not part of that form."""

    name: str
    quick: tuple[str, ...] | None
    usual: tuple[str, ...] | None
    limit_minutes: float = 30.0


RUNS = (
    Run("model", QUICK, ()),
    Run("planning", QUICK, ()),
    Run("commit", QUICK, ()),
    Run("resume", QUICK, QUICK),
    Run("shuffle", None, QUICK),
    Run("overhead", QUICK, QUICK),
    Run("scaleout", QUICK, QUICK),
    Run("equal_fd", QUICK, QUICK),
    Run("ingest", None, QUICK),
    Run("stream", None, QUICK),
    Run("generate", None, QUICK),
    Run("train", None, QUICK),
    Run("time_to_fd", None, QUICK),
    Run("million", None, QUICK),
    Run("ablation", None, None, 60.0),
)


class Headline(NamedTuple):
    """A row of the table: a ratio, and the two figures of the same script behind the ratio."""

    script: str
    ratio: str
    ours: str | None = None
    against: str | None = None
    what: str = ""


HEADLINES = (
    Headline("train", "cifar10_pipeline_vs_bare", "cifar10_pipeline_images_per_second",
             "cifar10_bare_images_per_second", "train, img/s: Ray and store / bare loop"),
    Headline("train", "cifar10_pipeline_vs_diffusers", "cifar10_pipeline_images_per_second",
             "cifar10_diffusers_images_per_second", "train, img/s: ours / diffusers' loop"),
    Headline("model", "train_vs_diffusers", "train_ours_images_per_second", "train_theirs_images_per_second",
             "training step, img/s a core: ours / diffusers"),
    Headline("model", "forward_vs_diffusers", "forward_ours_images_per_second", "forward_theirs_images_per_second",
             "forward, img/s a core: ours / diffusers"),
    Headline("model", "train_ours_gemm_share", None, None, "training step / GEMM rate"),
    Headline("model", "forward_ours_gemm_share", None, None, "forward / GEMM rate"),
    Headline("equal_fd", "ddim_50_over_diffusers", "ddim_50_samples_a_cpu_second", "ddim_50_diffusers_a_cpu_second",
             "sample, img/s: ours / DDIMPipeline, 50 steps"),
    Headline("equal_fd", "dpm++2m_20_over_diffusers", "dpm++2m_20_samples_a_cpu_second",
             "dpm++2m_20_diffusers_a_cpu_second", "sample, img/s: ours / diffusers' DPM-Solver++, 20 steps"),
    Headline("equal_fd", "dpm++2m_10_over_diffusers", "dpm++2m_10_samples_a_cpu_second",
             "dpm++2m_10_diffusers_a_cpu_second", "sample, img/s: ours / diffusers' DPM-Solver++, 10 steps"),
    Headline("equal_fd", "speed_up_at_equal_fd", None, None, "sample: fewest steps at equal FD / all steps"),
    Headline("overhead", "pipeline_over_bare", "pipeline_img_s", "bare_img_s", "bulk, img/s: ours / bare loop"),
    Headline("overhead", "pipeline_over_raydata", "pipeline_img_s", "raydata_img_s",
             "bulk, img/s: ours / Ray Data write_parquet"),
    Headline("overhead", "pipeline_over_pool", "pipeline_img_s", "pool_img_s", "bulk, img/s: ours / ActorPool"),
    Headline("generate", "pipeline_over_diffusers", "pipeline_img_s", "diffusers_img_s",
             "bulk, img/s: ours / DDIMPipeline"),
    Headline("stream", "png28_lanes_share", "png28_lanes_images_per_cpu_second", "png28_plain_images_per_cpu_second",
             "feed, img a CPU s: lanes / plain loop"),
    Headline("stream", "png28_webdataset_share", "png28_webdataset_images_per_cpu_second",
             "png28_plain_images_per_cpu_second", "feed, img a CPU s: webdataset / plain loop"),
    Headline("stream", "png28_dataloader_share", "png28_dataloader_images_per_cpu_second",
             "png28_plain_images_per_cpu_second", "feed, img a CPU s: DataLoader / plain loop"),
    Headline("commit", "commit_over_put", "commit_ms", "put_ms", "commit a shard, ms: ours / one put"),
    Headline("commit", "requests_a_shard", None, None, "requests to the store a shard"),
    Headline("resume", "local_decision_seconds", None, None, "seconds to know what is missing, local files"),
    Headline("resume", "s3_decision_seconds", None, None, "seconds to know what is missing, S3"),
    Headline("time_to_fd", "cpu_over_diffusers", "ours_cpu_seconds_to_target", "diffusers_cpu_seconds_to_target",
             "CPU seconds to equal FD: ours / diffusers' loop"),
)  # fmt: skip


class Outcome(NamedTuple):
    """Result of a script. A failed script has no figures, and `complaint` has the error."""

    figures: dict[str, dict[str, Any]] | None
    seconds: float
    complaint: str = ""


def run(script: Run, words: tuple[str, ...], save: bool) -> Outcome:
    """Run a script in a new process; the last line of its output has the figures."""
    command = [sys.executable, str(HERE / f"{script.name}.py"), "--json", *words, *(["--save"] if save else [])]
    began = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60 * script.limit_minutes)
    except subprocess.TimeoutExpired:
        return Outcome(None, time.monotonic() - began, f"not done after {script.limit_minutes:.0f} minutes")
    seconds = time.monotonic() - began
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return Outcome(None, seconds, f"exit {done.returncode}: {last}")
    return Outcome(json.loads(done.stdout.strip().splitlines()[-1]), seconds)


def rows_of(outcomes: dict[str, Outcome]) -> list[tuple[str, ...]]:
    """Rows of the table: the headlines, then every other figure that has a bar, then scripts that failed."""
    rows, told = [], set()
    for line in HEADLINES:
        figures = outcomes[line.script].figures if line.script in outcomes else None
        if figures and line.ratio in figures:
            told.add((line.script, line.ratio))
            rows.append(_row(line.what, figures, line.ratio, line.ours, line.against))
    rest = [
        _row(f"{name}: {figure}", outcome.figures, figure)
        for name, outcome in outcomes.items()
        for figure, entry in (outcome.figures or {}).items()
        if outcome.figures and entry["bar"] is not None and (name, figure) not in told
    ]
    failed = [(name, "", "", "", "", f"FAILED: {o.complaint}") for name, o in outcomes.items() if o.figures is None]
    return [*rows, *rest, *failed]


def _row(
    what: str, figures: dict[str, Any], ratio: str, ours: str | None = None, against: str | None = None
) -> tuple[str, ...]:
    entry = figures[ratio]
    bar, met = ("", "") if entry["bar"] is None else (shown(entry["bar"]), "yes" if entry["ok"] else "NO")
    sides = ["" if name is None or name not in figures else shown(figures[name]["value"]) for name in (ours, against)]
    return (what, *sides, shown(entry["value"]), bar, met)


def closing_table(rows: list[tuple[str, ...]]) -> str:
    head = ("figure", "ours", "against", "ratio", "bar", "met?")
    widths = [max(len(row[at]) for row in [head, *rows]) for at in range(5)]
    lines = [head, *rows]
    return "\n".join(
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:5], widths[1:], strict=True)),
                row[5],
            ]
        )
        for row in lines
    )


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--quick", action="store_true", help="about 3 minutes")
    form.add_argument("--all", action="store_true", help="every script in full, about two hours")
    parser.add_argument("--only", help="names of scripts, separated by commas")
    parser.add_argument("--save", action="store_true", help="keep every result")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed or a script failed")
    return parser.parse_args()


def main() -> int:
    options = parsed()
    only = set(options.only.split(",")) if options.only else {script.name for script in RUNS}
    if unknown := only - {script.name for script in RUNS}:
        print(f"no benchmark {', '.join(sorted(unknown))}: there is {', '.join(r.name for r in RUNS)}", file=sys.stderr)
        return 2
    outcomes: dict[str, Outcome] = {}
    for script in RUNS:
        words = script.quick if options.quick else () if options.all else script.usual
        if script.name not in only or (words is None and not options.only):
            continue
        print(f"{script.name} ...", file=sys.stderr, flush=True)
        outcomes[script.name] = run(script, words or (), options.save)
        print(f"{script.name}: {outcomes[script.name].seconds:.0f} s", file=sys.stderr, flush=True)
    about = machine()
    print(", ".join([f"commit {commit() or 'unknown'}", f"load {LOAD}", *(f"{k} {v}" for k, v in about.items())]))
    print(closing_table(rows_of(outcomes)))
    if options.save:
        found = {
            f"{name}/{figure}": entry
            for name, outcome in outcomes.items()
            for figure, entry in (outcome.figures or {}).items()
        }
        form = "quick" if options.quick else "all" if options.all else "usual"
        seconds = {name: round(outcome.seconds, 1) for name, outcome in outcomes.items()}
        document = {"machine": about, "commit": commit(), "load": LOAD, "form": form, "seconds": seconds, **found}
        RESULTS.mkdir(exist_ok=True)
        result_file("suite").write_text(json.dumps(document) + "\n")
    bad = any(o.figures is None or not all(e["ok"] for e in o.figures.values()) for o in outcomes.values())
    return int(options.check and bad)


if __name__ == "__main__":
    sys.exit(main())

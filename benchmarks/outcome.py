"""Shared by all benchmarks: flags, one line a figure, results/<date>-<cores>-<name>.json, exit code.

A figure is {value, bar, ok}; a null bar is information. The file holds figures by name, and entries without "value":
`machine`, `commit` and the additions of a script (curves, settings).
"""

import argparse
import datetime
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from machine import commit, machine

RESULTS = Path(__file__).parent / "results"
LOAD = round(os.getloadavg()[0], 1)
"""Load average when the script began: a value well above 0 means other work on the machine."""
Figure = dict[str, Any]


def flags(description: str | None, name: str, quick: str) -> argparse.ArgumentParser:
    """A parser of --quick, --json, --check, --save, which a script may extend. quick: help text of --quick."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", action="store_true", help="last line: {name: {value, bar, ok}}")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    parser.add_argument("--save", action="store_true", help=f"write benchmarks/results/<date>-<cores>-{name}.json")
    return parser


def parsed(description: str | None, name: str, quick: str) -> argparse.Namespace:
    """The command line of a script with no flags of its own."""
    return flags(description, name, quick).parse_args()


def at_least(value: float, bar: float) -> Figure:
    return {"value": value, "bar": bar, "ok": bool(value >= bar)}


def at_most(value: float, bar: float) -> Figure:
    return {"value": value, "bar": bar, "ok": bool(value <= bar)}


def known(value: float) -> Figure:
    """A figure without a bar."""
    return {"value": value, "bar": None, "ok": True}


def result_file(name: str) -> Path:
    """Path of today's result, for --save."""
    today = datetime.datetime.now(tz=datetime.UTC).date()
    return RESULTS / f"{today}-{os.cpu_count()}-{name}.json"


def newest(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """The latest saved result of a script. Raises FileNotFoundError when there is none."""
    found = sorted(path for path in folder.glob(f"*-{name}.json") if path.stem.split("-", 4)[-1] == name)
    if not found:
        raise FileNotFoundError(f"no result of {name} in {folder}: python benchmarks/{name}.py --save")
    document: dict[str, Any] = json.loads(found[-1].read_text())
    return document


def figures_of(document: dict[str, Any]) -> dict[str, Figure]:
    """The figures of a result file, without the other entries."""
    return {name: entry for name, entry in document.items() if isinstance(entry, dict) and "value" in entry}


def tell(
    options: argparse.Namespace,
    name: str,
    result: dict[str, Figure],
    told: Sequence[str] | None = None,
    **about: Any,
) -> int:
    """Print {name: {value, bar, ok}}, and save it after `about` with --save; returns the exit code.

    told: the figures to print; all by default.
    """
    about = {"machine": machine(), "commit": commit(), "load": LOAD, "quick": options.quick, **about}
    versions = ", ".join(f"{key} {value}" for key, value in about["machine"].items())
    print(
        f"{name}{' (quick)' if options.quick else ''}: commit {about['commit'] or 'unknown'}, load {LOAD}, {versions}"
    )
    for figure in result if told is None else told:
        entry = result[figure]
        bar = "" if entry["bar"] is None else f"   bar {entry['bar']:,}: {'met' if entry['ok'] else 'MISSED'}"
        print(f"{figure:48} {shown(entry['value'])}{bar}")
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        result_file(name).write_text(json.dumps({**about, **result}) + "\n")
    if options.json:
        print(json.dumps(result))
    return int(options.check and not all(entry["ok"] for entry in result.values()))


def shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"

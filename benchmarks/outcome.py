"""What every benchmark takes and tells: flags, one line a figure, results/<date>-<cores>-<name>.json, the exit code."""

import argparse
import datetime
import json
import os
from pathlib import Path
from typing import Any

__all__ = ["parsed", "tell"]

RESULTS = Path(__file__).parent / "results"


def parsed(description: str | None, name: str, quick: str) -> argparse.Namespace:
    """The command line: quick, json, check, save; `quick` says what --quick leaves out."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", action="store_true", help="last line: {name: {value, bar, ok}}")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    parser.add_argument("--save", action="store_true", help=f"write benchmarks/results/<date>-<cores>-{name}.json")
    return parser.parse_args()


def tell(options: argparse.Namespace, name: str, result: dict[str, dict[str, Any]], **about: Any) -> int:
    """Print and, as the options say, save {name: {value, bar, ok}}, `about` before it; returns the exit code."""
    for figure, entry in result.items():
        bar = "" if entry["bar"] is None else f"   bar {entry['bar']}: {'met' if entry['ok'] else 'MISSED'}"
        print(f"{figure:48} {entry['value']:.4g}{bar}")
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        today = datetime.datetime.now(tz=datetime.UTC).date()
        (RESULTS / f"{today}-{os.cpu_count()}-{name}.json").write_text(json.dumps({**about, **result}) + "\n")
    if options.json:
        print(json.dumps(result))
    return int(options.check and not all(entry["ok"] for entry in result.values()))

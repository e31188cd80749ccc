"""A million samples while actors and drivers are killed: none lost, none twice, memory flat. Method: README.md.

    python benchmarks/million.py --samples 1000000 [--actors 2] [--minutes-between-kills 1] [--driver-kills 2]
                                 [--model URI] [--out DIR] [--seed 0] [--json] [--check]

Trains a small class-conditional digits model (or takes --model), then runs `ddpm generate` in a process of its own:
a random actor gets SIGKILL every so many minutes, the driver at moments drawn from the seed, and the same command is
run again until the job is sealed. Writes results/<date>-<cores>-million.json and .md. An --out folder is kept, and the
same command with it goes on where it was stopped.
"""

import argparse
import datetime
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from digits_model import digits_config, train_digits
from invariants import check_invariants
from machine import machine
from torment import Record, Torment

from pipeline.config import StorageConfig
from pipeline.engine.generation import ShardGenerator, sample_table
from pipeline.storage.models import find_model, load_unet
from pipeline.storage.samples import read_plan
from pipeline.storage.store import Store, resolve

ROOT = Path(__file__).resolve().parents[1]
MILLION = 1_000_000
GROWTH_BAR_MB, DECISION_BAR_SECONDS = 50.0, 10.0
MEMORY_FROM = 10_000
SHARD = 512
WIDTHS = (16, 32)
REMADE = 4
GENERATE = {"sampler": "dpm++2m", "steps": 10, "batch_size": 256, "shard_size": SHARD, "seed": 2026}


def judged(job: Store, options: argparse.Namespace, record: Record) -> dict[str, dict[str, Any]]:
    """{name: {value, bar, ok}}. Raises AssertionError when an invariant does not hold."""
    samples, began = options.samples, time.monotonic()
    hashes = check_invariants(job, record.markers)
    checking = time.monotonic() - began
    different = remade(job, hashes, random.Random(options.seed))
    early = max(mb for _, done, mb in record.memory if done <= max(MEMORY_FROM, SHARD))
    growth = max(mb for *_, mb in record.memory) - early
    decision = max((kill["decision_seconds"] for kill in record.driver_kills), default=0.0)
    gaps = samples - len(hashes.keys() & set(range(samples)))
    missed = options.driver_kills - len(record.driver_kills)
    values = {
        "distinct_ids": (len(hashes), samples, len(hashes) == samples),
        "gaps": (gaps, 0, gaps == 0),
        "driver_growth_mb": (round(growth, 1), GROWTH_BAR_MB, growth <= GROWTH_BAR_MB),
        "resume_decision_seconds": (decision, DECISION_BAR_SECONDS, decision <= DECISION_BAR_SECONDS),
        "remade_shards_differ": (different, 0, different == 0),
        "images_per_second": (round(samples / record.in_driver, 1), None, True),
        "hours": (round(record.seconds() / 3600, 3), None, True),
        "driver_peak_mb_at_10k": (early, None, True),
        "actor_kills": (record.actor_kills, 1, record.actor_kills >= 1),
        "driver_kills": (len(record.driver_kills), options.driver_kills, not missed),
        "failures": (len(record.failures), None, True),
        "distinct_images": (len(set(hashes.values())), None, True),
        "invariant_check_seconds": (round(checking, 1), None, True),
    }
    return {name: {"value": value, "bar": bar, "ok": ok} for name, (value, bar, ok) in values.items()}


def remade(job: Store, hashes: dict[int, str], chance: random.Random) -> int:
    """Images of some shards that this process makes again, without Ray, and that are not the same."""
    plan = read_plan(job)
    found = find_model(plan.model_uri, plan.weights, job.config)
    generator = ShardGenerator(load_unet(found, job.config), plan, torch.device("cpu"))
    different = 0
    for shard in chance.sample(range(plan.num_shards), min(REMADE, plan.num_shards)):
        ids = range(shard * plan.shard_size, min((shard + 1) * plan.shard_size, plan.num_samples))
        again = sample_table(plan, generator.shard(ids))["sha256"].to_pylist()
        different += sum(hashes[i] != sha256 for i, sha256 in zip(ids, again, strict=True))
    return different


def write(options: argparse.Namespace, record: Record, result: dict[str, dict[str, Any]]) -> Path:
    """The JSON and the page beside it."""
    name = "million" if options.samples == MILLION else f"million-{options.samples}"
    stem = Path(__file__).parent / "results" / f"{datetime.date.today().isoformat()}-{os.cpu_count()}-{name}"
    step = max(1, len(record.memory) // 200)
    document = {
        "result": result,
        "machine": machine("torch", "ray", "pyarrow"),
        "settings": GENERATE | {"samples": options.samples, "actors": options.actors, "channels": WIDTHS},
        "driver_kills": record.driver_kills,
        "failures": record.failures,
        "driver_memory": {"columns": ["seconds", "samples", "MB"], "rows": record.memory[::step]},
    }
    stem.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    rows = [f"| {key} | {e['value']:,} | {'' if e['bar'] is None else e['bar']} |" for key, e in result.items()]
    about = ", ".join(f"{key} {value}" for key, value in document["machine"].items())
    head = f"# {options.samples:,} samples, {options.actors} actors\n\n{about}.\n"
    table = "\n".join(["| figure | value | bar |", "|---|---|---|", *rows])
    kills = "\n".join(f"- driver killed: {json.dumps(kill)}" for kill in record.driver_kills)
    stem.with_suffix(".md").write_text("\n".join([head, table, "", kills, ""]))
    return stem


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=MILLION)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--minutes-between-kills", type=float, default=1.0)
    parser.add_argument("--driver-kills", type=int, default=2)
    parser.add_argument("--model", help="URI of an 8x8 model; trained when not given")
    parser.add_argument("--out", type=Path, help="kept; a temporary folder when not given")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and victims")
    parser.add_argument("--json", action="store_true", help="last line: {name: {value, bar, ok}}")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    return parser.parse_args()


def main() -> int:
    options = parsed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the driver ends too
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(options.out or temporary).absolute()
        out.mkdir(parents=True, exist_ok=True)
        config = out / "config.yaml"
        config.write_text(yaml.safe_dump({"generate": GENERATE, "ray": {"workers": options.actors}}))
        model = options.model or train_digits(digits_config(*WIDTHS, conditional=True), out / "model")
        job = resolve(f"{out}/samples", StorageConfig())
        words = [sys.executable, "-m", "jobs", "generate", "--model", model, "--out", job.uri]
        words += ["--num-samples", str(options.samples), "--config", str(config)]
        record = Torment(job, words, options, out / "driver.log").run()
        result = judged(job, options, record)
    print(f"written: {write(options, record, result)}.json and .md", file=sys.stderr)
    for name, entry in result.items():
        bar = "" if entry["bar"] is None else f"   bar {entry['bar']:,}: {'met' if entry['ok'] else 'MISSED'}"
        print(f"{name:26} {entry['value']:,}{bar}")
    if options.json:
        print(json.dumps(result))
    return int(options.check and not all(entry["ok"] for entry in result.values()))


if __name__ == "__main__":
    sys.exit(main())

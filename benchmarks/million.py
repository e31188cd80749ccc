"""A million samples while actors and drivers are killed: each sample exactly once, constant memory. Method: README.md.

    python benchmarks/million.py [--samples 1000000] [--actors 2] [--minutes-between-kills 1] [--driver-kills 2]
                                 [--model URI] [--out DIR] [--seed 0] [--quick] [--json] [--check] [--save]

Trains a small class-conditional digits model (or takes --model), then runs `ddpm generate` in a process of its own:
a random actor gets SIGKILL at a fixed interval, the driver at moments drawn from the seed, and the same command is
repeated until the samples folder is sealed. An --out folder is kept, and the same command continues it.
"""

import argparse
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
from outcome import flags, tell
from torment import Record, Torment

from pipeline.config.storage import StorageConfig
from pipeline.generation.commit import read_plan
from pipeline.generation.generator import ShardGenerator, sample_table
from pipeline.model_store.load_model import find_model, load_unet
from pipeline.storage.store import Store, resolve

ROOT = Path(__file__).resolve().parents[1]
MILLION = 1_000_000
GROWTH_BAR_MB, DECISION_BAR_SECONDS = 50.0, 10.0
MEMORY_FROM = 10_000
SHARD = 512
WIDTHS = (16, 32)
REMADE = 4
FULL = {"samples": MILLION, "minutes_between_kills": 1.0, "driver_kills": 2}
CURVE_POINTS = 200
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
    """Number of images that differ when this process makes some shards again, without Ray."""
    plan = read_plan(job)
    found = find_model(plan.model_uri, plan.weights, job.config)
    generator = ShardGenerator(load_unet(found, job.config), plan, torch.device("cpu"))
    different = 0
    for shard in chance.sample(range(plan.num_shards), min(REMADE, plan.num_shards)):
        ids = range(shard * plan.shard_size, min((shard + 1) * plan.shard_size, plan.num_samples))
        again = sample_table(plan, generator.shard(ids))["sha256"].to_pylist()
        different += sum(hashes[i] != sha256 for i, sha256 in zip(ids, again, strict=True))
    return different


def about(options: argparse.Namespace, record: Record) -> dict[str, Any]:
    """Further content of a saved result, beside its figures."""
    step = max(1, len(record.memory) // CURVE_POINTS)
    return {
        "settings": GENERATE | {"samples": options.samples, "actors": options.actors, "channels": WIDTHS},
        "driver_kills_told": record.driver_kills,
        "failures_told": record.failures,
        "driver_memory": {"columns": ["seconds", "samples", "MB"], "rows": record.memory[::step]},
    }


def command_line() -> argparse.Namespace:
    parser = flags(__doc__, "million", quick="20,000 samples, a kill every 15 seconds, one dead driver")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--minutes-between-kills", type=float)
    parser.add_argument("--driver-kills", type=int)
    parser.add_argument("--model", help="URI of an 8x8 model; trained when not given")
    parser.add_argument("--out", type=Path, help="kept; a temporary folder when not given")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and victims")
    options = parser.parse_args()
    usual = {"samples": 20_000, "minutes_between_kills": 0.25, "driver_kills": 1} if options.quick else FULL
    for name, value in usual.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def main() -> int:
    options = command_line()
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
    name = "million" if options.samples == MILLION else f"million-{options.samples}"
    return tell(options, name, result, **about(options, record))


if __name__ == "__main__":
    sys.exit(main())

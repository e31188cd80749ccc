"""Small things that several tests make: a configuration, a dataset on any store, the program as a process."""

import os
import subprocess
import sys
from pathlib import Path

import yaml

from pipeline.config.root import Config
from pipeline.ingest.driver import ingest

ROOT = Path(__file__).parent.parent
SETTINGS = {
    "ingest": {"image_size": 8, "channels": 1, "heldout_share": 0.25, "shard_rows": 32, "partition_rows": 600},
    "model": {"block_out_channels": [8, 16], "layers_per_block": 1, "attention_levels": [1], "norm_num_groups": 4},
    "train": {
        "steps": 48,
        "lanes": 4,
        "micro_batch": 8,
        "lr": 0.002,
        "warmup_steps": 10,
        "ema": {"decay": 0.9},
        "checkpoint_every": 16,
        "grid_every": 24,
        "grid_size": 9,
        "grid_sampling_steps": 5,
    },
    "generate": {
        "num_samples": 80,
        "sampler": "ddim",
        "steps": 5,
        "batch_size": 8,
        "shard_size": 16,
    },
}


def settings(**sections: dict) -> dict:
    """SETTINGS with some values replaced: settings(train={"steps": 8})."""
    return {name: {**SETTINGS.get(name, {}), **sections.get(name, {})} for name in SETTINGS.keys() | sections.keys()}


def config(**sections: dict) -> Config:
    """The same as a resolved configuration."""
    return Config.model_validate(settings(**sections))


def digits(root: str) -> str:
    """URI of the digits dataset under a root, made if it is not there."""
    uri = f"{root}/datasets/digits"
    ingest(config(), "digits", uri)
    return uri


def command(folder: Path, *argv: str, **sections: dict) -> list[str]:
    """A ddpm command line with the tiny settings in a file."""
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(settings(**sections)))
    return [sys.executable, "-m", "jobs", *argv, "--config", str(file)]


def start(words: list[str]) -> subprocess.Popen:
    """The command as a process of its own, with its output in pipes."""
    return subprocess.Popen(words, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(words: list[str]) -> subprocess.CompletedProcess:
    """The command to its end."""
    return subprocess.run(words, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=280)

"""Training on Ray from an S3 server against a bare loop and against diffusers' loop. Method: benchmarks/README.md.

python benchmarks/train.py [--quick] [--json] [--check] [--save]
"""

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from outcome import parsed, tell
from s3_server import SeaweedServer

from pipeline.cluster import cluster
from pipeline.config.root import Config
from pipeline.images.convert import to_model
from pipeline.images.png import decode_pixels
from pipeline.ingest.dataset import read_dataset
from pipeline.model_store.checkpoint import latest_checkpoint
from pipeline.models.cpu import compute_on_one_core
from pipeline.storage.files import read_parquet
from pipeline.storage.store import resolve
from pipeline.training.inputs import MicroBatch
from pipeline.training.metrics_table import read_metrics
from pipeline.training.trainer import Trainer

BARE_BAR, MEMORY_BAR, DIFFUSERS_BAR = 0.95, 1.10, 1.3
ROOT = Path(__file__).resolve().parents[1]
IDLE_ACTORS = 12
SIZE, WORKERS = 32, 2
SCHEDULE = {
    "lanes": 4,
    "warmup_steps": 10,
    "checkpoint_every": 10_000,
    "grid_every": 10_000,
    "grid_size": 1,
    "grid_sampling_steps": 1,
}
CIFAR10 = {  # the network of Ho et al. 2020 for CIFAR-10, 35.7 M parameters
    "ingest": {"image_size": SIZE, "channels": 3, "shard_rows": 128},
    "model": {"block_out_channels": [128, 256, 256, 256], "attention_levels": [1]},
    "train": {**SCHEDULE, "micro_batch": 16},
}
NARROW = {  # 0.9 M parameters, so overhead has the largest share
    "ingest": {"image_size": SIZE, "channels": 1, "shard_rows": 128},
    "model": {"block_out_channels": [32, 64, 64], "attention_levels": [2], "norm_num_groups": 8},
    "train": {**SCHEDULE, "micro_batch": 16},
}
TINY = {
    "ingest": {"image_size": 8, "channels": 1, "shard_rows": 1024, "partition_rows": 10_000},
    "model": {"block_out_channels": [8], "layers_per_block": 1, "attention_levels": [], "norm_num_groups": 4},
    "train": {**SCHEDULE, "micro_batch": 32},
}


def ddpm(*words: str, settings: dict[str, Any], folder: Path) -> subprocess.Popen:
    """The command as a user starts it."""
    file = folder / "bench.json"  # JSON is YAML
    file.write_text(json.dumps(settings))
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", *words, "--config", str(file)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    _, err = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(process.args[:5])} failed:\n{err}")


@dataclass(frozen=True)
class Case:
    """One network and its dataset in the store, with the number of steps and of warm-up steps."""

    name: str
    settings: dict[str, Any]
    steps: int
    warm_up: int

    @property
    def config(self) -> Config:
        return Config.model_validate(self.settings)

    @property
    def batch(self) -> int:
        return self.config.train.global_batch

    def ingest(self, root: str, folder: Path) -> torch.Tensor:
        """Ingests the digits as this network's dataset; returns the images as tensors."""
        words = ["ingest", "--source", "digits", "--dataset", self.dataset(root)]
        finish(ddpm(*words, settings=self.settings, folder=folder))
        return in_memory(self.config, self.dataset(root))

    def dataset(self, root: str) -> str:
        return f"{root}/digits-{self.name}"

    def steady(self, seconds: list[float]) -> float:
        """Images a second of all steps except the first ones."""
        counted = seconds[self.warm_up :]
        return self.batch * len(counted) / sum(counted)


def pipeline(case: Case, root: str, number: int, folder: Path) -> float:
    """2 Ray workers of one thread, images streamed from the store, checkpoint at the end."""
    run = f"{root}/run-{case.name}-{number}"
    words = ["train", "--dataset", case.dataset(root), "--run", run, "--workers", str(WORKERS)]
    finish(ddpm(*words, "--steps", str(case.steps), settings=case.settings, folder=folder))
    store = resolve(run, case.config.storage)
    rows = read_metrics(store, latest_checkpoint(store)).to_pylist()
    return case.steady([row["step_seconds"] for row in rows])


def _bare_worker(rank: int, port: int, case: Case, images: torch.Tensor, out: Any) -> None:
    compute_on_one_core()
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=WORKERS)
    config, seconds = case.config, []
    trainer = Trainer(config, SIZE, images.shape[1], torch.device("cpu"), WORKERS, dist.all_reduce)
    size, lanes = config.train.micro_batch, range(rank, config.train.lanes, WORKERS)
    for step in range(case.steps):
        began = time.perf_counter()
        batches = []
        for lane in lanes:
            ids = (torch.arange(size) + (step * config.train.lanes + lane) * size) % len(images)
            batches.append(MicroBatch(images[ids], ids, None, step))
        trainer.step(batches)
        seconds.append(time.perf_counter() - began)
    if rank == 0:
        out.put(case.steady(seconds))
    dist.destroy_process_group()


def bare(case: Case, images: torch.Tensor) -> float:
    """2 processes of one thread, gloo, images in memory as tensors, nothing written."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return spawned(_bare_worker, (port, case, images), WORKERS)


def bare_beside_ray(case: Case, images: torch.Tensor) -> float:
    """The same beside an idle local Ray cluster: the cost of Ray's processes on the two cores."""
    import ray

    with cluster(case.config.ray, num_cpus=WORKERS):
        idle = [ray.remote(num_cpus=0)(Idle).remote() for _ in range(IDLE_ACTORS)]
        ray.get([actor.ready.remote() for actor in idle])
        return bare(case, images)


class Idle:
    """Stands for the actors that Ray Train keeps beside its workers, which mostly wait."""

    def ready(self) -> None:
        """Returns when the actor has started."""


def spawned(work: Callable[..., None], arguments: tuple[Any, ...], processes: int) -> float:
    """Output of one of the processes; exits when one fails."""
    context = mp.get_context("spawn")
    out = context.SimpleQueue()

    def run(rank: int) -> mp.Process:
        ranked = (rank, *arguments, out) if processes > 1 else (*arguments, out)
        process = context.Process(target=work, args=ranked)
        process.start()
        return process

    for process in [run(rank) for rank in range(processes)]:
        process.join()
        if process.exitcode:
            raise SystemExit(f"{work.__name__} failed with {process.exitcode}: see above (pip install -e '.[bench]'?)")
    return out.get()


def _diffusers_loop(case: Case, images: torch.Tensor, out: Any) -> None:
    """The loop of diffusers' unconditional example: accelerate, add_noise, MSE, clipping, AdamW, EMA; its threads."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    from pipeline.models.diffusers_format import UNET_FILE, model_files
    from pipeline.models.unet import UNet

    config, channels = case.config, images.shape[1]
    accelerator = Accelerator(cpu=True)
    fields = json.loads(model_files(UNet(config.model, channels, channels, SIZE), config.diffusion)[UNET_FILE])
    model = UNet2DModel.from_config(fields)
    average = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.train.lr)
    model, optimizer = accelerator.prepare(model, optimizer)
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    seconds = []
    for step in range(case.steps):
        began = time.perf_counter()
        clean = images[(torch.arange(case.batch) + step * case.batch) % len(images)]
        noise, t = torch.randn_like(clean), torch.randint(0, 1000, (case.batch,))
        loss = torch.nn.functional.mse_loss(model(scheduler.add_noise(clean, noise, t), t).sample, noise)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(model.parameters())
        seconds.append(time.perf_counter() - began)
    out.put(case.steady(seconds))


def diffusers(case: Case, images: torch.Tensor) -> float:
    """One process with torch's default threads: the usual way on such a machine."""
    return spawned(_diffusers_loop, (case, images), 1)


def in_memory(config: Config, dataset: str) -> torch.Tensor:
    """float32 [N, 1, H, W] in [-1, 1]: the training split."""
    store = resolve(dataset, config.storage)
    shards = read_dataset(store).split("train")
    encoded = [
        image["bytes"] for shard in shards for image in read_parquet(store, shard, ["image"])["image"].to_pylist()
    ]
    return to_model(np.stack([decode_pixels(png, SIZE * SIZE) for png in encoded]))


def peak_memory(images: int, steps: int, folder: Path, root: str) -> float:
    """Peak MiB of a training worker, over a dataset of `images` 8x8 images."""
    source = folder / f"noise-{images}-images-idx3-ubyte"
    pixels = np.random.default_rng(0).integers(0, 256, (images, 8, 8), np.uint8)
    source.write_bytes(b"\0\0\x08\x03" + np.array(pixels.shape, ">u4").tobytes() + pixels.tobytes())
    dataset = f"{root}/noise-{images}"
    finish(ddpm("ingest", "--source", str(source), "--dataset", dataset, settings=TINY, folder=folder))
    words = ["train", "--dataset", dataset, "--run", f"{root}/run-{images}", "--workers", str(WORKERS)]
    process = ddpm(*words, "--steps", str(steps), settings=TINY, folder=folder)
    peak, ended = [0.0], threading.Event()
    watch = threading.Thread(target=_watch, args=(peak, ended))
    watch.start()
    finish(process)
    ended.set()
    watch.join()
    return peak[0]


def _watch(peak: list[float], ended: threading.Event) -> None:
    while not ended.wait(0.5):
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if b"ray::RayTrainWorker" in (folder / "cmdline").read_bytes():
                    found = re.search(r"VmHWM:\s+(\d+) kB", (folder / "status").read_text())
                    peak[0] = max(peak[0], int(found.group(1)) / 1024)
            except (OSError, AttributeError):
                continue


def entry(value: float, bar: float | None = None, at_most: bool = False) -> dict[str, Any]:
    ok = bar is None or (value <= bar if at_most else value >= bar)
    return {"value": value, "bar": bar, "ok": ok}


def compare(case: Case, rounds: int, root: str, folder: Path) -> dict[str, dict[str, Any]]:
    """All contenders in turn in every round; ratios are medians over rounds."""
    images = case.ingest(root, folder)
    speeds: dict[str, list[float]] = {"pipeline": [], "bare": [], "bare_beside_ray": [], "diffusers": []}
    for number in range(rounds):
        speeds["bare"].append(bare(case, images))
        speeds["pipeline"].append(pipeline(case, root, number, folder))
        speeds["bare_beside_ray"].append(bare_beside_ray(case, images))
        speeds["diffusers"].append(diffusers(case, images))
        print(
            case.name, *(f"{name} {found[-1]:.2f} img/s" for name, found in speeds.items()), sep=", ", file=sys.stderr
        )

    def over(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(speeds[one], speeds[other], strict=True))

    result = {
        "pipeline_vs_bare": entry(over("pipeline", "bare"), BARE_BAR),
        "pipeline_vs_diffusers": entry(over("pipeline", "diffusers"), DIFFUSERS_BAR),
        "ceiling_beside_ray": entry(over("bare_beside_ray", "bare")),
        **{f"{name}_images_per_second": entry(statistics.median(found)) for name, found in speeds.items()},
    }
    return {f"{case.name}_{name}": found for name, found in result.items()}


def measure(quick: bool) -> dict[str, dict[str, Any]]:
    rounds, few, many = (1, 10_000, 20_000) if quick else (3, 10_000, 100_000)
    with SeaweedServer() as server, tempfile.TemporaryDirectory() as temp:
        folder, root = Path(temp), server.uri
        os.environ.update(server.environment)
        result = compare(Case("cifar10", CIFAR10, steps=5 if quick else 8, warm_up=2), rounds, root, folder)
        result |= compare(Case("narrow", NARROW, steps=40, warm_up=10), rounds, root, folder)
        small, large = (peak_memory(count, 200, folder, root) for count in (few, many))
    result["memory_many_vs_few"] = entry(large / small, MEMORY_BAR, at_most=True)
    return result | {"worker_peak_mib_few": entry(small), "worker_peak_mib_many": entry(large)}


def main() -> int:
    args = parsed(__doc__, "train", quick="one round, smaller data sets")
    result = measure(args.quick)
    return tell(args, "train", result)


if __name__ == "__main__":
    sys.exit(main())

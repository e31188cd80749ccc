"""Training on Ray from an S3 server against a bare loop and against diffusers' loop. Method: benchmarks/README.md.

python benchmarks/train.py [--quick] [--json] [--check] [--save]
"""

import argparse
import datetime
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
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.config import Config
from pipeline.engine.images import decode_pixels, to_model
from pipeline.engine.training import MicroBatch, Trainer
from pipeline.storage.checkpoints import latest_checkpoint
from pipeline.storage.metrics import read_metrics
from pipeline.storage.seaweed import SeaweedServer
from pipeline.storage.shards import read_dataset, read_parquet
from pipeline.storage.store import resolve

BARE_BAR, MEMORY_BAR, DIFFUSERS_BAR = 0.95, 1.10, 1.3
ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 10
SIZE, WORKERS = 32, 2
SETTINGS = {
    "ingest": {"image_size": SIZE, "channels": 1, "shard_rows": 128},
    "model": {"block_out_channels": [32, 64, 64], "attention_levels": [2], "norm_num_groups": 8},
    "train": {"lanes": 4, "micro_batch": 16, "warmup_steps": 10, "checkpoint_every": 10_000, "grid_every": 10_000},
}
TINY = {
    "ingest": {"image_size": 8, "channels": 1, "shard_rows": 1024, "partition_rows": 10_000},
    "model": {"block_out_channels": [8], "layers_per_block": 1, "attention_levels": [], "norm_num_groups": 4},
    "train": {**SETTINGS["train"], "micro_batch": 32, "grid_size": 1, "grid_sampling_steps": 1},
}


def ddpm(*words: str, settings: dict, env: dict[str, str], folder: Path) -> subprocess.Popen:
    """The program as a user starts it."""
    file = folder / "bench.json"  # JSON is YAML
    file.write_text(json.dumps(settings))
    return subprocess.Popen(
        [sys.executable, "-m", "jobs", *words, "--config", str(file)],
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    _, err = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(process.args[:5])} failed:\n{err}")


def steady(seconds: list[float], batch: int) -> float:
    """Images a second of all steps but the first ones."""
    return batch * len(seconds[WARM_UP:]) / sum(seconds[WARM_UP:])


def batch_of(config: Config) -> int:
    return config.train.global_batch


def pipeline(config: Config, dataset: str, run: str, env: dict[str, str], folder: Path, steps: int) -> float:
    """2 Ray workers of one thread, images streamed from the store, checkpoint at the end."""
    words = ["train", "--dataset", dataset, "--run", run, "--workers", str(WORKERS), "--steps", str(steps)]
    finish(ddpm(*words, settings=SETTINGS, env=env, folder=folder))
    store = resolve(run, config.storage)
    rows = read_metrics(store, latest_checkpoint(store)).to_pylist()
    return steady([row["step_seconds"] for row in rows], batch_of(config))


def _bare_worker(rank: int, port: int, config: Config, images: torch.Tensor, steps: int, out) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=WORKERS)
    trainer = Trainer(config, SIZE, 1, torch.device("cpu"), WORKERS, dist.all_reduce)
    size, lanes, seconds = config.train.micro_batch, range(rank, config.train.lanes, WORKERS), []
    for step in range(steps):
        began = time.perf_counter()
        batches = []
        for lane in lanes:
            ids = (torch.arange(size) + (step * config.train.lanes + lane) * size) % len(images)
            batches.append(MicroBatch(images[ids], ids, None, step))
        trainer.step(batches)
        seconds.append(time.perf_counter() - began)
    if rank == 0:
        out.put(steady(seconds, batch_of(config)))
    dist.destroy_process_group()


def bare(config: Config, images: torch.Tensor, steps: int) -> float:
    """2 processes of one thread, gloo, images in memory as tensors, nothing written."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    context = mp.get_context("spawn")
    out = context.SimpleQueue()
    arguments = (port, config, images, steps, out)
    for process in mp.start_processes(_bare_worker, arguments, WORKERS, join=False, start_method="spawn").processes:
        process.join()
    return out.get()


def _diffusers_loop(config: Config, images: torch.Tensor, steps: int, out) -> None:
    """The loop of diffusers' unconditional example: accelerate, add_noise, MSE, clipping, AdamW, EMA; its threads."""
    from accelerate import Accelerator
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    from pipeline.models.diffusers_format import UNET_FILE, model_files
    from pipeline.models.unet import UNet

    accelerator = Accelerator(cpu=True)
    fields = json.loads(model_files(UNet(config.model, 1, 1, SIZE), config.diffusion)[UNET_FILE])
    model = UNet2DModel.from_config(fields)
    average = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.train.lr)
    model, optimizer = accelerator.prepare(model, optimizer)
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    batch, seconds = batch_of(config), []
    for step in range(steps):
        began = time.perf_counter()
        clean = images[(torch.arange(batch) + step * batch) % len(images)]
        noise, t = torch.randn_like(clean), torch.randint(0, 1000, (batch,))
        loss = torch.nn.functional.mse_loss(model(scheduler.add_noise(clean, noise, t), t).sample, noise)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(model.parameters())
        seconds.append(time.perf_counter() - began)
    out.put(steady(seconds, batch))


def diffusers(config: Config, images: torch.Tensor, steps: int) -> float:
    """One process with torch's default threads: what its users run on such a machine."""
    context = mp.get_context("spawn")
    out = context.SimpleQueue()
    process = context.Process(target=_diffusers_loop, args=(config, images, steps, out))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit("the diffusers loop failed (pip install accelerate diffusers)")
    return out.get()


def in_memory(config: Config, dataset: str) -> torch.Tensor:
    """float32 [N, 1, H, W] in [-1, 1]: the training split."""
    store = resolve(dataset, config.storage)
    shards = read_dataset(store).split("train")
    encoded = [
        image["bytes"] for shard in shards for image in read_parquet(store, shard, ["image"])["image"].to_pylist()
    ]
    return to_model(np.stack([decode_pixels(png, SIZE * SIZE) for png in encoded]))


def peak_memory(images: int, steps: int, env: dict[str, str], folder: Path, root: str) -> float:
    """Largest MiB that a training worker ever held, over a data set of so many 8x8 images."""
    source = folder / f"noise-{images}-images-idx3-ubyte"
    pixels = np.random.default_rng(0).integers(0, 256, (images, 8, 8), np.uint8)
    source.write_bytes(b"\0\0\x08\x03" + np.array(pixels.shape, ">u4").tobytes() + pixels.tobytes())
    dataset = f"{root}/noise-{images}"
    finish(ddpm("ingest", "--source", str(source), "--dataset", dataset, settings=TINY, env=env, folder=folder))
    words = ["train", "--dataset", dataset, "--run", f"{root}/run-{images}", "--workers", str(WORKERS)]
    process = ddpm(*words, "--steps", str(steps), settings=TINY, env=env, folder=folder)
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


def measure(quick: bool) -> dict[str, dict[str, object]]:
    rounds, steps = (1, 40) if quick else (3, 60)
    speeds: dict[str, list[float]] = {"pipeline": [], "bare": [], "diffusers": []}
    with SeaweedServer() as server, tempfile.TemporaryDirectory() as temp:
        folder, root = Path(temp), server.uri
        os.environ.update(server.environment)
        config = Config.model_validate({name: SETTINGS[name] for name in SETTINGS})
        dataset = f"{root}/digits"
        finish(ddpm("ingest", "--source", "digits", "--dataset", dataset, settings=SETTINGS, env={}, folder=folder))
        images = in_memory(config, dataset)
        for number in range(rounds):
            speeds["bare"].append(bare(config, images, steps))
            speeds["pipeline"].append(pipeline(config, dataset, f"{root}/run-{number}", {}, folder, steps))
            speeds["diffusers"].append(diffusers(config, images, steps))
        few, many = (10_000, 20_000) if quick else (10_000, 100_000)
        small, large = (peak_memory(count, 200, {}, folder, root) for count in (few, many))
    over = {
        name: statistics.median(a / b for a, b in zip(speeds["pipeline"], speeds[name], strict=True))
        for name in ("bare", "diffusers")
    }
    result: dict[str, dict[str, object]] = {
        "pipeline_vs_bare": {"value": over["bare"], "bar": BARE_BAR, "ok": over["bare"] >= BARE_BAR},
        "pipeline_vs_diffusers": {
            "value": over["diffusers"],
            "bar": DIFFUSERS_BAR,
            "ok": over["diffusers"] >= DIFFUSERS_BAR,
        },
        "memory_many_vs_few": {"value": large / small, "bar": MEMORY_BAR, "ok": large / small <= MEMORY_BAR},
        "worker_peak_mib_few": {"value": small, "bar": None, "ok": True},
        "worker_peak_mib_many": {"value": large, "bar": None, "ok": True},
    }
    for name, found in speeds.items():
        result[f"{name}_images_per_second"] = {"value": statistics.median(found), "bar": None, "ok": True}
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, smaller data sets")
    parser.add_argument("--json", action="store_true", help="last line: {name: {value, bar, ok}}")
    parser.add_argument("--check", action="store_true", help="exit 1 when a bar is missed")
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/<date>-<cores>-train.json")
    args = parser.parse_args()
    result = measure(args.quick)
    for name, entry in result.items():
        bar = "" if entry["bar"] is None else f"   bar {entry['bar']}: {'met' if entry['ok'] else 'MISSED'}"
        print(f"{name:32} {entry['value']:.4g}{bar}")
    line = json.dumps(result)
    if args.save:
        folder = Path(__file__).parent / "results"
        folder.mkdir(exist_ok=True)
        today = datetime.datetime.now(tz=datetime.UTC).date()
        (folder / f"{today}-{os.cpu_count()}-train.json").write_text(line + "\n")
    if args.json:
        print(line)
    return int(args.check and not all(entry["ok"] for entry in result.values()))


if __name__ == "__main__":
    sys.exit(main())

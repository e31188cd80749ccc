"""CPU time to a given quality: `ddpm train` on two workers against diffusers' loop, same network, same cores.

    python benchmarks/time_to_fd.py [--quick] [--minutes 10] [--source FOLDER] [--json] [--check] [--save]

Both train the same U-Net (Fashion-MNIST, 28x28 grey; with --quick the 8x8 digits) with the same batch, learning rate,
warm-up, clipping and average of the weights, one after the other, each for so many minutes: ours from first weights by
fan-in with the last layers 0, diffusers' from its own (torch's, no layer 0). Weights are kept meanwhile; afterwards the
same samples (ids, noise, DPM-Solver++(2M) with 10 steps) are drawn from each and scored by FD-class-cnn against the
training images, beside the floor. Time is CPU seconds of the trainer and all its processes since its first step
(start-up is stated apart), so whatever else the machine does is not counted. Method: benchmarks/README.md.

Fashion-MNIST is Debian's package dataset-fashion-mnist, or a folder with the four files. `--save` also draws
docs/pictures/time-to-fd.svg.
"""

import itertools
import json
import math
import multiprocessing as mp
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from outcome import at_most, flags, known, tell
from picture import write_picture
from quality import Judge, drawn, sampler_of, split_of
from steady import CpuClock

from pipeline.config.root import Config
from pipeline.errors import DataError
from pipeline.images.convert import to_model
from pipeline.model_store.checkpoint import latest_checkpoint
from pipeline.model_store.load_model import find_model, load_unet
from pipeline.models.diffusers_format import UNET_FILE, model_files
from pipeline.models.unet import UNet
from pipeline.report.render.content import Chart, Series
from pipeline.storage.store import resolve
from pipeline.training.metrics_table import read_metrics

ROOT = Path(__file__).resolve().parents[1]
RATIO_BAR = 0.8
DECAY, WORKERS, SAMPLER_STEPS = 0.995, 2, 10
KEPT = {"keep_checkpoints": 1000, "grid_every": 10**6, "grid_size": 1, "grid_sampling_steps": 1, "steps": 20_000}
KEPT |= {"warmup_steps": 100, "ema": {"decay": DECAY}, "init": "fan_in"}


class Form(NamedTuple):
    """Data, network, training time and evaluation of one form of the benchmark."""

    settings: dict[str, Any]
    source: str
    minutes: float
    samples: int
    reference: int  # training images of the classifier
    epochs: int


FASHION = Form(
    {
        "ingest": {"image_size": 28, "channels": 1, "heldout_share": 0.1, "shard_rows": 512, "splits": "pool"},
        "model": {
            "block_out_channels": [32, 64, 64],
            "layers_per_block": 1,
            "attention_levels": [2],
            "norm_num_groups": 8,
        },
        "train": {**KEPT, "lanes": 4, "micro_batch": 16, "lr": 0.001, "checkpoint_every": 150},
    },
    "/usr/share/datasets/fashion-mnist",
    10.0,
    1000,
    10_000,
    8,
)
DIGITS = Form(
    {
        "ingest": {"image_size": 8, "channels": 1, "heldout_share": 0.2, "shard_rows": 128},
        "model": {
            "block_out_channels": [32, 64],
            "layers_per_block": 1,
            "attention_levels": [1],
            "norm_num_groups": 8,
        },
        "train": {**KEPT, "lanes": 2, "micro_batch": 32, "lr": 0.002, "checkpoint_every": 40},
    },
    "digits",
    0.25,
    256,
    1400,
    5,
)


def ddpm(*words: str, settings: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jobs", *words, "--config", str(settings)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(process.args[:5])} failed:\n{err}")  # type: ignore[index]


class Point(NamedTuple):
    step: int
    cpu_seconds: float
    state: dict[str, torch.Tensor]


def ours(form: Form, dataset: str, run: str, settings: Path) -> tuple[list[Point], float]:
    """Averaged weights of every checkpoint, and the CPU seconds before the first step."""
    config = Config.model_validate(form.settings)
    with CpuClock() as clock:
        began = time.time()
        train = ddpm("train", "--dataset", dataset, "--run", run, "--workers", str(WORKERS), settings=settings)
        kept = Path(run) / "checkpoints"
        while train.poll() is None and not list(kept.glob("*/manifest.json")):
            time.sleep(0.2)
        try:
            train.communicate(timeout=60.0 * form.minutes)
        except subprocess.TimeoutExpired:
            train.send_signal(signal.SIGTERM)  # training stops with a checkpoint
            train.communicate()
    store = resolve(run, config.storage)
    last = latest_checkpoint(store)
    if last is None:
        raise DataError(f"{run}: no checkpoint within {form.minutes} minutes")
    seconds = read_metrics(store, last)["step_seconds"].to_numpy()
    places = sorted(kept.glob("*/manifest.json"))
    stamps = {int(place.parent.name.removeprefix("step-")): place.stat().st_mtime for place in places}
    first_step = min(stamps)
    start = stamps[first_step] - float(seconds[:first_step].sum())
    points = [
        Point(
            step,
            clock.between(start, stamp),
            load_unet(
                find_model(f"{run}/checkpoints/step-{step:09d}", "ema", config.storage), config.storage
            ).state_dict(),
        )
        for step, stamp in stamps.items()
    ]
    return points, clock.between(began, start)


def _diffusers_loop(form: Form, images: torch.Tensor, folder: str, out: Any) -> None:
    """The loop of diffusers' unconditional example, with torch's default threads; keeps weights as often as ours."""
    before = time.process_time()
    from accelerate import Accelerator
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    config = Config.model_validate(form.settings)
    channels, size, batch = images.shape[1], images.shape[-1], config.train.global_batch
    accelerator = Accelerator(cpu=True)
    fields = json.loads(model_files(UNet(config.model, channels, channels, size), config.diffusion)[UNET_FILE])
    model = UNet2DModel.from_config(fields)
    average = EMAModel(model.parameters(), decay=DECAY)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.train.lr, weight_decay=config.train.weight_decay)
    warm = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1.0, (k + 1) / config.train.warmup_steps))
    model, optimizer, warm = accelerator.prepare(model, optimizer, warm)
    scheduler = DDPMScheduler(num_train_timesteps=config.diffusion.num_timesteps)
    order = torch.empty(0, dtype=torch.long)
    marks, began, wall = [], time.process_time(), time.monotonic()
    for step in itertools.count(1):
        if len(order) < batch:
            order = torch.randperm(len(images))
        clean, order = images[order[:batch]], order[batch:]
        noise, t = torch.randn_like(clean), torch.randint(0, config.diffusion.num_timesteps, (batch,))
        loss = torch.nn.functional.mse_loss(model(scheduler.add_noise(clean, noise, t), t).sample, noise)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), config.train.grad_clip)
        optimizer.step()
        warm.step()
        optimizer.zero_grad()
        average.step(model.parameters())
        over = time.monotonic() - wall >= 60.0 * form.minutes
        if over or step % config.train.checkpoint_every == 0:
            average.store(model.parameters())
            average.copy_to(model.parameters())
            torch.save(model.state_dict(), f"{folder}/{step}.pt")
            average.restore(model.parameters())
            marks.append((step, time.process_time() - began))
        if over:
            break
    out.put((marks, began - before))


def diffusers(form: Form, images: torch.Tensor, folder: str) -> tuple[list[Point], float]:
    context = mp.get_context("spawn")
    out = context.SimpleQueue()
    process = context.Process(target=_diffusers_loop, args=(form, images, folder, out))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"diffusers' loop failed with {process.exitcode}: see above (pip install -e '.[bench]'?)")
    marks, startup = out.get()
    points = [Point(step, cpu, torch.load(f"{folder}/{step}.pt", weights_only=True)) for step, cpu in marks]
    return points, startup


def _samples(task: tuple[Form, tuple[int, int, int], dict[str, torch.Tensor]]) -> Any:
    """uint8 [N, H, W, C] from one set of weights, by our sampler for both trainers."""
    form, shape, state = task
    torch.set_num_threads(1)
    config = Config.model_validate(form.settings)
    unet = UNet(config.model, shape[0], shape[0], shape[1])
    unet.load_state_dict(state)
    return drawn(unet, config, shape, sampler_of(config, "dpm++2m", SAMPLER_STEPS), range(form.samples))


Curve = list[tuple[float, float]]
"""(CPU seconds, FD), in order of time."""


def reached(curve: Curve, fd: float) -> float:
    """CPU seconds at which a curve first reaches `fd`, with log FD linear between points; inf if it never does."""
    before: tuple[float, float] | None = None
    for cpu, value in curve:
        if value <= fd:
            if before is None:
                return cpu
            share = (math.log(before[1]) - math.log(fd)) / (math.log(before[1]) - math.log(value))
            return before[0] + share * (cpu - before[0])
        before = (cpu, value)
    return math.inf


def compared(mine: Curve, theirs: Curve) -> dict[str, dict[str, Any]]:
    """Ratio at the best FD that both reach, and median ratio over levels down to that FD."""
    target = max(min(fd for _, fd in curve) for curve in (mine, theirs))
    start = min(curve[0][1] for curve in (mine, theirs))
    levels = np.geomspace(max(start, target), target, 5)
    ratios = [reached(mine, float(level)) / reached(theirs, float(level)) for level in levels]
    return {
        "cpu_over_diffusers": at_most(round(ratios[-1], 4), RATIO_BAR),
        "cpu_over_diffusers_all_levels": known(round(statistics.median(ratios), 4)),
        "target_fd": known(round(target, 4)),
        "ours_cpu_seconds_to_target": known(round(reached(mine, target), 1)),
        "diffusers_cpu_seconds_to_target": known(round(reached(theirs, target), 1)),
    }


def measure(form: Form, folder: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    config = Config.model_validate(form.settings)
    settings = folder / "settings.json"  # JSON is YAML
    settings.write_text(json.dumps(form.settings))
    dataset = str(folder / "dataset")
    finished(ddpm("ingest", "--source", form.source, "--dataset", dataset, settings=settings))
    data = resolve(dataset, config.storage)
    images, _ = split_of(data, "train", 10**9)
    (folder / "theirs").mkdir()
    found = {"ours": ours(form, dataset, str(folder / "run"), settings)}
    found["diffusers"] = diffusers(form, to_model(images), str(folder / "theirs"))
    judge = Judge.of(*split_of(data, "train", form.reference), epochs=form.epochs)
    shape = (images.shape[3], images.shape[1], images.shape[2])
    tasks = [(form, shape, point.state) for points, _ in found.values() for point in points]
    with mp.get_context("spawn").Pool(WORKERS) as pool:
        fds = iter([judge.fd(made) for made in pool.imap(_samples, tasks)])
    curves = {
        name: [(p.step, round(p.cpu_seconds, 2), next(fds)) for p in points] for name, (points, _) in found.items()
    }
    result = compared(*([(cpu, fd) for _, cpu, fd in curves[name]] for name in ("ours", "diffusers")))
    for name, (points, startup) in found.items():
        batch = config.train.global_batch
        result[f"{name}_images_a_cpu_second"] = known(round(points[-1].step * batch / points[-1].cpu_seconds, 2))
        result[f"{name}_startup_cpu_seconds"] = known(round(startup, 1))
        result[f"{name}_best_fd"] = known(round(min(fd for *_, fd in curves[name]), 4))
    heldout, _ = split_of(data, "heldout", form.samples)
    result["fd_floor"] = known(round(judge.fd(heldout), 4))
    result["n"] = known(form.samples)
    return result, {"columns": ["step", "cpu_seconds", "fd"], **curves}


def chart(curves: dict[str, Any], floor: float) -> Chart:
    lines = [
        Series(label, tuple(row[1] for row in curves[name]), tuple(row[2] for row in curves[name]))
        for name, label in (("ours", "ddpm train, 2 workers"), ("diffusers", "diffusers' loop, 2 threads"))
    ]
    ends = (0.0, max(line.x[-1] for line in lines))
    lines.append(Series("held-out images (floor)", ends, (floor, floor)))
    return Chart("FD-class-cnn against CPU time", "CPU seconds", "", tuple(lines), log=True)


def main() -> int:
    parser = flags(__doc__, "time_to_fd", quick="8x8 digits, a quarter of a minute each")
    parser.add_argument("--minutes", type=float, help="of training, each")
    parser.add_argument("--source", help="folder with Fashion-MNIST's four files")
    options = parser.parse_args()
    form = DIGITS if options.quick else FASHION
    form = form._replace(minutes=options.minutes or form.minutes, source=options.source or form.source)
    if not options.quick and not Path(form.source).is_dir():
        print(f"{form.source} is not there: apt-get install dataset-fashion-mnist, or --source FOLDER", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as temporary:
        result, curves = measure(form, Path(temporary))
    if options.save:
        picture = ROOT / "docs" / "pictures" / f"time-to-fd{'-quick' if options.quick else ''}.svg"
        write_picture(chart(curves, result["fd_floor"]["value"]), picture)
    return tell(options, "time_to_fd", result, curves=curves, settings=form.settings, minutes=form.minutes)


if __name__ == "__main__":
    sys.exit(main())

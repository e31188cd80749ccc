"""Samples a second at equal quality: sampler and number of steps, and diffusers' pipelines at equal steps.

    python benchmarks/equal_fd.py [--quick] [--json] [--check] [--save]

A small network is trained on the handwritten digits in this process. Every sampler then draws the same ids from the
same noise; FD-class-cnn compares with the training images, beside the floor (held-out images at the same n).
Speed is samples a CPU second of one thread; every round runs all samplers and diffusers' pipelines in turn.
Method: README.md.

A sampler is as good as another when its FD is at most 1.05 times the other's, plus chance: the difference of a
short sampler's FD between two sets of ids.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from digits_model import STEPS, digits_config, train_digits
from outcome import at_least, known, parsed, tell
from quality import Judge, drawn, sampler_of

from pipeline.config.root import Config
from pipeline.config.storage import StorageConfig
from pipeline.model_store.load_model import find_model, load_unet
from pipeline.models.unet import UNet
from pipeline.training.data_plan import keyed_permutation

DIFFUSERS_BAR = 1.7
AS_GOOD = 1.05
SAMPLERS = [("ddpm", 1000), ("ddim", 50), ("ddim", 20), ("dpm++2m", 20), ("dpm++2m", 10), ("heun", 20), ("heun", 10)]
QUICK_SAMPLERS = [("ddpm", 50), ("ddim", 10), ("dpm++2m", 10)]
PEERS = {"ddim": "DDIM", "dpm++2m": "DPM"}
SHAPE, BATCH, HELDOUT = (1, 8, 8), 64, 497
NUM_SAMPLES, QUICK_SAMPLES = 256, 64
EFFORT, QUICK_EFFORT = 40, 10
"""Minimum of sampling steps of a contender in a round: short samplers run several times."""
WIDTHS = (32, 64)


def digits() -> tuple[Any, Any, Any]:
    """Training images, their labels, held-out images: uint8 [N, 8, 8, 1]."""
    data = load_digits()
    order = keyed_permutation(len(data.target), "equal-fd")
    images = np.rint(data.images * (255.0 / 16.0)).astype(np.uint8)[order, :, :, None]
    return images[HELDOUT:], data.target[order][HELDOUT:].astype(np.int64), images[:HELDOUT]


def peer(folder: str, kind: str, steps: int) -> Callable[[], object]:
    """A batch drawn by diffusers' pipeline from the model folder."""
    from diffusers import DDIMPipeline, DDPMPipeline, DPMSolverMultistepScheduler

    pipeline = (DDIMPipeline if kind == "DDIM" else DDPMPipeline).from_pretrained(folder)
    if kind == "DPM":
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return lambda: pipeline(batch_size=BATCH, num_inference_steps=steps, output_type="np")


def cpu_seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def speeds(
    unet: UNet, config: Config, folder: str, samplers: list[tuple[str, int]], rounds: int, effort: int
) -> dict[tuple[str, int], tuple[list[float], list[float]]]:
    """Samples a CPU second, ours and diffusers' (empty without such a sampler), by round, after a warm-up round."""
    found: dict[tuple[str, int], tuple[list[float], list[float]]] = {each: ([], []) for each in samplers}
    peers = {each: peer(folder, PEERS[each[0]], each[1]) for each in samplers if each[0] in PEERS}
    for number in range(rounds + 1):
        for name, steps in samplers:
            if number == 0 and steps > effort:
                continue  # a long sampler needs no repetition
            how, times = sampler_of(config, name, steps), max(1, effort // steps)
            runs = [lambda h=how: drawn(unet, config, SHAPE, h, range(BATCH))]
            runs += [peers[name, steps]] if (name, steps) in peers else []
            for values, run in zip(found[name, steps], runs, strict=False):
                rate = BATCH * times / cpu_seconds(lambda r=run, n=times: [r() for _ in range(n)])
                if number:
                    values.append(rate)
    return found


def key(name: str, steps: int) -> str:
    return f"{name}_{steps}"


def measure(folder: str, config: Config, quick: bool) -> dict[str, dict[str, Any]]:
    samplers, rounds, count = (QUICK_SAMPLERS, 1, QUICK_SAMPLES) if quick else (SAMPLERS, 2, NUM_SAMPLES)
    unet = load_unet(find_model(folder, "ema", StorageConfig()), StorageConfig())
    train, labels, heldout = digits()
    judge = Judge.of(train, labels, epochs=5 if quick else 30)

    def fd(each: tuple[str, int], first: int = 0) -> float:
        return judge.fd(drawn(unet, config, SHAPE, sampler_of(config, *each), range(first, first + count)))

    fds = {}
    for each in samplers:
        fds[each] = fd(each)
        print(f"{key(*each)}: FD-class-cnn {fds[each]:.3f}", file=sys.stderr, flush=True)
    # Chance is measured on the second sampler: the longest one would double the time.
    chance = abs(fds[samplers[1]] - fd(samplers[1], count))
    rates = speeds(unet, config, folder, samplers, rounds, QUICK_EFFORT if quick else EFFORT)
    return judged(samplers, fds, chance, rates) | {
        "fd_floor": known(round(judge.fd(heldout[:count]), 4)),
        "n": known(count),
    }


def judged(
    samplers: list[tuple[str, int]],
    fds: dict[tuple[str, int], float],
    chance: float,
    rates: dict[tuple[str, int], tuple[list[float], list[float]]],
) -> dict[str, dict[str, Any]]:
    ours = {each: statistics.median(rates[each][0]) for each in samplers}
    longest = samplers[0]
    good = [each for each in samplers if fds[each] <= AS_GOOD * fds[longest] + chance]
    best = max(good, key=ours.__getitem__)
    result = {
        f"{key(*each)}_over_diffusers": at_least(
            round(statistics.median(a / b for a, b in zip(*rates[each], strict=True)), 3), DIFFUSERS_BAR
        )
        for each in samplers
        if rates[each][1]
    }
    result["speed_up_at_equal_fd"] = known(round(ours[best] / ours[longest], 2))
    result["steps_at_equal_fd"] = known(best[1])
    result["fd_chance"] = known(round(chance, 4))
    for each in samplers:
        result[f"{key(*each)}_fd"] = known(round(fds[each], 4))
        result[f"{key(*each)}_samples_a_cpu_second"] = known(round(ours[each], 3))
        if rates[each][1]:
            result[f"{key(*each)}_diffusers_a_cpu_second"] = known(round(statistics.median(rates[each][1]), 3))
    return result


def main() -> int:
    options = parsed(__doc__, "equal_fd", quick="a network of 100 steps, three samplers, 64 samples")
    torch.set_num_threads(1)
    config = digits_config(*WIDTHS, conditional=False)
    with tempfile.TemporaryDirectory() as temporary:
        folder = train_digits(config, Path(temporary) / "model", steps=100 if options.quick else STEPS)
        result = measure(folder, config, options.quick)
    return tell(options, "equal_fd", result, channels=WIDTHS)


if __name__ == "__main__":
    sys.exit(main())

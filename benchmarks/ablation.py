"""Predicting eps with a plain MSE against the system of 2015, on digits at equal steps and seeds.

    python benchmarks/ablation.py [--steps 1000] [--quick] [--json] [--save]

Four systems (as in Ho et al. 2020, Table 2, on CIFAR-10) with the same network, data order and noise:

    2015         output: mean and diagonal variance; loss: variational bound
    mean-mse     output: mean; loss: plain MSE
    eps-bound    output: eps; loss: variational bound
    eps-mse      output: eps; loss: plain MSE (Eq. 14)

The score is FD-class-cnn of ancestral samples against all training images, beside the floor (held-out images at the
same n) and noise. One process a system, one thread each. `--save` writes results/ and the figure in docs/
"""

import os
import sys
import time
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from outcome import at_least, flags, known, tell

from pipeline.config.evaluation import EvaluateConfig
from pipeline.config.root import Config
from pipeline.diffusion.noise import SampleNoise
from pipeline.diffusion.sampler import make_sampler
from pipeline.images.convert import grid, to_model, to_uint8
from pipeline.images.png import encode_png
from pipeline.metrics.classifier import train_classifier
from pipeline.metrics.features import fingerprint_of
from pipeline.metrics.frechet import frechet
from pipeline.metrics.moments import Moments
from pipeline.metrics.reference_images import noise_images
from pipeline.training.data_plan import keyed_permutation
from pipeline.training.inputs import MicroBatch
from pipeline.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
SYSTEMS = {
    "2015": {"prediction": "mean", "variance": "learned", "objective": "bound"},
    "mean-mse": {"prediction": "mean", "variance": "fixed_large", "objective": "simple"},
    "eps-bound": {"prediction": "epsilon", "variance": "fixed_large", "objective": "bound"},
    "eps-mse": {"prediction": "epsilon", "variance": "fixed_large", "objective": "simple"},
}
SAMPLING_STEPS = 100
NUM_HELDOUT = 497
BATCH = 64


def settings(system: str, steps: int) -> Config:
    return Config.model_validate(
        {
            "model": {
                "block_out_channels": [32, 64],
                "layers_per_block": 1,
                "attention_levels": [1],
                "norm_num_groups": 8,
            },
            "diffusion": SYSTEMS[system],
            "train": {
                "steps": steps,
                "lanes": 1,
                "micro_batch": BATCH,
                "lr": 0.002,
                "warmup_steps": 100,
                "ema": {"decay": 0.995},
            },
        }
    )


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training images, their labels, held-out images: uint8 [N, 8, 8, 1]; the split is one keyed permutation."""
    data = load_digits()
    order = keyed_permutation(len(data.target), "ablation")
    images = np.rint(data.images * (255.0 / 16.0)).astype(np.uint8)[order, :, :, None]
    return images[NUM_HELDOUT:], data.target[order][NUM_HELDOUT:], images[:NUM_HELDOUT]


def train_and_sample(task: tuple[str, int]) -> tuple[str, np.ndarray, float, float]:
    """(system, uint8 samples [N, 8, 8, 1], mean loss of the last tenth, seconds)."""
    system, steps = task
    torch.set_num_threads(1)
    began = time.monotonic()
    config, x_0 = settings(system, steps), to_model(digits()[0])
    trainer = Trainer(config, 8, 1, torch.device("cpu"))
    per_epoch, losses = len(x_0) // BATCH, []
    for step in range(steps):
        epoch, number = divmod(step, per_epoch)
        rows = torch.from_numpy(keyed_permutation(len(x_0), "rows", epoch)[number * BATCH : (number + 1) * BATCH])
        losses.append(float(trainer.step([MicroBatch(x_0[rows], rows, None, epoch)]).loss))
    sampler = make_sampler(config.diffusion, "ddpm", SAMPLING_STEPS, 0.0, None, True)
    trainer.ema.copy_to(trainer.model)
    trainer.model.eval()
    noise = SampleNoise(0, torch.arange(NUM_HELDOUT), (1, 8, 8))
    with torch.inference_mode():
        *_, last = sampler.run(lambda x, t: trainer.model(x, t[:1]), noise)
    return system, to_uint8(last.x_t), float(np.mean(losses[-steps // 10 :])), time.monotonic() - began


def scores(samples: dict[str, np.ndarray]) -> dict[str, float]:
    """FD-class-cnn against the training images: of each system, of the floor and of noise."""
    train, labels, heldout = digits()
    extractor = train_classifier(train, labels, EvaluateConfig())
    print_of = fingerprint_of(extractor, "digits train")

    def moments(images: np.ndarray) -> Moments:
        return Moments.empty(print_of).update(extractor.features(images))

    reference = moments(train)
    noise = noise_images(NUM_HELDOUT, (8, 8, 1), 0)
    return {
        name: frechet(moments(images), reference).value
        for name, images in {**samples, "floor": heldout, "noise": noise}.items()
    }


def main() -> int:
    parser = flags(__doc__, "ablation", quick="100 steps instead of 1000")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    options = parser.parse_args()
    steps = 100 if options.quick else options.steps
    with get_context("spawn").Pool(options.processes) as pool:
        made = pool.map(train_and_sample, [(system, steps) for system in SYSTEMS], chunksize=1)
    fd = scores({system: images for system, images, *_ in made})
    print(f"FD-class-cnn, n = {NUM_HELDOUT}, {steps} steps of {BATCH}, {SAMPLING_STEPS} ancestral steps")
    print(f"{'':12}{'FD':>10}{'last loss':>12}{'seconds':>9}")
    for system, _, loss, seconds in made:
        print(f"{system:12}{fd[system]:10.3f}{loss:12.4f}{seconds:9.0f}")
    print(f"{'floor':12}{fd['floor']:10.3f}\n{'noise':12}{fd['noise']:10.3f}")
    result = {"2015_over_eps_mse": at_least(round(fd["2015"] / fd["eps-mse"], 3), 1.0)}
    result |= {f"fd_{name}": known(round(value, 4)) for name, value in fd.items()}
    if options.save:
        rows = [images[:16] for _, images, *_ in made]
        (ROOT / "docs" / "pictures" / "ablation.png").write_bytes(encode_png(grid(np.concatenate(rows), 16, 5, 2)))
    return tell(options, "ablation", result, told=("2015_over_eps_mse",), steps=steps)


if __name__ == "__main__":
    sys.exit(main())

"""Cost of scoring beyond the extractor's forward pass. Method: benchmarks/README.md.

    python benchmarks/scoring.py [--quick] [--json] [--check] [--save]

Stored samples (Parquet shards of PNGs, verified) become merged feature statistics, on one compute thread. The reference
is the same extractor's forward pass over the same pixels in memory. Both are measured in CPU seconds, in turn in every
round. Peak memory is measured for few and for many samples, each in its own process.
"""

import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # as Ray sets it in a task of one CPU; numpy's products read it when loaded

import numpy as np
import pyarrow as pa
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from outcome import parsed, tell
from synthetic import plan_of

from pipeline.config.evaluation import EvaluateConfig
from pipeline.config.root import Config
from pipeline.config.storage import StorageConfig
from pipeline.evaluation.context import EvaluationContext
from pipeline.evaluation.tasks import feature_stats_of
from pipeline.generation.commit import commit_shard, create_plan, read_sealed, seal
from pipeline.images.png import decode_pixels, encode_png
from pipeline.ingest.dataset import read_dataset, write_dataset
from pipeline.ingest.manifest import DatasetManifest, ShardEntry
from pipeline.metrics.classifier import Classifier, train_classifier
from pipeline.metrics.feature_stats import FeatureStats, Score
from pipeline.metrics.features import fingerprint_of, one_thread
from pipeline.metrics.scoring import score
from pipeline.schema import DATASET, SAMPLES, STATUS_OK
from pipeline.storage.files import parquet_bytes, put_file
from pipeline.storage.store import Store, resolve

SIZE, CHANNELS, SHARD_ROWS, CLASSES = 28, 1, 1_000, 10
NUM_SAMPLES, QUICK_SAMPLES = 20_000, 2_000
COST_BAR, MEMORY_BAR = 1.1, 1.15


def pictures(first: int, count: int) -> np.ndarray:
    """uint8 [count, SIZE, SIZE, 1]: soft blobs on black, which PNG compresses about like Fashion-MNIST."""
    y, x = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32) / SIZE
    images = np.empty((count, SIZE, SIZE, CHANNELS), np.uint8)
    for number in range(count):
        draw = np.random.default_rng(first + number)
        blobs = sum(
            draw.uniform(60, 200) * np.exp(-((y - b) ** 2 + (x - a) ** 2) / draw.uniform(0.05, 0.25) ** 2)
            for a, b in draw.random((4, 2))
        )
        images[number, :, :, 0] = np.where(blobs > 60, blobs + draw.normal(0, 6, blobs.shape), 0).clip(0, 255)
    return images


def column(images: np.ndarray) -> list[dict[str, object]]:
    return [{"bytes": encode_png(image), "path": None} for image in images]


def make_dataset(store: Store, rows: int) -> None:
    """A dataset; its held-out images only limit n."""
    shards = []
    for first in range(0, rows, SHARD_ROWS):
        ids = range(first, min(first + SHARD_ROWS, rows))
        images = column(pictures(10**6 + first, len(ids)))
        values = {"label": 0, "width": SIZE, "height": SIZE, "sha256": ""}
        table = [{"sample_id": i, "image": image, **values} for i, image in zip(ids, images, strict=True)]
        data = parquet_bytes(pa.Table.from_pylist(table, schema=DATASET), SHARD_ROWS)
        file = put_file(store, f"data/heldout-{first:07d}.parquet", data)
        shards.append(ShardEntry(**file.model_dump(), split="heldout", rows=len(ids), first_id=first))
    values = {"source": "benchmark", "source_rows": rows, "image_size": SIZE, "channels": CHANNELS, "ingest": {}}
    values |= {"classes": ("a", "b"), "shards": tuple(shards), "rejects": (), "reject_counts": {}}
    write_dataset(store, DatasetManifest(**values, channel_mean=(0.0,), channel_std=(0.0,)))


def make_samples(store: Store, rows: int) -> None:
    plan = plan_of(-(-rows // SHARD_ROWS), SHARD_ROWS)
    plan = plan.model_copy(update={"num_samples": rows, "image_size": SIZE, "channels": CHANNELS})
    create_plan(store, plan)
    values = {name: getattr(plan, name) for name in ("seed", "model_digest", "sampler", "steps", "eta")}
    values |= {"ema": plan.weights, "width": SIZE, "height": SIZE, "status": STATUS_OK}
    for shard, first in enumerate(range(0, rows, SHARD_ROWS)):
        images = column(pictures(first, min(SHARD_ROWS, rows - first)))
        table = [{"sample_id": first + i, "image": image, **values} for i, image in enumerate(images)]
        commit_shard(store, plan, shard, pa.Table.from_pylist(table, schema=SAMPLES), "a")
    seal(store, plan)


def opened(folder: str, rows: int) -> EvaluationContext:
    samples, dataset = (resolve(f"{folder}/{name}", StorageConfig()) for name in ("samples", "dataset"))
    config = Config.model_validate({"evaluate": {"num_images": rows}})
    return EvaluationContext(config, samples, dataset, *read_sealed(samples), read_dataset(dataset))


def sketched(extractor: Classifier, context: EvaluationContext) -> FeatureStats:
    """Read, verify and decode every part, compute and serialise its statistics, and merge."""
    whole: FeatureStats | None = None
    fingerprint = fingerprint_of(extractor, context.reference)
    for part in context.image_sets("samples"):
        sketch = FeatureStats.from_bytes(feature_stats_of(extractor, fingerprint, context, part).to_bytes())
        whole = sketch if whole is None else whole.merge(sketch)
    assert whole is not None
    assert whole.moments.n == context.n
    return whole


def scored(reference: FeatureStats, sketch: FeatureStats) -> list[Score]:
    return list(score(reference, {"samples": sketch}))


def seconds(run) -> tuple[float, object]:
    began = time.process_time()
    result = run()
    return time.process_time() - began, result


def costs(folder: str, weights: bytes, rows: int, rounds: int) -> dict[str, float]:
    """Medians over rounds of quotients within a round, after one round of warm-up."""
    extractor, context = Classifier.from_bytes(weights), opened(folder, rows)
    images = pictures(0, rows)
    reference = sketched(extractor, context)
    ratios: dict[str, list[float]] = {"sketching": [], "scoring": [], "decoding": []}
    pngs = [encode_png(image) for image in images]
    forwards = []
    for number in range(rounds + 1):
        forward, _ = seconds(lambda: extractor.extract(images))
        sketching, sketch = seconds(lambda: sketched(extractor, context))
        scoring, _ = seconds(partial(scored, reference, sketch))
        decoding, _ = seconds(lambda: [decode_pixels(png, SIZE * SIZE) for png in pngs])
        print(
            f"round {number}: forward {forward:.2f} s, sketching {sketching:.2f} s, scores {scoring:.2f} s, "
            f"decoding alone {decoding:.2f} s",
            file=sys.stderr,
        )
        if number:
            forwards.append(forward)
            ratios["sketching"].append(sketching / forward)
            ratios["scoring"].append(scoring / forward)
            ratios["decoding"].append(decoding / forward)
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    return {
        "cost_over_forward": medians["sketching"],
        "scores_of_sketches_over_forward": medians["scoring"],
        "decoding_over_forward": medians["decoding"],
        "forward_images_per_cpu_second": rows / statistics.median(forwards),
    }


def peak_mib(folder: str, weights: bytes, rows: int, answer: "multiprocessing.Queue[float]") -> None:
    """Peak memory of a new process."""
    torch.set_num_threads(1)
    sketched(Classifier.from_bytes(weights), opened(folder, rows))
    status = Path("/proc/self/status").read_text()  # getrusage would include the parent's memory
    answer.put(next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024)


def memory(folder: str, weights: bytes, few: int, many: int) -> dict[str, float]:
    spawn = multiprocessing.get_context("spawn")
    peaks = {}
    for rows in (few, many):
        answer = spawn.Queue()
        process = spawn.Process(target=peak_mib, args=(folder, weights, rows, answer))
        process.start()
        peaks[rows] = answer.get(timeout=3600)
        process.join()
    return {**{f"peak_mib_{rows}": value for rows, value in peaks.items()}, "memory_growth": peaks[many] / peaks[few]}


def judged(found: dict[str, float]) -> dict[str, dict[str, object]]:
    bars = {"cost_over_forward": COST_BAR, "memory_growth": MEMORY_BAR}
    return {
        name: {"value": round(value, 4), "bar": bars.get(name), "ok": name not in bars or value <= bars[name]}
        for name, value in found.items()
    }


def main() -> int:
    args = parsed(__doc__, "scoring", quick="fewer samples and rounds")
    torch.set_num_threads(1)
    rows = QUICK_SAMPLES if args.quick else NUM_SAMPLES
    settings = EvaluateConfig(classifier_epochs=1)
    weights = train_classifier(pictures(0, 256), np.arange(256) % CLASSES, settings).to_bytes()
    with tempfile.TemporaryDirectory() as folder, one_thread():
        make_dataset(resolve(f"{folder}/dataset", StorageConfig()), rows)
        make_samples(resolve(f"{folder}/samples", StorageConfig()), rows)
        found = costs(folder, weights, rows, 1 if args.quick else 5)
        # The sample of features is full from 5,000 images on.
        found |= memory(folder, weights, rows // 2 if args.quick else 5_000, rows)
    return tell(args, "scoring", judged(found))


if __name__ == "__main__":
    sys.exit(main())

"""Memory and speed of `ddpm memorisation`. Method: benchmarks/README.md.

    python benchmarks/memorisation.py [--quick] [--json] [--check] [--save]

The same samples are searched among few and among four times as many training images, on 2 workers: the peak memory of
all processes must stay the same. The rate of exact distances on one thread is compared with a plain float32 matrix
product of the same size, the ceiling.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from outcome import parsed, tell
from stream import Peak, pictures
from tiny_samples import sample_plan

from pipeline.cluster import cluster
from pipeline.config.root import Config
from pipeline.config.storage import StorageConfig
from pipeline.evaluation.memorisation.driver import memorisation
from pipeline.generation.commit import commit_shard, create_plan, seal
from pipeline.images.png import encode_png
from pipeline.ingest.dataset import write_dataset
from pipeline.ingest.manifest import DatasetManifest, ShardEntry
from pipeline.metrics.nearest import Nearest, add_rows
from pipeline.schema import DATASET, SAMPLES, STATUS_OK
from pipeline.storage.files import parquet_bytes, put_file
from pipeline.storage.store import Store, resolve

SIZE, SHARD_ROWS, WORKERS, K = 28, 1000, 2, 50
FEW, TIMES = 10_000, 4
MEMORY_BAR, RATE_BAR = 1.15, 0.2


def encoded(count: int) -> list[bytes]:
    return [encode_png(pixels) for pixels in pictures(count, SIZE, 1)]


def write_dataset_of(store: Store, pngs: list[bytes], heldout: int) -> None:
    """A dataset whose last `heldout` images are held out."""
    shards, size = [], {"width": SIZE, "height": SIZE, "label": 0, "sha256": ""}
    for first in range(0, len(pngs), SHARD_ROWS):
        split = "train" if first < len(pngs) - heldout else "heldout"
        part = pngs[first : first + SHARD_ROWS]
        rows = [{"sample_id": first + n, "image": {"bytes": png, "path": None}, **size} for n, png in enumerate(part)]
        file = put_file(store, f"data/{first:07d}.parquet", parquet_bytes(pa.Table.from_pylist(rows, DATASET), 500))
        shards.append(ShardEntry(**file.model_dump(), split=split, rows=len(part), first_id=first))
    values = {"source": "benchmark", "source_rows": len(pngs), "image_size": SIZE, "channels": 1, "classes": None}
    values |= {"shards": tuple(shards), "rejects": (), "reject_counts": {}, "ingest": {}}
    write_dataset(store, DatasetManifest(**values, channel_mean=(0.0,), channel_std=(0.0,)))


def write_samples_of(store: Store, pngs: list[bytes]) -> None:
    plan = sample_plan(num_samples=len(pngs), shard_size=SHARD_ROWS, batch_size=SHARD_ROWS, image_size=SIZE)
    create_plan(store, plan)
    fixed = {"seed": 0, "model_digest": plan.model_digest, "ema": "ema", "sampler": "ddim", "steps": 5, "eta": 0.0}
    fixed |= {"width": SIZE, "height": SIZE, "status": STATUS_OK}
    for shard in range(plan.num_shards):
        ids = range(shard * SHARD_ROWS, min((shard + 1) * SHARD_ROWS, len(pngs)))
        rows = [{"sample_id": i, "image": {"bytes": pngs[i], "path": None}, **fixed} for i in ids]
        commit_shard(store, plan, shard, pa.Table.from_pylist(rows, SAMPLES), "a")
    seal(store, plan)


def memory(folder: Path, few: int, num_samples: int) -> dict[str, float]:
    """Peaks for `few` and for TIMES as many training images; the extractor is trained before the measurement."""
    pngs = encoded(few * TIMES + 2 * num_samples)
    samples = resolve(str(folder / "samples"), StorageConfig())
    write_samples_of(samples, pngs[:num_samples])
    real = pngs[num_samples:]
    found: dict[str, float] = {}
    for count in (few, few * TIMES):
        dataset = resolve(str(folder / f"dataset-{count}"), StorageConfig())
        write_dataset_of(dataset, real[:count] + real[-num_samples:], num_samples)
    for warm in (True, False):  # the first time trains the extractors and loads the program
        for count in (few, few * TIMES):
            evaluate = {"classifier_epochs": 1, "classifier_width": 8}
            settings = {"evaluate": evaluate, "ray": {"workers": str(WORKERS)}}
            settings["memorisation"] = {"neighbours": 2 if warm else K}
            with Peak() as peak:
                result = memorisation(Config.model_validate(settings), samples.uri, f"{folder}/dataset-{count}")
            if not warm:
                found[f"peak_mib_{count}"] = peak.value
                found[f"train_images_per_second_{count}"] = count / result["seconds"]
    found["memory_growth"] = found[f"peak_mib_{few * TIMES}"] / found[f"peak_mib_{few}"]
    return found


def rates(width: int, rounds: int) -> dict[str, float]:
    """A block of 4096 rows for 2048 queries that have seen four such blocks: time of the plain product / ours."""
    draw = np.random.default_rng(0)
    seen, rows, queries = (draw.integers(0, 256, (count, width), dtype=np.uint8) for count in (16384, 4096, 2048))
    ids = np.arange(16384 + 4096)
    found = {}
    for name, kind in (("pixel", np.uint8), ("feature", np.float32)):
        of, to = queries.astype(kind), rows.astype(kind)
        kept = add_rows(Nearest.none(len(of), K), of, seen.astype(kind), ids[:16384])
        left, right = queries.astype(np.float32), rows.astype(np.float32)
        shares = []
        for _ in range(rounds + 1):
            start = time.process_time()
            left @ right.T
            middle = time.process_time()
            add_rows(kept, of, to, ids[16384:])
            shares.append((middle - start) / (time.process_time() - middle))
        found[f"{name}_search_vs_product"] = statistics.median(shares[1:])
    return found


def judged(found: dict[str, float]) -> dict[str, dict[str, object]]:
    result: dict[str, dict[str, object]] = {}
    for name, value in found.items():
        bar = MEMORY_BAR if name == "memory_growth" else RATE_BAR if name.endswith("_vs_product") else None
        ok = bar is None or (value <= bar if name == "memory_growth" else value >= bar)
        result[name] = {"value": round(value, 4), "bar": bar, "ok": ok}
    return result


def main() -> int:
    args = parsed(__doc__, "memorisation", quick="a tenth of the images, fewer rounds")
    found = rates(SIZE * SIZE, 1 if args.quick else 5)
    few = FEW // 10 if args.quick else FEW
    with tempfile.TemporaryDirectory() as name, cluster(Config().ray, WORKERS):
        found |= memory(Path(name), few, few // 5 if args.quick else 2000)
    return tell(args, "memorisation", judged(found))


if __name__ == "__main__":
    sys.exit(main())

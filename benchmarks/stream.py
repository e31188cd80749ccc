"""Reading a dataset into training, against the ceiling and against two other readers. Method: benchmarks/README.md.

    python benchmarks/stream.py [--quick] [--json] [--check] [--save]

Four ways to read the same images into float batches, in turn: our lanes (Parquet shards, verified and permuted, through
Ray Data), a plain loop over bytes in memory (Pillow decodes, numpy stacks: the ceiling), webdataset over tar shards and
torch's DataLoader over files, both with their workers. Peak memory of ingest and streaming is measured for 10,000
and 100,000 images.
"""

import io
import os
import statistics
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import webdataset
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from outcome import parsed, tell

from pipeline.cluster import cluster
from pipeline.config.root import Config
from pipeline.config.storage import StorageConfig
from pipeline.images.convert import to_model
from pipeline.images.png import encode_png
from pipeline.ingest.dataset import read_dataset, write_dataset
from pipeline.ingest.driver import ingest
from pipeline.ingest.manifest import DatasetManifest, ShardEntry
from pipeline.schema import DATASET
from pipeline.storage.files import parquet_bytes, put_file
from pipeline.storage.store import Store, resolve
from pipeline.training.data_plan import TrainPlan
from pipeline.training.distributed.data_loader import LaneDataset, LaneStream

SHARE_BAR, MEMORY_BAR = 0.7, 1.15
LANES, BATCH = 2, 64
KINDS = {"png28": ("PNG", 28, 1, 1024), "jpeg256": ("JPEG", 256, 3, 256)}  # format, size, channels, images a shard
SHARDS, QUICK_SHARDS = 20, 4
FEW, MANY = 10_000, 100_000
TICK_SECONDS = 0.1


def pictures(count: int, size: int, channels: int) -> Iterator[np.ndarray]:
    """uint8 [size, size, channels]: soft blobs and a little grain, so that codecs work about as on photographs."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    for number in range(count):
        draw = np.random.default_rng(number)
        centres, widths = draw.random((6, 2, channels)), draw.uniform(0.05, 0.3, (6, channels))
        waves = np.exp(
            -((y[..., None, None] - centres[:, 0]) ** 2 + (x[..., None, None] - centres[:, 1]) ** 2) / widths**2
        )
        grain = draw.normal(0, 4, (size, size, channels))
        yield (waves.sum(2) * draw.uniform(30, 90, channels) + grain).clip(0, 255).astype(np.uint8)


def encoded(kind: str, count: int) -> list[bytes]:
    form, size, channels, _ = KINDS[kind]
    files = []
    for pixels in pictures(count, size, channels):
        buffer = io.BytesIO()
        if form == "JPEG":
            Image.fromarray(pixels).save(buffer, form, quality=90)
        files.append(buffer.getvalue() or encode_png(pixels))
    return files


def write_everything(folder: Path, kind: str, files: list[bytes]) -> None:
    """The same files as a dataset, as tar shards and as a folder."""
    _, size, channels, shard_rows = KINDS[kind]
    store = resolve(str(folder / "dataset"), StorageConfig())
    ending = "png" if kind.startswith("png") else "jpg"
    (folder / "files").mkdir(parents=True)
    shards = []
    for first in range(0, len(files), shard_rows):
        part = files[first : first + shard_rows]
        rows = [
            {"sample_id": first + n, "image": {"bytes": data, "path": None}, "label": 0, "width": size, "height": size}
            | {"sha256": ""}
            for n, data in enumerate(part)
        ]
        data = parquet_bytes(pa.Table.from_pylist(rows, schema=DATASET), 256)
        file = put_file(store, f"data/train-{first:07d}.parquet", data)
        shards.append(ShardEntry(**file.model_dump(), split="train", rows=len(part), first_id=first))
        with tarfile.open(folder / f"{first:07d}.tar", "w") as tar:
            for number, image in enumerate(part, first):
                entry = tarfile.TarInfo(f"{number:07d}.{ending}")
                entry.size = len(image)
                tar.addfile(entry, io.BytesIO(image))
                (folder / "files" / f"{number:07d}.{ending}").write_bytes(image)
    zeros = (0.0,) * channels
    values = {"source": "benchmark", "source_rows": len(files), "image_size": size, "channels": channels}
    values |= {"classes": ("all",), "shards": tuple(shards), "rejects": (), "reject_counts": {}}
    write_dataset(store, DatasetManifest(**values, channel_mean=zeros, channel_std=zeros, ingest={}))


# --- readers: each takes all images once and returns how many it took -------------------------------------------------


def pixels_of(data: bytes) -> np.ndarray:
    """uint8 [H, W, C], decoded with Pillow."""
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def plain_loop(files: list[bytes]) -> int:
    count = 0
    for first in range(0, len(files), BATCH):
        count += len(to_model(np.stack([pixels_of(data) for data in files[first : first + BATCH]])))
    return count


def lanes(store: Store) -> int:
    manifest = read_dataset(store)
    rows = tuple(shard.rows for shard in manifest.split("train"))
    plan = TrainPlan(manifest.digest(), rows, LANES, BATCH, seed=0)
    steps = plan.epoch(0).batches
    streams = []
    for lane in range(LANES):
        dataset = LaneDataset(store.child("no-run"), store, manifest, plan, lane, steps, workers=1)()
        dataset.context.execution_options.preserve_order = True
        streams.append(LaneStream(dataset, BATCH, torch.device("cpu")))
    count = 0
    for _ in range(steps):
        count += sum(len(stream.next()[0].x_0) for stream in streams)
    return count


class Files(torch.utils.data.Dataset):
    def __init__(self, folder: Path) -> None:
        self.paths = sorted(map(str, folder.iterdir()))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> np.ndarray:
        return pixels_of(Path(self.paths[number]).read_bytes())


def stacked(images: list[np.ndarray]) -> torch.Tensor:
    """uint8 [B, H, W, C], in shared memory when sent from a loader's worker."""
    batch = torch.from_numpy(np.stack(images))
    return batch[..., None] if batch.ndim == 3 else batch


def torch_loader(folder: Path) -> int:
    files = Files(folder / "files")
    loader = torch.utils.data.DataLoader(files, BATCH, shuffle=True, num_workers=LANES, collate_fn=stacked)
    return sum(len(to_model(batch.numpy())) for batch in loader)


def web_loader(folder: Path, channels: int) -> int:
    shards = sorted(str(path) for path in folder.glob("*.tar"))
    data = webdataset.WebDataset(shards, shardshuffle=len(shards), empty_check=False)
    data = data.decode("l8" if channels == 1 else "rgb8").to_tuple("png;jpg").map(first_of)
    loader = webdataset.WebLoader(data.batched(BATCH, collation_fn=stacked), batch_size=None, num_workers=LANES)
    return sum(len(to_model(batch.numpy())) for batch in loader)


def first_of(sample: tuple[np.ndarray]) -> np.ndarray:
    return sample[0]


# --- what processes use -----------------------------------------------------------------------------------------------


def family() -> list[int]:
    """This process and all its descendants."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(folder.name))
    found = [os.getpid()]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_seconds() -> float:
    """CPU seconds of the family, including ended processes."""
    total = 0
    for pid in family():
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(map(int, fields[11:15]))
    return total / os.sysconf("SC_CLK_TCK")


def memory_mib() -> float:
    """Proportional memory (PSS) of the family, with the object store; shared pages count once."""
    total = 0
    for pid in family():
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:
            continue
        total += next((int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:")), 0)
    return total / 1024


class Peak:
    """The largest of `memory_mib` while the block runs."""

    def __enter__(self) -> "Peak":
        self.value, self._over = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(TICK_SECONDS):
            self.value = max(self.value, memory_mib())

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def measured(run: Callable[[], int], count: int) -> tuple[float, float]:
    """Images a CPU second of the family, and a wall second."""
    cpu, wall = cpu_seconds(), time.monotonic()
    taken = run()
    assert taken >= count * 0.9, f"{taken} of {count} images"
    return taken / max(cpu_seconds() - cpu, 1e-9), taken / (time.monotonic() - wall)


def speeds(folder: Path, kind: str, count: int, rounds: int) -> dict[str, float]:
    """Every reader once a round; medians over the rounds after one round of warm-up."""
    files = encoded(kind, count)
    write_everything(folder, kind, files)
    store = resolve(str(folder / "dataset"), StorageConfig())
    readers = {
        "plain": lambda: plain_loop(files),
        "lanes": lambda: lanes(store),
        "webdataset": lambda: web_loader(folder, KINDS[kind][2]),
        "dataloader": lambda: torch_loader(folder),
    }
    cpu: dict[str, list[float]] = {name: [] for name in readers}
    wall: dict[str, list[float]] = {name: [] for name in readers}
    for number in range(rounds + 1):
        for name, run in readers.items():
            of_cpu, of_wall = measured(run, count)
            print(f"{kind} round {number} {name}: {of_cpu:,.0f} img/CPU-s, {of_wall:,.0f} img/s", file=sys.stderr)
            if number:
                cpu[name].append(of_cpu)
                wall[name].append(of_wall)
    found = {}
    for name in readers:
        found[f"{kind}_{name}_images_per_cpu_second"] = statistics.median(cpu[name])
        found[f"{kind}_{name}_images_per_second"] = statistics.median(wall[name])
        if name != "plain":
            shares = [ours / ceiling for ours, ceiling in zip(cpu[name], cpu["plain"], strict=True)]
            found[f"{kind}_{name}_share"] = statistics.median(shares)
    return found


def memory(folder: Path, few: int, many: int) -> dict[str, float]:
    """Peaks of ingest and of streaming, for few and for many images of 28 x 28."""
    peaks: dict[str, dict[int, float]] = {"ingest": {}, "stream": {}}
    for count in (few, many, few, many):  # the first pass of each also loads the program
        source, dataset = folder / f"{count}.npz", folder / f"dataset-{count}"
        if not source.exists():
            np.savez(source, images=np.stack(list(pictures(count, 28, 1))))
        config = Config.model_validate({"ingest": {"image_size": 28, "channels": 1, "heldout_share": 0.0}})
        again = dataset.exists()
        target = f"{dataset}-again" if again else str(dataset)
        with Peak() as peak:
            ingest(config, str(source), target)
        peaks["ingest"][count] = peak.value
        with Peak() as peak:
            lanes(resolve(str(dataset), StorageConfig()))
        peaks["stream"][count] = peak.value
    found = {}
    for name, by_count in peaks.items():
        found |= {f"{name}_peak_mib_{count}": value for count, value in by_count.items()}
        found[f"{name}_memory_growth"] = by_count[many] / by_count[few]
    return found


def judged(found: dict[str, float]) -> dict[str, dict[str, object]]:
    result: dict[str, dict[str, object]] = {}
    for name, value in found.items():
        bar = SHARE_BAR if name.endswith("lanes_share") else MEMORY_BAR if name.endswith("_growth") else None
        ok = bar is None or (value <= bar if name.endswith("_growth") else value >= bar)
        result[name] = {"value": round(value, 4), "bar": bar, "ok": ok}
    return result


def main() -> int:
    args = parsed(__doc__, "stream", quick="fewer images and rounds, less memory to grow")
    torch.set_num_threads(1)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name, cluster(Config().ray, 2):
        folder = Path(name)
        for kind, (*_, count) in KINDS.items():
            found |= speeds(
                folder / kind, kind, count * (QUICK_SHARDS if args.quick else SHARDS), 1 if args.quick else 3
            )
        found |= memory(folder, FEW // 4 if args.quick else FEW, MANY // 4 if args.quick else MANY)
    result = judged(found)
    return tell(args, "stream", result)


if __name__ == "__main__":
    sys.exit(main())

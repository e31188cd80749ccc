"""Sandboxed decoding and a whole ingest, against a plain Pillow loop over the same files. Method: README.md.

python benchmarks/ingest.py [--quick] [--json] [--check] [--save]
"""

import io
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from outcome import parsed, tell

from pipeline.cluster import cluster
from pipeline.config.cluster import RayConfig
from pipeline.config.ingest import IngestConfig
from pipeline.config.root import Config
from pipeline.ingest.decode.decoder import Decoder
from pipeline.ingest.decode.resize import prepare
from pipeline.ingest.driver import ingest

DECODE_BAR, INGEST_BAR = 0.7, 0.7
CASES = {"png28": ("PNG", 28, 1), "jpeg256": ("JPEG", 256, 3)}  # format, size, channels
IMAGES = {"png28": 20_000, "jpeg256": 1500}  # a whole ingest runs on this many images and on a quarter
BATCHES = {"png28": 4000, "jpeg256": 200}  # a round of decoding
PLAIN_ENCODING = {"compress_level": 1}


def picture(number: int, size: int, channels: int) -> Image.Image:
    """Soft shapes and a little grain, so that codecs need about as much time as for photographs."""
    draw = np.random.default_rng(number)
    coarse = Image.fromarray(draw.integers(0, 256, (5, 5, 3), np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    grain = Image.fromarray(draw.integers(0, 256, (size, size, 3), np.uint8)).filter(ImageFilter.GaussianBlur(1))
    image = Image.blend(coarse, grain, 0.15)
    return image.convert("L") if channels == 1 else image


def files(name: str, count: int, folder: Path) -> list[Path]:
    """`count` image files of one case, all different."""
    kind, size, channels = CASES[name]
    paths = []
    for number in range(count):
        path = folder / f"class{number % 10}" / f"{number:06}.{kind.lower()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number, size, channels).save(path, kind, **({"quality": 90} if kind == "JPEG" else {}))
        paths.append(path)
    return paths


def cpu_seconds() -> float:
    """CPU seconds of this process and all descendants, including ended processes whose parents waited for them."""
    parents, times = {}, {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # gone in the meantime
            continue
        parents[int(entry.name)] = int(fields[1])
        times[int(entry.name)] = sum(map(int, fields[11:15]))
    mine = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in mine} - mine:
        mine |= more
    return sum(times[pid] for pid in mine) / os.sysconf("SC_CLK_TCK")


def seconds(run: Callable[[], object]) -> float:
    start = cpu_seconds()
    run()
    return cpu_seconds() - start


def plain(data: bytes, size: int, channels: int) -> Image.Image:
    """The usual loop with Pillow."""
    image = Image.open(io.BytesIO(data)).convert("L" if channels == 1 else "RGB")
    return image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)


def settings(name: str) -> IngestConfig:
    _, size, channels = CASES[name]
    return IngestConfig(image_size=size, channels=channels, partition_rows=500)


def decoding(name: str, paths: list[Path], rounds: int) -> dict[str, float]:
    """Images a CPU second of three ways to decode, and quotients by round."""
    config = settings(name)
    data = [path.read_bytes() for path in paths]
    with Decoder(config) as decoder:
        runs: dict[str, Callable[[], object]] = {
            "plain": lambda: [np.asarray(plain(one, config.image_size, config.channels)) for one in data],
            "unguarded": lambda: [prepare(one, config) for one in data],
            "guarded": lambda: sum(1 for _ in decoder.prepare((None, one) for one in data)),
        }
        times: dict[str, list[float]] = {way: [] for way in runs}
        for number in range(rounds + 1):
            for way, run in runs.items():
                took = seconds(run)
                if number:
                    times[way].append(took)
    found = {f"{way}_images_per_core_second": len(data) / statistics.median(took) for way, took in times.items()}
    for way in ("unguarded", "guarded"):
        pairs = zip(times["plain"], times[way], strict=True)
        found[f"{way}_share_of_plain"] = statistics.median(a / b for a, b in pairs)
    return found


def plain_ingest(paths: list[Path], size: int, channels: int, folder: Path) -> None:
    """A plain loop from files to files, without order, hashes and checks."""
    for path in paths:
        buffer = io.BytesIO()
        plain(path.read_bytes(), size, channels).save(buffer, "PNG", **PLAIN_ENCODING)
        (folder / path.with_suffix(".png").name).write_bytes(buffer.getvalue())


def sources(name: str, count: int, root: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Two sources: a quarter of the images, and all images."""
    for part in (count // 4, count):
        folder = root / f"{name}-{part}"
        yield folder, files(name, part, folder)


def whole(name: str, count: int, root: Path) -> dict[str, float]:
    """CPU time of a whole ingest on a running cluster: for each image, and the fixed part."""
    config = Config(ingest=settings(name))
    plain_folder = root / f"{name}-plain"
    plain_folder.mkdir()
    ours, theirs, counts = [], [], []
    for folder, paths in sources(name, count, root):
        counts.append(len(paths))
        theirs.append(
            seconds(lambda p=paths: plain_ingest(p, config.ingest.image_size, config.ingest.channels, plain_folder))
        )
        ours.append(seconds(lambda f=folder: ingest(config, str(f), str(root / f"{f.name}-dataset"))))
    images = counts[1] - counts[0]
    per_image, per_plain = (ours[1] - ours[0]) / images, (theirs[1] - theirs[0]) / images
    return {
        "ingest_images_per_core_second": 1 / per_image,
        "ingest_share_of_plain": per_plain / per_image,
        "plain_ingest_images_per_core_second": 1 / per_plain,
        "ingest_start_cpu_seconds": ours[0] - counts[0] * per_image,
    }


def measure(quick: bool) -> dict[str, float]:
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as root, cluster(RayConfig(), 2):
        for name in CASES:
            few = files(name, BATCHES[name] // (4 if quick else 1), Path(root) / f"{name}-decoding")
            for key, value in decoding(name, few, 2 if quick else 7).items():
                found[f"{name}_{key}"] = value
        ingest(Config(ingest=settings("png28")), str(few[0].parent), f"{root}/warm-up")
        for name in CASES:
            for key, value in whole(name, IMAGES[name] // (5 if quick else 1), Path(root)).items():
                found[f"{name}_{key}"] = value
    return found


def judged(found: dict[str, float]) -> dict[str, dict[str, object]]:
    bars = {"guarded_share_of_plain": DECODE_BAR, "ingest_share_of_plain": INGEST_BAR}
    result: dict[str, dict[str, object]] = {}
    for name, value in found.items():
        bar = bars.get(name.partition("_")[2])
        result[name] = {"value": value, "bar": bar, "ok": bar is None or value >= bar}
    return result


def main() -> int:
    args = parsed(__doc__, "ingest", quick="fewer images and rounds")
    result = judged(measure(args.quick))
    return tell(args, "ingest", result)


if __name__ == "__main__":
    sys.exit(main())

"""Shared by tests of ingest: small sources, the rows of a dataset, and an ingest without Ray."""

import hashlib
from contextlib import nullcontext

import numpy as np
from PIL import Image

from pipeline.config.storage import StorageConfig
from pipeline.images.png import encode_png
from pipeline.ingest.dataset import read_dataset
from pipeline.storage.files import read_parquet
from pipeline.storage.store import resolve


def pixels_of(number, size=8):
    """uint8 [size, size, 1] of image `number`; different numbers give different pixels."""
    return np.random.default_rng(number).integers(0, 256, (size, size, 1), np.uint8)


def sha256_of(number, size=8):
    return hashlib.sha256(pixels_of(number, size).tobytes()).hexdigest()


def put_images(uri, numbers, folder="", name=lambda number: f"{number:04d}.png"):
    """Put image files of a source into any store."""
    store = resolve(uri, StorageConfig())
    for number in numbers:
        store.put(f"{folder}{name(number)}", encode_png(pixels_of(number)))
    return store


def pictures(folder, count=20, size=12, channels=3):
    """PNG and JPEG files of random pixels in two class folders, one of them with spaces and an umlaut in its name."""
    generator = np.random.default_rng(5)
    for number in range(count):
        name = ("cats", "größe dogs")[number % 2]
        (folder / name).mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (size, size, channels), np.uint8)
        suffix = "png" if number % 3 else "jpg"
        Image.fromarray(pixels).save(folder / name / f"{number:03d}.{suffix}")


def rows_of(uri, digest=None):
    """The manifest of a dataset and all its rows, in order of sample id."""
    store = resolve(uri, StorageConfig())
    manifest = read_dataset(store, digest)
    rows = [row for shard in manifest.shards for row in read_parquet(store, shard).to_pylist()]
    return manifest, rows


def rejects_of(uri):
    """(source, reason) of every reject, sorted."""
    store = resolve(uri, StorageConfig())
    tables = [read_parquet(store, entry) for entry in read_dataset(store).rejects]
    return sorted((row["source"], row["reason"]) for table in tables for row in table.to_pylist())


def without_ray(monkeypatch):
    """Run every task of an ingest in this process, in order, so that a test can inject faults and measure memory."""

    def one_by_one(function, shared, calls):
        for call in calls:
            yield function(shared, *call)

    monkeypatch.setattr("pipeline.ingest.phases.fan_out", one_by_one)
    monkeypatch.setattr("pipeline.ingest.driver.cluster", lambda *_: nullcontext())

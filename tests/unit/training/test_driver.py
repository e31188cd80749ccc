"""A run keeps the dataset version and the initial weights that it was started with."""

import uuid

import pytest

from pipeline.config.storage import StorageConfig
from pipeline.ingest.dataset import read_dataset, write_dataset
from pipeline.model_store.manifest import RunPlan
from pipeline.storage.store import resolve
from pipeline.training.driver import _dataset
from unit.ingest.test_dataset_versions import manifest

pytestmark = pytest.mark.unit


def test_a_run_reads_the_generation_that_it_was_started_on():
    source = resolve(f"memory://{uuid.uuid4().hex}", StorageConfig())
    first = manifest()
    write_dataset(source, first)
    second = manifest(2, first.digest(), source_rows=3)
    write_dataset(source, second)
    begun = RunPlan(dataset_uri=source.uri, dataset_digest=first.digest(), config={})
    assert read_dataset(source) == second
    assert _dataset(source, begun) == first
    assert _dataset(source, None) == second
    another = begun.model_copy(update={"dataset_digest": "0" * 64})
    assert _dataset(source, another) == second  # which the run's plan then refuses by name

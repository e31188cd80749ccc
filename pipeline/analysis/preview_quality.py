"""Quality of progressive generation: Frechet distance of the predicted x_0 by number of sampling steps."""

import pyarrow as pa

from pipeline.analysis.figures import Explorer, ExploreResult, Pixels, cells_by_row
from pipeline.analysis.held_out_images import read_held_out_images
from pipeline.config.generation import ExploreConfig
from pipeline.errors import DataError
from pipeline.evaluation.image_ranking import features_of, stored_extractors, training_moments
from pipeline.evaluation.results import read_extractor
from pipeline.generation.manifest import SamplePlan
from pipeline.ingest.dataset import read_dataset
from pipeline.metrics.features import Extractor, fingerprint_of
from pipeline.metrics.frechet import frechet
from pipeline.metrics.moments import Moments
from pipeline.progress import Progress
from pipeline.schema import PREVIEWS
from pipeline.storage.store import Store


def measure_preview_quality(
    explorer: Explorer, dataset: Store, plan: SamplePlan, settings: ExploreConfig
) -> ExploreResult:
    """Frechet distances between the training split and the x_0 predicted for the first `num_images` samples.

    Raises DataError when the dataset has no extractor (`ddpm evaluate` makes one).
    """
    extractor, reference = _extractor_and_reference(dataset)
    images = read_held_out_images(dataset, plan, settings.num_images)
    nothing = Moments.empty(fingerprint_of(extractor, reference.fingerprint.reference))
    steps = explorer.steps_done(settings.columns)
    scored: dict[int, Moments] = {}  # by timestep index
    first: list[Pixels] = []
    progress = Progress("previews", settings.num_images, "img")
    for start in range(0, settings.num_images, plan.batch_size):
        ids = range(start, min(start + plan.batch_size, settings.num_images))
        previews = explorer.previews(ids, settings.columns)
        for t, pixels in previews:
            scored[t] = scored.get(t, nothing).update(features_of(extractor, pixels))
        first = first or [pixels[: settings.rows] for _, pixels in previews]
        progress.update(ids.stop)
    progress.close()
    floor = frechet(nothing.update(features_of(extractor, images.pixels)), reference)
    shared = {"metric": floor.name, "floor": floor.value, "n": settings.num_images, "reference_n": reference.n}
    shared |= {"extractor": extractor.name, "weights_sha256": extractor.weights_sha256}
    rows = [
        {"step": step, "t": t, "fd": frechet(moments, reference).value, **shared}
        for step, (t, moments) in zip(steps, scored.items(), strict=True)
    ]
    table = pa.Table.from_pylist(rows, schema=PREVIEWS)
    return ExploreResult(table, cells_by_row(first), len(first), tuple(steps), extractor.feature_dim)


def _extractor_and_reference(dataset: Store) -> tuple[Extractor, Moments]:
    """An extractor of the newest dataset version, and the moments of its training split."""
    digest = read_dataset(dataset).digest()
    record = next((r for r in stored_extractors(dataset) if r.made_from.get("dataset_digest") == digest), None)
    found = None if record is None else read_extractor(dataset, record.id)
    if record is None or found is None:
        raise DataError(f"{dataset.uri} has no extractor for its newest version: run ddpm evaluate first")
    return found[1], training_moments(dataset, record)

"""Report sections of samples folders and datasets: pictures, scores, shards."""

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import NotFound
from pipeline.evaluation.image_ranking import feature_distances
from pipeline.evaluation.results import Evaluation, read_evaluations
from pipeline.evaluation.stored_images import encoded_images, read_usable
from pipeline.generation.commit import read_sealed
from pipeline.generation.manifest import SampleManifest, SamplePlan
from pipeline.generation.shard_metrics import SHARD_METRICS_KEY
from pipeline.ingest.dataset import read_dataset
from pipeline.model_store.load_model import parse_checkpoint_uri
from pipeline.report.curves import generation_rates
from pipeline.report.image_sheets import best_and_worst, by_class, first_images, random_pool, random_sheet
from pipeline.report.memorisation import memorisation_content
from pipeline.report.render.content import Fact, Picture
from pipeline.report.run_history import generation_work, shard_table
from pipeline.report.run_section import trained_on
from pipeline.report.section import ReportSection, as_yaml
from pipeline.storage.store import Store


def samples_section(store: Store, name: str, datasets: Sequence[Store]) -> ReportSection:
    """datasets: where to look for the extractor of an evaluation. Raises DataError for unsealed samples."""
    plan, sealed = read_sealed(store)
    # Only evaluations of the sealed samples; the largest n comes first and determines the verdict.
    evaluations = sorted(
        (e for e in read_evaluations(store) if e.samples_plan == sealed.plan), key=lambda e: e.scores[0].n, reverse=True
    )
    shards = _shard_log(store)
    near_copies, closest_pairs = memorisation_content(store, sealed.plan)
    return ReportSection(
        name=name,
        kind="samples",
        facts=(*_sample_facts(plan, sealed, evaluations), *near_copies),
        samples=tuple(_sheets(store, name, plan, sealed, evaluations, [*datasets, *_datasets_of(plan, store)])),
        neighbours=tuple(closest_pairs),
        throughput=generation_rates(name, shards) if shards is not None else (),
        running=(shard_table(name, shards),) if shards is not None else (),
        works=(generation_work(name, shards),) if shards is not None else (),
        evaluations=tuple(evaluations),
        config_yaml=as_yaml(f"plan of samples {name}", plan),
    )


def _sample_facts(plan: SamplePlan, sealed: SampleManifest, evaluations: Sequence[Evaluation]) -> Iterator[Fact]:
    failed = f", {sealed.failed:,} failed" if sealed.failed else ""
    eta = f", eta {plan.eta:g}" if plan.sampler == "ddim" else ""
    yield Fact("Samples", f"{sealed.rows:,}{failed}")
    yield Fact("Sampler", f"{plan.sampler}, {plan.steps:,} steps{eta}")
    yield Fact("Weights", plan.weights)
    yield Fact("Seed", str(plan.seed))
    yield Fact("Model digest", plan.model_digest[:16])
    if evaluations:
        e = evaluations[0]
        right = "" if e.heldout_accuracy is None else f", {e.heldout_accuracy:.1%} accuracy on held-out images"
        yield Fact("Extractor", f"{e.extractor}{right}")


def _sheets(
    store: Store,
    name: str,
    plan: SamplePlan,
    sealed: SampleManifest,
    evaluations: Sequence[Evaluation],
    datasets: Sequence[Store],
) -> Iterator[Picture]:
    pool = random_pool(store, plan, sealed)
    if pool is None:
        return
    yield random_sheet(pool, name)
    yield from by_class(pool, name)
    figure = feature_distances(datasets, evaluations[0], pool.pixels) if evaluations else None
    if figure is not None:
        what = f"Mahalanobis distance from the training images ({evaluations[0].extractor} features)"
        yield from best_and_worst(pool, figure, what, name)


def _datasets_of(plan: SamplePlan, samples: Store) -> Iterator[Store]:
    """The dataset of the run that the samples' model belongs to, if any."""
    location = parse_checkpoint_uri(plan.model_uri, samples.config)
    dataset = None if location is None else trained_on(location[0])
    if dataset is not None:
        yield dataset


def _shard_log(store: Store) -> pa.Table | None:
    try:
        return pq.read_table(pa.BufferReader(store.read(SHARD_METRICS_KEY)))
    except NotFound:
        return None


def dataset_section(store: Store, name: str) -> ReportSection:
    """The newest version of a dataset. Raises DataError."""
    manifest = read_dataset(store)
    rejected = sum(manifest.reject_counts.values())
    images = (png for shard in manifest.split("train") for png in encoded_images(read_usable(store, shard, ("image",))))
    facts = (
        Fact("Dataset", f"{manifest.rows('train'):,} training and {manifest.rows('heldout'):,} held-out images"),
        Fact("Source", manifest.source),
        *([Fact("Rejected images", f"{rejected:,}")] if rejected else []),
    )
    sheet = first_images(images, manifest.image_size, f"real training images of {name}")
    return ReportSection(name=name, kind="dataset", facts=facts, samples=tuple(sheet))

"""Runs, samples and datasets -> one report.html: what their stores hold, gathered into the content of a page.

Needs no cluster, and says nothing that is not at rest, so an equal state of the stores gives an equal page.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from pipeline.config import Config, Section
from pipeline.engine.images import decode_pixels, encode_png, grid
from pipeline.errors import ConfigError, DataError, NotFound
from pipeline.manifests import SampleManifest, SamplePlan
from pipeline.report.content import Fact, Picture, Report, ThroughputRow, Verification
from pipeline.report.curves import generation_rates, training_charts, training_rate
from pipeline.report.judging import metric_rows, verdict
from pipeline.report.page import render
from pipeline.schema import STATUS_OK
from pipeline.stages.memorised import memorised
from pipeline.storage.checkpoints import latest_checkpoint, read_success
from pipeline.storage.evaluations import Evaluation, read_evaluations
from pipeline.storage.metrics import read_metrics
from pipeline.storage.samples import read_sealed
from pipeline.storage.shard_log import SHARD_LOG_KEY
from pipeline.storage.shards import read_dataset, read_parquet
from pipeline.storage.store import Store, resolve
from pipeline.storage.webdataset import read_samples

__all__ = ["report"]

PAGE: Final = "report.html"
MOST_GRIDS: Final = 24
SHEET_PIXELS, SHEET_COLUMNS, SHEET_GAP = 640, 10, 2
_GRID: Final = re.compile(r"^grids/step-(\d+)\.png$")


What = Literal["run", "samples", "dataset"]


@dataclass(frozen=True)
class Part:
    """What one artefact contributes. `curves` is the METRICS table of a run."""

    name: str
    what: What
    facts: tuple[Fact, ...] = ()
    samples: tuple[Picture, ...] = ()
    grids: tuple[Picture, ...] = ()
    throughput: tuple[ThroughputRow, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    curves: pa.Table | None = None
    config_yaml: str = ""


def report(
    config: Config, uris: Sequence[str], out: str | None = None, verified: str | None = None, dry_run: bool = False
) -> dict[str, Any]:
    """Write the page beside the first URI, and to `out` (a path or URI of a file) when given.

    verified: the summary of a `ddpm verify` that passed. Raises ConfigError without a URI, DataError for a URI that
    holds no run, sealed samples or dataset.
    """
    if not uris:
        raise ConfigError("ddpm report needs a URI: a run, a samples folder or a dataset")
    stores = list(dict.fromkeys(resolve(uri, config.storage) for uri in uris))
    page = _page(_gather(stores), verified)
    html = render(page).encode()
    targets = [(stores[0], PAGE), *([_file(out, config)] if out else [])]
    places = [store.location(key) for store, key in targets]
    if dry_run:
        return {"summary": f"would write {len(html):,} bytes to {' and '.join(places)}"}
    for store, key in targets:
        store.put(key, html)
    return {
        "uri": places[0],
        "out": places[-1],
        "bytes": len(html),
        "charts": len(page.charts),
        "pictures": len(page.samples) + len(page.grids),
        "summary": f"report: {' and '.join(places)}",
    }


def _file(uri: str, config: Config) -> tuple[Store, str]:
    """The store of a file's folder, and the file's key in it."""
    folder, slash, name = uri.rpartition("/")
    if not name:
        raise ConfigError(f"--out {uri!r} names no file: give a path such as {uri}{PAGE}")
    return resolve(folder or slash or ".", config.storage), name


def _page(parts: Sequence[Part], verified: str | None) -> Report:
    first = parts[0]
    evaluations = [(part.name, evaluation) for part in parts for evaluation in part.evaluations]
    several = len({name for name, _ in evaluations}) > 1
    return Report(
        title=first.name,
        subtitle=" · ".join(f"{part.what} {part.name}" for part in parts),
        verdict=verdict(evaluations[0][1].scores, evaluations[0][1].warnings) if evaluations else None,
        facts=tuple(_facts(parts)),
        samples=tuple(picture for part in parts for picture in part.samples),
        metrics=tuple(
            row for name, e in evaluations for row in metric_rows(e.scores, _protocol(e), name if several else "")
        ),
        charts=training_charts({part.name: part.curves for part in parts if part.curves is not None}),
        grids=tuple(picture for part in parts for picture in part.grids),
        throughput=tuple(row for part in parts for row in part.throughput),
        verification=Verification(True, verified) if verified else None,
        config_yaml="\n".join(part.config_yaml for part in parts if part.config_yaml),
    )


def _protocol(e: Evaluation) -> str:
    return (
        f"the {e.reference} split of dataset {e.dataset_digest[:8]} · features of {e.extractor} {e.weights_sha256[:8]}"
        f", {e.preprocessing}"
    )


def _facts(parts: Sequence[Part]) -> Iterator[Fact]:
    """Facts of all parts; a kind of artefact that is there more than once says of which one it speaks."""
    kinds = [part.what for part in parts]
    for part in parts:
        prefix = f"{part.name}: " if kinds.count(part.what) > 1 else ""
        yield from (Fact(prefix + fact.name, fact.value) for fact in part.facts)


# --- what an artefact holds ------------------------------------------------------------------------------------------


def _gather(stores: Sequence[Store]) -> list[Part]:
    """One part a store, in order; names are as short as tells those of a kind apart."""
    read = {"run": _run, "samples": _samples, "dataset": _dataset}
    kinds = [_kind(store) for store in stores]
    uris = {kind: [s.uri for s, k in zip(stores, kinds, strict=True) if k == kind] for kind in kinds}
    return [read[kind](store, _name(store.uri, uris[kind])) for store, kind in zip(stores, kinds, strict=True)]


def _kind(store: Store) -> What:
    """Raises DataError when it is none of the three."""
    if store.exists("plan.json"):
        return "samples"
    if store.exists("manifest.json") and store.read_json("manifest.json").get("kind") == "dataset":
        return "dataset"
    if store.exists("config.yaml") or latest_checkpoint(store) is not None:
        return "run"
    raise DataError(f"nothing to report at {store.uri}: give a run, a samples folder or a dataset")


def _name(uri: str, others: Sequence[str]) -> str:
    """As many last parts of a URI as no other of them ends in."""
    pieces = uri.split("/")
    for count in range(1, len(pieces)):
        name = "/".join(pieces[-count:])
        if sum(other == uri or other.endswith(f"/{name}") for other in others) == 1:
            return name
    return uri


def _run(store: Store, name: str) -> Part:
    checkpoint = latest_checkpoint(store)
    if checkpoint is None:
        raise DataError(f"{store.uri} has no checkpoint yet: its curves appear with the first one")
    curves = read_metrics(store, checkpoint)
    state = "" if read_success(store) else f" of {checkpoint.config['train']['steps']:,}, unfinished"
    facts = (
        Fact("Training", f"{checkpoint.step:,} steps{state}; {checkpoint.images:,} images"),
        Fact("Images", f"{checkpoint.image_size} x {checkpoint.image_size} x {checkpoint.channels}"),
        Fact("Workers", str(checkpoint.world_size)),
        Fact("Dataset digest", checkpoint.dataset_digest[:16]),
        Fact("Configuration digest", checkpoint.config_digest[:16]),
    )
    rate = training_rate(name, curves)
    return Part(
        name=name,
        what="run",
        facts=facts,
        grids=tuple(_grids(store, name)),
        throughput=(rate,) if rate else (),
        curves=curves,
        config_yaml=_yaml(f"run {name}", checkpoint.config),
    )


def _grids(store: Store, name: str) -> Iterator[Picture]:
    """Sample grids over training, evenly chosen when there are very many; the first and the last are among them."""
    keys = {int(match[1]): entry.key for entry in store.list("grids/") if (match := _GRID.match(entry.key))}
    steps = sorted(keys)
    if len(steps) > MOST_GRIDS:
        steps = [steps[round(i * (len(steps) - 1) / (MOST_GRIDS - 1))] for i in range(MOST_GRIDS)]
    for step in steps:
        caption = f"Step {step:,}"
        yield Picture(caption, f"Samples of {name} after {step:,} steps, from the same noise", store.read(keys[step]))


def _samples(store: Store, name: str) -> Part:
    plan, sealed = read_sealed(store)
    about_copies, closest_pairs = memorised(store, sealed.plan)
    # Scores of these samples only, the ones of the most images first: they make the verdict.
    evaluations = sorted(
        (e for e in read_evaluations(store) if e.samples_plan == sealed.plan), key=lambda e: e.scores[0].n, reverse=True
    )
    failed = f", {sealed.failed:,} failed" if sealed.failed else ""
    eta = f", eta {plan.eta:g}" if plan.sampler == "ddim" else ""
    facts = [
        Fact("Samples", f"{sealed.rows:,}{failed}"),
        Fact("Sampler", f"{plan.sampler}, {plan.steps:,} steps{eta}"),
        Fact("Weights", plan.weights),
        Fact("Seed", str(plan.seed)),
        Fact("Model digest", plan.model_digest[:16]),
    ]
    if evaluations:
        e = evaluations[0]
        facts.append(Fact("Extractor", f"{e.extractor}, {e.heldout_accuracy:.1%} right on held-out images"))
    return Part(
        name=name,
        what="samples",
        facts=(*facts, *about_copies),
        samples=(*_sheet(_sample_images(store, sealed, plan), plan.image_size, f"samples of {name}"), *closest_pairs),
        throughput=_rates(store, name),
        evaluations=tuple(evaluations),
        config_yaml=_yaml(f"plan of samples {name}", plan),
    )


def _sample_images(store: Store, sealed: SampleManifest, plan: SamplePlan) -> Iterator[bytes]:
    """PNGs of the samples in order of id, without the failed ones; a shard is read when its turn comes."""
    for marker in sealed.shards:
        table = read_samples(store, marker, ["image", "status"])
        yield from _pngs(table.filter(pc.equal(table["status"], STATUS_OK)))


def _rates(store: Store, name: str) -> tuple[ThroughputRow, ...]:
    try:
        data = store.read(SHARD_LOG_KEY)
    except NotFound:
        return ()
    return generation_rates(name, pq.read_table(pa.BufferReader(data)))


def _dataset(store: Store, name: str) -> Part:
    manifest = read_dataset(store)
    rejected = sum(manifest.reject_counts.values())
    images = (png for shard in manifest.split("train") for png in _pngs(read_parquet(store, shard, ["image"])))
    facts = (
        Fact("Dataset", f"{manifest.rows('train'):,} training and {manifest.rows('heldout'):,} held-out images"),
        Fact("Source", manifest.source),
        *([Fact("Rejected images", f"{rejected:,}")] if rejected else []),
    )
    sheet = _sheet(images, manifest.image_size, f"real training images of {name}")
    return Part(name=name, what="dataset", facts=facts, samples=tuple(sheet))


def _pngs(table: pa.Table) -> Iterator[bytes]:
    return (value.as_py() for value in pc.struct_field(table["image"], "bytes"))


def _sheet(pngs: Iterable[bytes], image_size: int, what: str) -> Iterator[Picture]:
    """The first images on one square sheet of about SHEET_PIXELS, whole pixels a pixel; nothing without images."""
    columns = min(SHEET_COLUMNS, max(2, 2 * SHEET_PIXELS // image_size))
    images = [decode_pixels(png, image_size**2) for _, png in zip(range(columns**2), pngs, strict=False)]
    if not images:
        return
    count = f"{len(images)} {what}"
    pixels: NDArray[np.uint8] = np.stack(images)
    png = encode_png(grid(pixels, columns, max(1, SHEET_PIXELS // (columns * image_size)), SHEET_GAP))
    yield Picture(f"The first {count}, not selected.", f"Grid of {count}", png)


def _yaml(title: str, values: Section | dict[str, Any]) -> str:
    plain = values.model_dump(mode="json") if isinstance(values, Section) else values
    return f"# {title}\n" + yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, width=100)

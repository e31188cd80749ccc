"""Collect the sections of a report: one per run, samples folder, dataset or night.

Sections depend only on stored data, so equal stores give equal pages.
"""

from collections.abc import Iterator, Sequence

from pipeline.errors import DataError
from pipeline.model_store.checkpoint import latest_checkpoint
from pipeline.nightly.ledger import Night
from pipeline.nightly.ledger_store import STATE
from pipeline.report.nightly import night_facts, night_tables, night_verdict
from pipeline.report.run_section import run_section, trained_on
from pipeline.report.samples_section import dataset_section, samples_section
from pipeline.report.section import ArtefactKind, ReportSection
from pipeline.storage.documents import read_document
from pipeline.storage.store import Store, resolve


def collect_sections(stores: Sequence[Store]) -> list[ReportSection]:
    """One section per store, in order. A night adds its run and its samples folders, unless retention deleted them.

    Names are the shortest distinct endings of URIs. Raises DataError for a store with no known artefact.
    """
    stores = list(dict.fromkeys(one for store in stores for one in (store, *_of_night(store))))
    kinds = [_kind(store) for store in stores]
    uris = {kind: [s.uri for s, k in zip(stores, kinds, strict=True) if k == kind] for kind in kinds}
    datasets = [store for store, kind in zip(stores, kinds, strict=True) if kind == "dataset"]
    datasets += [trained for s, k in zip(stores, kinds, strict=True) if k == "run" and (trained := trained_on(s))]
    sections = []
    for store, kind in zip(stores, kinds, strict=True):
        name = _name(store.uri, uris[kind])
        match kind:
            case "samples":
                sections.append(samples_section(store, name, datasets))
            case "run":
                sections.append(run_section(store, name))
            case "dataset":
                sections.append(dataset_section(store, name))
            case "night":
                sections.append(_night(store))
    return sections


def _kind(store: Store) -> ArtefactKind:
    """Raises DataError when the store holds no known artefact."""
    if store.exists("plan.json"):
        return "samples"
    if store.exists("manifest.json") and store.read_json("manifest.json").get("kind") == "dataset":
        return "dataset"
    if store.exists("config.yaml") or latest_checkpoint(store) is not None:
        return "run"
    if store.exists(STATE):
        return "night"
    raise DataError(f"nothing to report at {store.uri}: pass a run, a samples folder, a dataset or a night")


def short_names(uris: Sequence[str]) -> list[str]:
    """The shortest distinct ending of each URI."""
    return [_name(uri, uris) for uri in uris]


def _name(uri: str, others: Sequence[str]) -> str:
    """The shortest ending of a URI that no other URI has."""
    pieces = uri.split("/")
    for count in range(1, len(pieces)):
        name = "/".join(pieces[-count:])
        if sum(other == uri or other.endswith(f"/{name}") for other in others) == 1:
            return name
    return uri


# --- nights ----------------------------------------------------------------------------------------------------------


def _ledger(store: Store) -> Night:
    return read_document(store, STATE, Night)


def _of_night(store: Store) -> Iterator[Store]:
    """Run and samples folders from a ledger at <root>/nightly/<name>/<date>; nothing for other stores."""
    if not store.exists(STATE):
        return
    done, root = _ledger(store).done, resolve(store.uri.rsplit("/", 3)[0], store.config)
    keys = [done.train.run if done.train else None]
    keys += [done.samples.challenger, done.samples.champion] if done.samples else []
    yield from (one for key in keys if key and (one := root.child(key)) and _is_there(one))


def _is_there(store: Store) -> bool:
    """Whether the artefact is finished and retention has kept it."""
    try:
        return _kind(store) == "samples" or latest_checkpoint(store) is not None
    except DataError:
        return False


def _night(store: Store) -> ReportSection:
    night = _ledger(store)
    return ReportSection(
        name=f"night of {night.date}",
        kind="night",
        facts=tuple(night_facts(night)),
        verdict=night_verdict(night),
        leading=night_tables(night),
    )

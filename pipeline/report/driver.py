"""`ddpm report`: one HTML page on runs, samples folders, datasets and nights, or on several runs side by side.

Needs no cluster. The page depends only on stored data, so equal stores give an equal page.
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Final

from pipeline.config.root import Config
from pipeline.errors import ConfigError, VerificationFailed
from pipeline.evaluation.results import Evaluation
from pipeline.images.png import decode_pixels
from pipeline.operations.verify import check_artefact
from pipeline.report.collect import collect_sections
from pipeline.report.compare_runs import compare_page
from pipeline.report.curves import training_charts
from pipeline.report.render.content import Fact, Report, Table, Verdict, Verification
from pipeline.report.render.page import render
from pipeline.report.run_history import cost_table
from pipeline.report.scores import metric_rows, verdict
from pipeline.report.section import ReportSection
from pipeline.storage.store import Store, resolve

PAGE, COMPARISON = "report.html", "comparison.html"
_MAX_FINDINGS: Final = 20
_JOINED: Final = ("leading", "samples", "neighbours", "grids", "throughput", "settings")
"""Fields that a page takes from all its sections, in order."""


def report(
    config: Config,
    uris: Sequence[str],
    out: str | None = None,
    verified: str | None = None,
    dry_run: bool = False,
    check: bool = False,
) -> dict[str, Any]:
    """Write the page beside the first URI, and to `out` (a path or URI of a file) when given.

    verified: the summary of an earlier `ddpm verify`; check: verify all artefacts now and show the result. Raises
    ConfigError without a URI, DataError for a URI without a run, sealed samples, a dataset or a night.
    """
    stores = _stores(config, uris, "a URI: a run, a samples folder, a dataset or a night")
    sections = collect_sections(stores)
    verification = Verification(True, verified) if verified else None
    if check and not dry_run:
        verification = _verify(config, stores)
    page = _page(sections, verification, config.generate.price_per_hour)
    result = _write(config, page, stores[0], PAGE, out, dry_run)
    if verification is None or verification.ok:
        return result
    summary = f"{result['summary']}\nverification failed: {verification.text}"
    return {**result, "summary": summary, "exit_code": VerificationFailed.exit_code}


def compare(
    config: Config, runs: Sequence[str], samples: Sequence[str] = (), out: str | None = None, dry_run: bool = False
) -> dict[str, Any]:
    """Write one page on several runs, as `comparison.html` in the first run. samples: samples folders with scores.

    Raises ConfigError for fewer than two runs, DataError for a URI without a run or without samples.
    """
    stores = _stores(config, runs, "--runs with two runs or more", least=2)
    page = compare_page(stores, [resolve(uri, config.storage) for uri in samples])
    return _write(config, page, stores[0], COMPARISON, out, dry_run)


def _stores(config: Config, uris: Sequence[str], needed: str, least: int = 1) -> list[Store]:
    stores = list(dict.fromkeys(resolve(uri, config.storage) for uri in uris))
    if len(stores) < least:
        raise ConfigError(f"ddpm report needs {needed}")
    return stores


def _write(config: Config, page: Report, beside: Store, key: str, out: str | None, dry_run: bool) -> dict[str, Any]:
    html = render(page).encode()
    targets = [(beside, key), *([_file(out, config)] if out else [])]
    places = [store.location(key) for store, key in targets]
    if dry_run:
        return {"summary": f"would write {len(html):,} bytes to {' and '.join(places)}"}
    for store, target in targets:
        store.put(target, html)
    return {
        "uri": places[0],
        "out": places[-1],
        "bytes": len(html),
        "charts": len(page.charts),
        "pictures": len(page.samples) + len(page.neighbours) + len(page.grids),
        "summary": f"report: {' and '.join(places)}",
    }


def _file(uri: str, config: Config) -> tuple[Store, str]:
    """The store of a file's folder, and the key of the file in the store."""
    folder, slash, name = uri.rpartition("/")
    if not name:
        raise ConfigError(f"--out {uri!r} names no file: pass a path such as {uri}{PAGE}")
    return resolve(folder or slash or ".", config.storage), name


def _verify(config: Config, stores: Sequence[Store]) -> Verification:
    """Compare the manifests of all artefacts with the stored objects."""
    found = [
        check_artefact(store.uri, config.storage, lambda data: decode_pixels(data, config.ingest.max_image_pixels))
        for store in stores
    ]
    wrong = sum(one.total_findings for one in found)
    checks = [Fact(f"{one.kind} {one.uri.rsplit('/', 1)[-1]}", _counted(one.counts)) for one in found]
    findings = [text for one in found for text in one.findings][:_MAX_FINDINGS]
    text = f"{wrong:,} contradictions with the manifests." if wrong else "All stored objects match the manifests."
    return Verification(not wrong, text, tuple(checks), tuple(findings))


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))


# --- the page --------------------------------------------------------------------------------------------------------


def _page(sections: Sequence[ReportSection], verification: Verification | None, price: float | None) -> Report:
    first = sections[0]
    evaluations = [(section.name, evaluation) for section in sections for evaluation in section.evaluations]
    several = len({name for name, _ in evaluations}) > 1
    joined: dict[str, Any] = {
        name: tuple(chain.from_iterable(getattr(section, name) for section in sections)) for name in _JOINED
    }
    return Report(
        title=first.name if first.kind != "night" else first.name.capitalize(),
        subtitle=" · ".join(
            section.name if section.kind == "night" else f"{section.kind} {section.name}" for section in sections
        ),
        verdict=_verdict(sections, verification),
        facts=tuple(_facts(sections)),
        metrics=tuple(
            row for name, e in evaluations for row in metric_rows(e.scores, _protocol(e), name if several else "")
        ),
        charts=training_charts({section.name: section.curves for section in sections if section.curves is not None}),
        running=tuple(_running(sections, price)),
        verification=verification,
        config_yaml="\n".join(section.config_yaml for section in sections if section.config_yaml),
        **joined,
    )


def _verdict(sections: Sequence[ReportSection], verification: Verification | None) -> Verdict | None:
    """The first of: a failed verification, the verdict of a night, the verdict on the first evaluation."""
    if verification is not None and not verification.ok:
        return Verdict("bad", f"Verification failed: {verification.text}")
    own = next((section.verdict for section in sections if section.verdict is not None), None)
    evaluations = [evaluation for section in sections for evaluation in section.evaluations]
    return own or (verdict(evaluations[0].scores, evaluations[0].warnings) if evaluations else None)


def _running(sections: Sequence[ReportSection], price: float | None) -> Iterator[Table]:
    tables = [table for section in sections for table in section.running]
    cost = cost_table([work for section in sections for work in section.works], price)
    yield from (table for table in (*tables, cost) if table is not None)


def _protocol(e: Evaluation) -> str:
    return (
        f"the {e.reference} split of dataset {e.dataset_digest[:8]} · features of {e.extractor} {e.weights_sha256[:8]}"
        f", {e.preprocessing}"
    )


def _facts(sections: Sequence[ReportSection]) -> Iterator[Fact]:
    """Facts of all sections. Artefacts of one kind share equal facts; a differing fact carries the artefact's name."""
    for section in sections:
        alike = [other for other in sections if other.kind == section.kind]
        for fact in section.facts:
            if not all(fact in other.facts for other in alike):
                yield Fact(f"{section.name}: {fact.name}", fact.value)
            elif section is alike[0]:
                yield fact

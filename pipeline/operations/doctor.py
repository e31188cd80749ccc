"""Driver of `ddpm doctor`: runs every check of cluster, store and package; one line each."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray.exceptions import RayError

from pipeline.cluster import cluster
from pipeline.config.root import Config
from pipeline.errors import PipelineError, StorageError
from pipeline.operations import cluster_info, diagnosis, package, store_conformance
from pipeline.operations.diagnosis import Finding
from pipeline.operations.submission import first_line
from pipeline.storage.store import Store, resolve

STORE_CHECKS: Sequence[Callable[[Store], Finding]] = (
    store_conformance.access,
    store_conformance.create_once,
    store_conformance.listing,
    store_conformance.round_trip,
    store_conformance.clock_skew,
)


def doctor(config: Config, root: str | None) -> dict[str, Any]:
    """All findings; `exit_code` is 1 when a check fails. Raises ConfigError for an invalid root."""
    store = None if root is None else resolve(root, config.storage)
    folder = Path.cwd()
    packed = diagnosis.package(str(folder), package.folder_sizes(folder), package.UPLOAD_LIMIT)
    findings = [*check_cluster(config), *([] if store is None else check_store(store)), packed]
    failed = sum(finding.level == "fail" for finding in findings)
    return {
        "findings": [finding._asdict() for finding in findings],
        "exit_code": 1 if failed else 0,
        "summary": "\n".join(map(str, findings)),
    }


def check_cluster(config: Config) -> list[Finding]:
    """Versions, devices and dashboard. For address `local`, this machine is checked and no cluster started."""
    local = config.ray.address == "local"
    if not cluster_info.is_listening(config.ray.address):
        advice = "start the head, or check host, port and firewall"
        return [Finding("fail", "cluster", f"nothing answers at {config.ray.address}: {advice}")]
    try:
        if local:
            nodes, url = [cluster_info.this_node("this machine")], None
        else:
            with cluster(config.ray, 1):
                nodes, url = cluster_info.every_node(), cluster_info.dashboard_url()
    except (PipelineError, RayError, RuntimeError) as error:
        first = first_line(str(error) or type(error).__name__).partition(" (--address")[0]
        advice = "compare the token (RAY_AUTH_MODE, RAY_AUTH_TOKEN, ~/.ray/auth_token), then Ray and Python"
        return [Finding("fail", "cluster", f"{first}: {advice}")]
    answer = cluster_info.status_without_token(url) if url else None
    return [
        diagnosis.versions(nodes),
        diagnosis.devices(nodes, config.ray.use_gpu, may_grow=not local),
        diagnosis.dashboard(url, answer),
    ]


def check_store(store: Store) -> list[Finding]:
    """One finding a check; an unreachable store is one finding, of the first check."""
    findings: list[Finding] = []
    for check in STORE_CHECKS:
        try:
            findings.append(check(store))
        except StorageError as error:
            return [*findings, Finding("fail", "store", str(error))]
    return findings

"""Any artefact -> a verdict; no Ray: one process reads every file once."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import Config
from pipeline.engine.images import decode_pixels
from pipeline.errors import VerificationFailed
from pipeline.storage import verification

__all__ = ["verify"]

MAX_LISTED = 20


def verify(config: Config, uri: str) -> dict[str, Any]:
    """Raises VerificationFailed with the findings, DataError when there is nothing there."""

    def decode(data: bytes) -> NDArray[np.uint8]:
        return decode_pixels(data, config.ingest.max_image_pixels)

    report = verification.verify(uri, config.storage, decode)
    counts = ", ".join(f"{count:,} {name}" for name, count in sorted(report.counts.items()))
    if report.total_findings:
        more = report.total_findings - MAX_LISTED
        head = f"{report.kind} {report.uri}: {report.total_findings:,} contradictions ({counts})"
        rest = [f"... and {more:,} more"] if more > 0 else []
        lines = [f"verification failed: {head}", *report.findings[:MAX_LISTED], *rest]
        raise VerificationFailed("\n".join(lines))
    return {
        "state": "verified",
        "kind": report.kind,
        "uri": report.uri,
        "counts": report.counts,
        "summary": f"verified: {report.kind} {report.uri}: {counts}, nothing contradicts its manifest",
    }

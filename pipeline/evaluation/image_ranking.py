"""Rank images by the Mahalanobis distance of their features from the training images."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError, NotFound
from pipeline.evaluation.results import (
    Evaluation,
    ExtractorRecord,
    extractor_folder,
    read_extractor,
    read_feature_stats,
    stored_feature_stats,
)
from pipeline.metrics.features import Extractor
from pipeline.metrics.moments import Moments, merge_all
from pipeline.storage.documents import read_document
from pipeline.storage.store import Store

_RIDGE = 1e-3
"""Share of the mean variance added to the diagonal of the covariance: constant features have variance 0."""


def stored_extractors(dataset: Store) -> list[ExtractorRecord]:
    """The records of all extractors in a dataset folder, in order of id."""
    keys = sorted(entry.key for entry in dataset.list("extractors/") if entry.key.endswith(".json"))
    return [read_document(dataset, key, ExtractorRecord) for key in keys]


def feature_distances(
    datasets: Iterable[Store], evaluation: Evaluation, pixels: NDArray[np.uint8]
) -> NDArray[np.float64] | None:
    """Mahalanobis distance float64 [N] of images [N, H, W, C] to the training split's features.

    None when no dataset has both the evaluation's extractor and the feature statistics of its training split.
    """
    for dataset in datasets:
        try:
            found = next((r for r in stored_extractors(dataset) if r.weights_sha256 == evaluation.weights_sha256), None)
            if found is not None:
                return _distances(dataset, found, pixels)
        except (DataError, NotFound):
            continue
    return None


def training_moments(dataset: Store, record: ExtractorRecord) -> Moments:
    """Moments of the training split's features, as stored by `evaluate`. Raises DataError when they are missing."""
    folder = extractor_folder(record.id)
    keys = sorted(key for key in stored_feature_stats(dataset, folder) if key.startswith(f"{folder}/train-"))
    return merge_all(read_feature_stats((dataset, key) for key in keys)).moments


def features_of(extractor: Extractor, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Features float32 [N, D] of images uint8 [N, H, W, C]."""
    return extractor.extract(pixels).features


def _distances(dataset: Store, record: ExtractorRecord, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Raises DataError when the extractor or the feature statistics are missing."""
    moments, stored = training_moments(dataset, record), read_extractor(dataset, record.id)
    if stored is None:
        raise DataError(f"{dataset.location(extractor_folder(record.id))} has no extractor")
    away = features_of(stored[1], pixels).astype(np.float64) - moments.mean
    covariance = moments.covariance
    ridge = _RIDGE * max(float(np.trace(covariance)) / len(covariance), 1e-12)
    scaled = np.linalg.solve(covariance + ridge * np.eye(len(covariance)), away.T)
    squared: NDArray[np.float64] = np.einsum("nd,dn->n", away, scaled)
    return np.sqrt(np.maximum(squared, 0.0))

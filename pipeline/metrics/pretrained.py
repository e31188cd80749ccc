"""An extractor at rest -> an extractor: what its name says, from the bytes of its weights."""

from pipeline.errors import DataError
from pipeline.metrics.classifier import CLASS_CNN, ROTATION_CNN, Classifier
from pipeline.metrics.efficientnet import EFFICIENTNET, EfficientNet
from pipeline.metrics.features import Extractor
from pipeline.metrics.inception import INCEPTION, Inception

__all__ = ["TRAINED_HERE", "load_extractor"]

TRAINED_HERE = (CLASS_CNN, ROTATION_CNN)
"""Names of extractors that this program trains; the others come with their weights."""


def load_extractor(name: str, data: bytes, input_size: int | None = None, what: str = "the weights") -> Extractor:
    """Raises DataError, naming `what`, when the weights are not of that network or no network has that name."""
    if name in TRAINED_HERE:
        return Classifier.from_bytes(data)
    if name == INCEPTION:
        return Inception(data, what)
    if name == EFFICIENTNET:
        return EfficientNet(data, input_size, what)
    raise DataError(f"{what}: there is no extractor {name!r}")

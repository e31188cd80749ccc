"""Other registries that follow ours, after it moved; one that cannot is a warning, as ours is what decides."""

from pipeline.config import Config
from pipeline.errors import PipelineError
from pipeline.storage.registry import Registry

__all__ = ["mirror"]


def mirror(config: Config, registry: Registry) -> str | None:
    """Show the registry wherever `registry` settings say; what went wrong, else None."""
    if config.registry.mlflow is None:
        return None
    from pipeline.storage.mlflow_registry import mirror_to_mlflow

    try:
        mirror_to_mlflow(registry, config.registry.mlflow)
    except PipelineError as error:
        return f"{error}; ddpm models shows it again"
    except Exception as error:  # whatever a foreign package raises, the champion is decided
        return f"MLflow failed: {type(error).__name__}: {error}; ddpm models shows it again"
    return None

"""A registry shown in MLflow's Model Registry: same versions, same aliases. Ours decides; MLflow's follows.

MLflow numbers versions itself, so ours is the tag `ddpm.version`; where its server is, and who may write there, its own
environment says (MLFLOW_REGISTRY_URI or MLFLOW_TRACKING_URI, ...). Repeating is free: only what differs is written.
"""

import json
from importlib.util import find_spec
from typing import Any, Final

from pipeline.config.root import Config
from pipeline.errors import ConfigError, PipelineError
from pipeline.model_store.registry import Record, Registry, Version

__all__ = ["mirror", "mirror_to_mlflow"]

TAG: Final = "ddpm.version"
ALIASES: Final = ("champion", "challenger")
PAGE: Final = 200


def mirror_to_mlflow(registry: Registry, name: str) -> int:
    """Make MLflow's registered model `name` show this registry; how many of its things were changed.

    Raises ConfigError when MLflow is not installed, PipelineError when its server refuses.
    """
    if find_spec("mlflow") is None:
        raise ConfigError("registry.mlflow needs MLflow: pip install 'ddpm-pipeline[trackers]'")
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        return _Mirror(MlflowClient(), name, registry).follow()
    except MlflowException as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise PipelineError(f"MLflow does not show {registry.store.uri} as it is now: {first}") from error


class _Mirror:
    def __init__(self, client: Any, name: str, registry: Registry) -> None:
        self._client, self._name, self._registry = client, name, registry
        self._changes = 0

    def follow(self) -> int:
        records = self._registry.records()
        theirs = self._versions()
        for number in self._registry.versions():
            if number not in theirs:
                theirs[number] = self._add(self._registry.version(number))
        self._tell_why(theirs, records)
        self._move(theirs, records[-1] if records else None)
        return self._changes

    def _versions(self) -> dict[int, Any]:
        """Theirs by our number; the registered model is made if it is not there."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(self._name, tags={"ddpm.registry": self._registry.store.uri})
            self._changes += 1
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found: dict[int, Any] = {}
        token = None
        while True:
            page = self._client.search_model_versions(f"name='{self._name}'", max_results=PAGE, page_token=token)
            found |= {int(one.tags[TAG]): one for one in page if TAG in one.tags}
            token = page.token
            if not token:
                return found

    def _add(self, version: Version) -> Any:
        self._changes += 1
        facts = {f"ddpm.{key}": str(value) for key, value in version.facts.items() if value is not None}
        tags = {TAG: str(version.number), "ddpm.model_digest": version.model_digest, "ddpm.sha256": version.sha256}
        folder = self._registry.folder(version.number).uri
        return self._client.create_model_version(self._name, source=folder, tags={**facts, **tags})

    def _tell_why(self, theirs: dict[int, Any], records: list[Record]) -> None:
        """The newest promotion of a version: its reason, and its metrics as JSON."""
        for record in {r.champion: r for r in records if r.action != "challenge" and r.champion in theirs}.values():
            assert record.champion is not None
            there = theirs[record.champion]
            told = {"ddpm.reason": record.reason, "ddpm.metrics": json.dumps(record.metrics, sort_keys=True)}
            for key, value in told.items():
                if there.tags.get(key) != value:
                    self._client.set_model_version_tag(self._name, there.version, key, value)
                    self._changes += 1

    def _move(self, theirs: dict[int, Any], head: Record | None) -> None:
        now = self._client.get_registered_model(self._name).aliases
        for alias in ALIASES:
            number = None if head is None else getattr(head, alias)
            wanted = None if number is None else str(theirs[number].version)
            if wanted == (None if now.get(alias) is None else str(now[alias])):
                continue
            self._changes += 1
            if wanted is None:
                self._client.delete_registered_model_alias(self._name, alias)
            else:
                self._client.set_registered_model_alias(self._name, alias, wanted)


def mirror(config: Config, registry: Registry) -> str | None:
    """Show the registry wherever `registry` settings say; what went wrong, else None."""
    if config.registry.mlflow is None:
        return None
    try:
        mirror_to_mlflow(registry, config.registry.mlflow)
    except PipelineError as error:
        return f"{error}; ddpm models shows it again"
    except Exception as error:  # whatever a foreign package raises, the champion is decided
        return f"MLflow failed: {type(error).__name__}: {error}; ddpm models shows it again"
    return None

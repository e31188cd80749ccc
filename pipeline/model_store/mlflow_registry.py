"""Mirror a model registry to MLflow's Model Registry: the same versions and aliases. One way: MLflow decides nothing.

MLflow numbers versions itself, so the tag `ddpm.version` holds the registry's number. MLflow's environment variables
(MLFLOW_REGISTRY_URI or MLFLOW_TRACKING_URI, ...) name its server and credentials. Only differences are written, so a
repeated call costs a few reads.
"""

import json
from importlib.util import find_spec
from typing import Any, Final

from pipeline.config.root import Config
from pipeline.errors import ConfigError, PipelineError
from pipeline.model_store.registry import Record, Registry, Version

TAG: Final = "ddpm.version"
ALIASES: Final = ("champion", "challenger")
PAGE: Final = 200


def mirror_to_mlflow(registry: Registry, name: str) -> int:
    """Bring MLflow's registered model `name` up to date with this registry; the number of changes made.

    Raises ConfigError when MLflow is not installed, PipelineError when the MLflow server refuses.
    """
    if find_spec("mlflow") is None:
        raise ConfigError("registry.mlflow needs MLflow: pip install 'ddpm-pipeline[trackers]'")
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    try:
        return _Mirror(MlflowClient(), name, registry).run()
    except MlflowException as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise PipelineError(f"the MLflow mirror of {registry.store.uri} is out of date: {first}") from error


class _Mirror:
    def __init__(self, client: Any, name: str, registry: Registry) -> None:
        self._client, self._name, self._registry = client, name, registry
        self._changes = 0

    def run(self) -> int:
        records = self._registry.records()
        theirs = self._versions()
        for number in self._registry.versions():
            if number not in theirs:
                theirs[number] = self._add(self._registry.version(number))
        self._set_promotion_tags(theirs, records)
        self._set_aliases(theirs, records[-1] if records else None)
        return self._changes

    def _versions(self) -> dict[int, Any]:
        """MLflow's versions by registry number; creates the registered model if it is missing."""
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

    def _set_promotion_tags(self, theirs: dict[int, Any], records: list[Record]) -> None:
        """Tag each promoted version with the reason and the metrics (JSON) of its newest promotion."""
        for record in {r.champion: r for r in records if r.action != "challenge" and r.champion in theirs}.values():
            assert record.champion is not None
            there = theirs[record.champion]
            told = {"ddpm.reason": record.reason, "ddpm.metrics": json.dumps(record.metrics, sort_keys=True)}
            for key, value in told.items():
                if there.tags.get(key) != value:
                    self._client.set_model_version_tag(self._name, there.version, key, value)
                    self._changes += 1

    def _set_aliases(self, theirs: dict[int, Any], head: Record | None) -> None:
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
    """Mirror the registry to MLflow if `registry.mlflow` is set; the warning of a failed mirror, else None."""
    if config.registry.mlflow is None:
        return None
    try:
        mirror_to_mlflow(registry, config.registry.mlflow)
    except PipelineError as error:
        return f"{error}; ddpm models mirrors it again"
    except Exception as error:  # any error of the MLflow client: the promotion itself is committed
        return f"MLflow failed: {type(error).__name__}: {error}; ddpm models mirrors it again"
    return None

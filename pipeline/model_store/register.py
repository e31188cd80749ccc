"""Register a checkpoint as a version of a model registry: claim a number, export the files, commit the manifest."""

from collections.abc import Callable
from typing import Any

from pipeline.config.root import Config
from pipeline.model_store.load_model import find_model
from pipeline.model_store.registry import Registry, Version
from pipeline.storage.credentials import without_credentials
from pipeline.storage.files import file_entry

Export = Callable[[Config, str, str], dict[str, Any]]
"""(config, URI of a run or checkpoint, URI of the folder): `pipeline.model_store.export.export`."""


def register(config: Config, registry: Registry, export: Export, model: str, facts: dict[str, Any]) -> Version:
    """The version of these weights, created if there is none. An interrupted registration is completed.

    model: URI of a run (its newest checkpoint) or of a checkpoint. Raises the errors of `export`.
    """
    found = find_model(model, config.generate.weights, config.storage)
    number = registry.claim(f"{without_credentials(found.uri)}#{found.weights}:{found.sha256}")
    folder = registry.folder(number)
    done = export(config, found.uri, folder.uri)
    names = sorted(entry.key for entry in folder.list() if entry.key != "manifest.json")
    return registry.commit(
        Version(
            number=number,
            source=without_credentials(found.uri),
            model_digest=done["digest"],
            sha256=done["sha256"],
            files=tuple(file_entry(name, folder.read(name)) for name in names),
            facts=facts,
        )
    )

"""Removing an artefact: what makes it exist goes first, so that a removal cut short leaves nothing half-believed."""

from pipeline.storage.store import Store

__all__ = ["remove_artefact"]


def remove_artefact(folder: Store) -> int:
    """Delete a run or a samples folder; how many objects there were."""
    keys = sorted((entry.key for entry in folder.list()), key=lambda key: (not _is_document(key), key))
    for key in keys:
        folder.delete(key)
    return len(keys)


def _is_document(key: str) -> bool:
    name = key.rpartition("/")[2]
    return name.startswith("_SUCCESS") or name.endswith(".json")

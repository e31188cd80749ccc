"""Package of a submitted job: the program plus `submit.include`, minus ignored files, as one reproducible zip."""

import io
import logging
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

# Private API: the only way to apply ignore files as Ray does. Tests compare the result with Ray's own archive.
from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE, get_runtime_env_default_excludes
from ray._private.runtime_env import packaging

from pipeline.errors import ConfigError

UPLOAD_LIMIT = min(int(packaging.GCS_STORAGE_MAX_SIZE), int(DASHBOARD_CLIENT_MAX_SIZE))
"""Bytes: the dashboard refuses uploads of this size."""
PROGRAM = ("pipeline", "jobs", "pyproject.toml")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # a constant time: equal contents give equal bytes, which Ray uploads only once

_quiet = logging.getLogger(__name__)
_quiet.setLevel(logging.CRITICAL)  # Ray logs every ignore file


def packed_files(folder: Path, parts: Sequence[str] | None = None, excludes: Sequence[str] = ()) -> Iterator[Path]:
    """Files below `folder` that Ray would pack, sorted; with `parts`, only below these names.

    Applies .gitignore and .rayignore at every level and Ray's default excludes.
    """
    ignored = [packaging._get_excludes(folder, [*get_runtime_env_default_excludes(), *excludes])]
    ignored += packaging.get_excludes_from_ignore_files(folder, include_gitignore=True, logger=_quiet)
    children = folder.iterdir() if parts is None else (folder / part for part in parts)
    for child in sorted(children):
        if child.exists() or child.is_symlink():
            yield from _walk(child, ignored)


def _walk(path: Path, ignored: Sequence[Callable[[Path], bool]]) -> Iterator[Path]:
    inner = [*ignored, *packaging.get_excludes_from_ignore_files(path, include_gitignore=True, logger=_quiet)]
    if any(matches(path) for matches in inner):
        return
    if path.is_dir():
        for child in sorted(path.iterdir()):
            yield from _walk(child, inner)
    elif path.is_file():
        yield path


def included_files(here: Path, include: Sequence[str]) -> dict[str, Path]:
    """Files of `submit.include` by path in the package; ignore files do not apply to them.

    Raises ConfigError for a name that is missing or outside `here`.
    """
    found: dict[str, Path] = {}
    for name in include:
        path = here / name
        if not path.resolve().is_relative_to(here.resolve()):
            raise ConfigError(f"submit.include: {name} is not below this folder")
        if not path.exists():
            raise ConfigError(f"submit.include: {name} does not exist")
        excludes = [packaging._get_excludes(here, get_runtime_env_default_excludes())]
        found |= {file.relative_to(here).as_posix(): file for file in _walk(path, excludes)}
    return found


def job_files(root: Path, here: Path, include: Sequence[str]) -> dict[str, Path]:
    """Every file of a job by path in the package. root: the folder that holds `pipeline` and `jobs`."""
    program = {file.relative_to(root).as_posix(): file for file in packed_files(root, PROGRAM)}
    if "jobs/__main__.py" not in program or "pipeline/config/root.py" not in program:
        raise ConfigError(f"an ignore file in {root} excludes pipeline or jobs, which every job needs")
    return {**included_files(here, include), **program}


def sizes_of(files: Iterable[tuple[str, Path]], limit: float = math.inf) -> dict[str, int]:
    """Bytes before compression, by first part of the path in the package. Stops counting at `limit` bytes."""
    sizes: dict[str, int] = {}
    for name, path in files:
        top = name.partition("/")[0]
        sizes[top] = sizes.get(top, 0) + path.stat().st_size
        if sum(sizes.values()) >= limit:
            break
    return sizes


def folder_sizes(folder: Path, excludes: Sequence[str] = ()) -> dict[str, int]:
    """`sizes_of` the files that Ray would pack, up to UPLOAD_LIMIT: a home folder is not walked to its end."""
    files = ((path.relative_to(folder).as_posix(), path) for path in packed_files(folder, excludes=excludes))
    return sizes_of(files, UPLOAD_LIMIT)


def zipped(contents: Mapping[str, bytes]) -> bytes:
    """A zip archive whose bytes depend only on names and contents."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(contents):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, contents[name])
    return buffer.getvalue()

"""The files of a job: this program and what was asked for, without what the ignore files name, as one zip."""

import io
import logging
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

# Private, but the only way to follow the ignore files as Ray does; tests compare with Ray's archive.
from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE, get_runtime_env_default_excludes
from ray._private.runtime_env import packaging

from pipeline.errors import ConfigError

__all__ = ["UPLOAD_LIMIT", "collect", "packed_files", "pieces_of", "sizes_of", "zipped"]

UPLOAD_LIMIT = min(int(packaging.GCS_STORAGE_MAX_SIZE), int(DASHBOARD_CLIENT_MAX_SIZE))
"""Bytes that the dashboard refuses as one upload."""
PROGRAM = ("pipeline", "jobs", "pyproject.toml")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # equal content has equal bytes, and is uploaded once

_quiet = logging.getLogger(__name__)
_quiet.setLevel(logging.CRITICAL)  # Ray names every ignore file that it meets


def packed_files(folder: Path, parts: Sequence[str] | None = None, excludes: Sequence[str] = ()) -> Iterator[Path]:
    """Files below `folder` that Ray would pack, in order; with `parts` only below these names.

    The folder's .gitignore and .rayignore count, those in its folders, and what Ray always leaves out.
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


def pieces_of(here: Path, include: Sequence[str]) -> dict[str, Path]:
    """Files by their path in the package: those of `include`, whatever the ignore files of `here` say.

    Raises ConfigError for a name that is not below `here`, or not there.
    """
    found: dict[str, Path] = {}
    for name in include:
        path = here / name
        if not path.resolve().is_relative_to(here.resolve()):
            raise ConfigError(f"submit.include: {name} is not below this folder")
        if not path.exists():
            raise ConfigError(f"submit.include: {name} is not here")
        excludes = [packaging._get_excludes(here, get_runtime_env_default_excludes())]
        found |= {file.relative_to(here).as_posix(): file for file in _walk(path, excludes)}
    return found


def collect(root: Path, here: Path, include: Sequence[str]) -> dict[str, Path]:
    """Every file of a job by its path in the package; root: the folder that holds `pipeline` and `jobs`."""
    program = {file.relative_to(root).as_posix(): file for file in packed_files(root, PROGRAM)}
    if "jobs/__main__.py" not in program or "pipeline/config/root.py" not in program:
        raise ConfigError(f"an ignore file in {root} names pipeline or jobs, which every job needs")
    return {**pieces_of(here, include), **program}


def sizes_of(files: Mapping[str, Path]) -> dict[str, int]:
    """Bytes by first part of the path, before compression."""
    sizes: dict[str, int] = {}
    for name, path in files.items():
        top = name.partition("/")[0]
        sizes[top] = sizes.get(top, 0) + path.stat().st_size
    return sizes


def zipped(contents: Mapping[str, bytes]) -> bytes:
    """A zip archive that is a function of names and contents alone."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(contents):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, contents[name])
    return buffer.getvalue()

"""Every error a user can meet.

    PipelineError                 exit 1   anything else
    ├── Busy                      exit 1   another living process holds what this one needs, or took it over
    ├── ConfigError               exit 2   a flag, a YAML field, a combination of settings
    ├── DataError                 exit 3   images, datasets, checkpoints or samples that cannot be used
    ├── StorageError              exit 4   the store did not do what was asked
    │   ├── AlreadyExists                  create-once met an object that is there
    │   ├── NotFound                       no such object or folder
    │   ├── MissingBucket                  no such bucket: not an absent object, which may be a normal answer
    │   ├── Denied                         credentials are missing or refused
    │   └── Transient                      timeouts, 5xx, lost connections: the same call may work later
    ├── GateNotPassed             exit 5   a promotion threshold was missed
    ├── VerificationFailed        exit 6   an artefact contradicts its own manifest
    └── Stopped                   exit 143 asked to end by SIGTERM; the same command continues

A message says what is wrong, where, and what to do.
"""

__all__ = [
    "AlreadyExists",
    "Busy",
    "ConfigError",
    "DataError",
    "Denied",
    "GateNotPassed",
    "MissingBucket",
    "NotFound",
    "PipelineError",
    "Stopped",
    "StorageError",
    "Transient",
    "VerificationFailed",
]


class PipelineError(Exception):
    """Root of the tree; `exit_code` is what the command line returns."""

    exit_code = 1


class Busy(PipelineError):
    pass


class ConfigError(PipelineError):
    exit_code = 2


class DataError(PipelineError):
    exit_code = 3


class StorageError(PipelineError):
    exit_code = 4


class AlreadyExists(StorageError):
    pass


class NotFound(StorageError):
    pass


class MissingBucket(StorageError):
    pass


class Denied(StorageError):
    pass


class Transient(StorageError):
    pass


class GateNotPassed(PipelineError):
    exit_code = 5


class VerificationFailed(PipelineError):
    exit_code = 6


class Stopped(PipelineError):
    exit_code = 143

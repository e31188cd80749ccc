"""The exception tree: every error that a command reports in one line, with its exit code.

    PipelineError                 exit 1   any other failure
    ├── Busy                      exit 1   another running process holds the lease, or has taken it over
    ├── ConfigError               exit 2   a flag, a YAML field, or a combination of settings is wrong
    ├── DataError                 exit 3   images, a dataset, a checkpoint or samples cannot be used
    ├── StorageError              exit 4   a storage request failed
    │   ├── AlreadyExists                  create-once found an existing object
    │   ├── NotFound                       no such object or folder
    │   ├── MissingBucket                  no such bucket; never a normal answer, unlike NotFound
    │   ├── Denied                         credentials are missing or refused
    │   └── Transient                      timeout, 5xx or lost connection: a repeat may succeed
    ├── GateNotPassed             exit 5   a model did not reach a promotion threshold
    ├── VerificationFailed        exit 6   stored files contradict their manifest
    └── Stopped                   exit 143 SIGTERM ended the command; the same command continues

A message states what is wrong, where, and how to fix it.
"""


class PipelineError(Exception):
    """Base of all errors of this program; `exit_code` is the exit status of the command."""

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

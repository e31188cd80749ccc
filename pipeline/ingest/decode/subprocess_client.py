"""The parent's side of the decoding process (`subprocess_main`): start, send images, read results, explain a crash."""

import atexit
import fcntl
import json
import mmap
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final, NamedTuple

import pipeline
from pipeline.config.ingest import IngestConfig
from pipeline.errors import PipelineError
from pipeline.images.png import Pixels
from pipeline.images.reject_reasons import REASONS, Reject
from pipeline.ingest.decode.subprocess_main import IDLE, NOTED, OK, PROGRESS_BYTES, READY, shared_arrays

_MODULE: Final = "pipeline.ingest.decode.subprocess_main"
_START_SECONDS: Final = 120.0
_STALL_FACTOR, _STALL_SECONDS = 4.0, 60.0
"""A stalled process uses no processor time, so the limit on processor time does not stop it. The parent kills a process
that has finished no image for FACTOR * max_decode_seconds + SECONDS."""
_POLL_SECONDS: Final = 1.0
_CHUNK_BYTES: Final = 2**20

_ENVIRONMENT: Final = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "HOME", "PYTHONHOME", "PYTHONUSERBASE")
"""The variables that the process inherits: no credentials."""

_idle: dict[tuple[int, str], "DecodingProcess"] = {}
"""At most one for each owner pid and settings: a forked child must not use its parent's process."""


class Crash(NamedTuple):
    """The end of a decoding process. image_index: position in the batch of the image under work; None when unknown."""

    image_index: int | None
    cause: str
    too_slow: bool


class WithoutProfile(NamedTuple):
    """Pixels of an image whose colour profile cannot be used."""

    pixels: Pixels


class _CorruptOutputError(Exception):
    """The process wrote bytes that do not follow the protocol of `subprocess_main`."""


class DecodingProcess:
    """One process: `send` a batch, read all its `results`, then send the next."""

    @classmethod
    def start(cls, config: IngestConfig, max_rows: int) -> "DecodingProcess":
        """An idle process with these settings, or a new one. Raises PipelineError when the process does not start."""
        settings = config.model_dump_json()
        found = _idle.pop((os.getpid(), settings), None)
        return found if found is not None and found.alive else cls(config, max_rows)

    def __init__(self, config: IngestConfig, max_rows: int) -> None:
        settings = config.model_dump_json()
        self._key = (os.getpid(), settings)
        self._stall_seconds = _START_SECONDS
        self._busy = True
        self._received, self._taken = bytearray(), 0
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the process
        with _shared_file() as file:
            file.truncate(PROGRESS_BYTES + max_rows * config.image_size**2 * config.channels)
            self._progress, self._pixels = shared_arrays(mmap.mmap(file.fileno(), 0), config)
            self._progress[0] = IDLE
            self._process = _launched(file, self._errors)
        self._input, self._output = _piped(self._process)
        self._write(struct.pack("<Q", len(settings.encode())) + settings.encode())
        if bytes(self._take(len(READY)) or b"") != READY:
            self._errors.seek(0)
            words = self._errors.read().decode(errors="replace").strip().rpartition("\n")[2]
            raise PipelineError(
                f"the decoding process does not start: {words or 'no message'} ({self._killed().cause})"
            )
        self._stall_seconds = _STALL_FACTOR * config.max_decode_seconds + _STALL_SECONDS
        self._busy = False

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, images: Sequence[bytes]) -> None:
        """Send a batch. A dead process shows in `results`, not here."""
        self._busy = True
        self._received, self._taken = bytearray(), 0
        self._write(struct.pack(f"<I{len(images)}Q", len(images), *map(len, images)) + b"".join(images))

    def results(self, count: int) -> Iterator[Pixels | WithoutProfile | Reject | Crash]:
        """The results of a batch of `count` images, in order; after a Crash there are no more."""
        for index in range(count):
            try:
                result = self._result(index)
            except _CorruptOutputError:
                # The process buffers its results, so any image of the batch may have caused the corrupt bytes.
                yield self._killed()._replace(image_index=0 if count == 1 else None)
                return
            if result is None:
                yield self._killed(count)
                return
            self._busy = index < count - 1
            yield result

    def release(self) -> None:
        """Keep an idle process for the next `start`; kill a busy one."""
        if not self._busy and self.alive and self._key not in _idle:
            _idle[self._key] = self
        else:
            self.end()

    def end(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            if file is not None:
                file.close()

    def _result(self, index: int) -> Pixels | WithoutProfile | Reject | None:
        """The next result; None at the end of the stream. Raises _CorruptOutputError."""
        status = self._take(1)
        if status is not None and bytes(status) in (OK, NOTED):
            pixels: Pixels = self._pixels[index].copy()  # the next batch overwrites the shared memory
            return pixels if bytes(status) == OK else WithoutProfile(pixels)
        length = None if status is None else self._take(4)
        text = None if length is None else self._take(min(struct.unpack("<I", length)[0], _CHUNK_BYTES))
        return None if text is None else _reject(text)

    def _killed(self, count: int = 0) -> Crash:
        """Kill the process, if it still lives, and return the cause of its end. count: images in its batch."""
        self._process.kill()
        code = self._process.wait()
        index = int(self._progress[0])
        cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        self.end()
        return Crash(index if index < count else None, cause, code == -signal.SIGPROF)

    def _take(self, count: int) -> bytearray | None:
        """The next `count` bytes of stdout; None when the stream ends before."""
        while len(self._received) - self._taken < count:
            del self._received[: self._taken]
            self._taken = 0
            chunk = os.read(self._output, _CHUNK_BYTES) if self._wait(self._output, select.POLLIN) else b""
            if not chunk:
                return None
            self._received += chunk
        self._taken += count
        return self._received[self._taken - count : self._taken]

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view and self._wait(self._input, select.POLLOUT):
                view = view[os.write(self._input, view) :]
        except BrokenPipeError:
            return

    def _wait(self, pipe: int, event: int) -> bool:
        """True when the pipe is ready or closed; False after the process stalled and was killed."""
        poll = select.poll()
        poll.register(pipe, event)
        progress, since = int(self._progress[0]), time.monotonic()
        while not poll.poll(_POLL_SECONDS * 1000):
            if int(self._progress[0]) != progress:
                progress, since = int(self._progress[0]), time.monotonic()
            if time.monotonic() - since > self._stall_seconds:
                self._process.kill()
                return False
        return True


def _reject(text: bytearray) -> Reject:
    try:
        reason, detail = json.loads(text)
    except (ValueError, TypeError) as error:
        raise _CorruptOutputError from error
    if reason not in REASONS:
        raise _CorruptOutputError
    return Reject(reason, str(detail))


def _shared_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("ddpm-decode"), "w+b")
    return tempfile.TemporaryFile()


def _launched(shared: IO[bytes], errors: IO[bytes]) -> "subprocess.Popen[bytes]":
    paths = [str(Path(pipeline.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {name: value for name, value in os.environ.items() if name in _ENVIRONMENT}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", _MODULE, str(shared.fileno())],  # -P: import no modules from the current folder
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        pass_fds=(shared.fileno(),),
        env={**environment, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
    )


def _piped(process: "subprocess.Popen[bytes]") -> tuple[int, int]:
    assert process.stdin is not None
    assert process.stdout is not None
    os.set_blocking(process.stdin.fileno(), False)
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):  # the system may forbid it; 64 KiB then cost more context switches
            fcntl.fcntl(process.stdin, fcntl.F_SETPIPE_SZ, _CHUNK_BYTES)
    return process.stdin.fileno(), process.stdout.fileno()


@atexit.register
def _end_idle() -> None:
    while _idle:
        _, process = _idle.popitem()
        if process._key[0] == os.getpid():
            process.end()

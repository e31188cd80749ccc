"""The sandboxed decoding process: python -m pipeline.ingest.decode.subprocess_main FD.

`subprocess_client` starts it. The process has no credentials and no state that a crash could lose. Its memory, files
and processor time are limited.

    stdin    the settings, then batches: number of images, their sizes, their bytes
    stdout   READY; then for each image OK, NOTED (OK, but its colour profile cannot be used), or BAD with a length and
             a JSON pair (reason, detail)
    FD       shared memory: u32 index of the image being decoded, which the parent reads after a crash, and the pixels
             of the batch, uint8 [rows, size, size, channels]

Integers are little-endian: u64 for sizes, u32 for all others. Messages are plain bytes and not pickles, so a codec that
an image has taken over cannot run code in the parent.
"""

import json
import mmap
import os
import resource
import signal
import struct
import sys
import warnings
from collections.abc import Callable
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt

from pipeline.config.ingest import IngestConfig
from pipeline.images.decode import BadImage, readable_formats
from pipeline.images.png import Pixels
from pipeline.images.reject_reasons import Reject
from pipeline.ingest.decode.resize import prepare

READY, OK, BAD, NOTED = b"R", b"\x00", b"\x01", b"\x02"
IDLE: Final = 0xFFFFFFFF
PROGRESS_BYTES: Final = 4

_BYTES_A_PIXEL: Final = 24
"""Enough for RGBA, its canvas, the blend and the result, or for 16-bit grey and its conversion to 8 bit."""
_SPARE_BYTES: Final = 256 * 2**20
_BUFFER_BYTES: Final = 2**18
_MAX_OPEN_FILES: Final = 16

Numbers = npt.NDArray[np.uint32]
Prepare = Callable[[bytes, IngestConfig, Callable[[str], None]], Pixels]


def serve(prepare: Prepare) -> None:
    """Decode batches until the parent closes stdin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    warnings.simplefilter("ignore")  # Pillow warns about odd metadata
    source, sink = os.fdopen(0, "rb", _BUFFER_BYTES), os.fdopen(1, "wb", _BUFFER_BYTES)
    config = IngestConfig.model_validate_json(_exactly(source, _number(source, "<Q")))
    progress, pixels = shared_arrays(mmap.mmap(int(sys.argv[1]), 0), config)
    _restrict(config)
    sink.write(READY)
    sink.flush()
    while (count := _number(source, "<I")) is not None:
        sizes = struct.unpack(f"<{count}Q", _exactly(source, 8 * count))
        images = [_exactly(source, size) for size in sizes]  # read all before the first result: no deadlock
        for index, data in enumerate(images):
            progress[0] = index
            notes: list[str] = []
            found = _prepared(prepare, data, config, notes)
            if isinstance(found, Reject):
                text = json.dumps(found).encode()
                sink.write(BAD + struct.pack("<I", len(text)) + text)
            else:
                pixels[index] = found
                sink.write(NOTED if notes else OK)
        progress[0] = IDLE
        sink.flush()


def shared_arrays(memory: mmap.mmap, config: IngestConfig) -> tuple[Numbers, Pixels]:
    """Views of the shared memory: progress uint32 [1] and pixels uint8 [rows, size, size, channels]."""
    pixels = np.frombuffer(memory, np.uint8, offset=PROGRESS_BYTES)
    shape = (-1, config.image_size, config.image_size, config.channels)
    return np.frombuffer(memory, np.uint32, count=1), pixels.reshape(shape)


def _prepared(prepare: Prepare, data: bytes, config: IngestConfig, notes: list[str]) -> Pixels | Reject:
    signal.setitimer(signal.ITIMER_PROF, config.max_decode_seconds)  # the default action of SIGPROF kills this process
    try:
        return prepare(data, config, notes.append)
    except BadImage as error:
        return error.reject
    except MemoryError:
        return Reject("too-much-memory", f"more than {memory_limit(config)} bytes to decode it")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def memory_limit(config: IngestConfig) -> int:
    """Bytes that decoding may use on top of the memory of an idle process."""
    return _BYTES_A_PIXEL * config.max_image_pixels + 2 * config.max_image_bytes + _SPARE_BYTES


def _restrict(config: IngestConfig) -> None:
    """Limit memory to the need of the largest permitted image; forbid file writes and core dumps."""
    readable_formats()  # loads the codecs, which are files, before the file limit applies
    limit = _address_space() + memory_limit(config)
    limits = ((resource.RLIMIT_AS, limit), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0))
    for kind, value in (*limits, (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES)):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _address_space() -> int:
    """Bytes of address space in use; 0 on systems without /proc."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def _number(source: BinaryIO, form: str) -> int | None:
    """The next integer; None at the end of the stream."""
    data = source.read(struct.calcsize(form))
    return int(struct.unpack(form, data)[0]) if data else None


def _exactly(source: BinaryIO, count: int | None) -> bytes:
    data = source.read(count or 0)
    if len(data) != count:
        os._exit(0)  # the parent has ended
    return data


if __name__ == "__main__":
    serve(prepare)

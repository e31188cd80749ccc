"""Plants a fault in the codec of the decoding process, and nowhere else: with this folder on PYTHONPATH an image whose
bytes hold PLANTED-SEGV (ABORT, EXIT, LOOP, SLEEP, MEMORY) does that when it is opened."""

import sys

if "pipeline.ingest.decode.subprocess_main" in sys.orig_argv:
    import ctypes
    import os
    import time
    from pathlib import Path

    from PIL import Image

    plain_open = Image.open

    def once(path: Path) -> None:
        """Die the first time that this path is seen."""
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        os._exit(9)

    def planted_open(stream, *args, **kwargs):
        data = stream.getvalue()
        fault = data.partition(b"PLANTED-")[2].partition(b";")[0]
        if fault == b"SEGV":
            ctypes.string_at(0)
        elif fault == b"ABORT":
            os.abort()
        elif fault == b"EXIT":
            os._exit(0)
        elif fault == b"LOOP":
            while True:
                pass
        elif fault == b"SLEEP":
            time.sleep(3600)
        elif fault == b"MEMORY":
            bytearray(2**40)
        elif fault.startswith(b"ONCE "):
            once(Path(os.fsdecode(fault[5:])))
        elif fault == b"NONSENSE":
            os.write(1, b"\x01\x02\x00\x00\x00{}" * 3)
        return plain_open(stream, *args, **kwargs)

    Image.open = planted_open

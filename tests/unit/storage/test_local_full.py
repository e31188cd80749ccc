"""A full local disk: no partial object, no temporary file, one message with place and remedy.

The limit is that on file sizes of a process of its own, which needs no rights; the kernel refuses in the same place
as for a full disk.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

FILL = """
import json, os, resource, sys
from pipeline.config.root import StorageConfig
from pipeline.errors import StorageError
from pipeline.storage.store import resolve
store = resolve(sys.argv[1], StorageConfig())
store.put("kept", b"old")
_, version = store.read_versioned("kept")
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
big = bytes(100_000)
said = {}
for name, write in {
    "put": lambda: store.put("new/put", big),
    "replace": lambda: store.put("kept", big),
    "create_once": lambda: store.create_once("once", big),
    "compare_and_swap": lambda: store.compare_and_swap("kept", big, version),
}.items():
    try:
        write()
    except StorageError as error:
        said[name] = [type(error).__name__, error.exit_code, str(error)]
store.put("small", b"there is room for this")
print(json.dumps(said))
"""


def test_a_full_disk_leaves_nothing_behind_and_says_what_to_do(tmp_path):
    ran = subprocess.run([sys.executable, "-c", FILL, str(tmp_path)], capture_output=True, text=True, check=True)
    said = json.loads(ran.stdout)
    assert said.keys() == {"put", "replace", "create_once", "compare_and_swap"}
    for kind, exit_code, message in said.values():
        assert (kind, exit_code) == ("StorageError", 4)
        assert "File too large: raise the limit on file sizes" in message
    assert said["put"][2].startswith(str(tmp_path / "new/put"))
    assert (tmp_path / "kept").read_bytes() == b"old"
    left = {str(path.relative_to(tmp_path)) for path in Path(tmp_path).rglob("*") if path.is_file()}
    assert left == {"kept", "small", ".ddpm-lock"}

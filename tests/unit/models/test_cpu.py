"""Threads and memory of a one-core process. Every case starts a process, because the settings are process-wide."""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.unit, pytest.mark.slow]

PROGRAM = """
import json, resource, torch
from pipeline.models.cpu import compute_on_one_core
if {settled}:
    compute_on_one_core()
def use():
    return float(torch.ones(2**24).sum())  # 64 MiB, given back at once
def faults_of(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        use()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
total = sum(use() for _ in range(5))
faults = min(faults_of(5) for _ in range(10))  # pieces that were freed find together after a while
print(json.dumps([total, faults, torch.get_num_threads()]))
"""


def outcome(settled):
    words = [sys.executable, "-c", PROGRAM.format(settled=settled)]
    return json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_memory_that_tensors_free_is_kept_and_there_is_one_thread():
    total, faults, threads = outcome(settled=True)
    plain_total, plain_faults, _ = outcome(settled=False)
    assert total == plain_total == 5 * 2**24
    assert threads == 1
    assert faults * 20 < plain_faults, "every page was faulted in again"

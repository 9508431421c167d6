from __future__ import annotations

import subprocess
import sys

import pytest

from memback.engine import allocator

glibc = pytest.mark.skipif(allocator._mallopt() is None, reason="the C library is not glibc")

FAULTS = """
import resource
import numpy as np
import memback as mb

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(2**20, np.uint8)  # too small for huge pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert mb.keep_freed_memory(False)
given_back = faults()
assert mb.keep_freed_memory()
faults()
kept = faults()
assert mb.keep_freed_memory(False)
print(given_back, kept, faults())
"""


@glibc
def test_kept_memory_is_not_asked_of_the_system_again_and_keeping_can_be_ended() -> None:
    run = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    given_back, kept, ended = map(int, run.stdout.split())
    assert kept <= 5
    assert min(given_back, ended) >= 20


HUGE = """
import re
from pathlib import Path
import numpy as np
import memback as mb

assert mb.keep_freed_memory()
assert mb.keep_freed_memory()  # once more is no more
arrays = [np.ones(2**18, np.float32) for _ in range(64)]
print(re.search("AnonHugePages: *([0-9]+)", Path("/proc/self/smaps_rollup").read_text())[1])
"""


@glibc
@pytest.mark.skipif(not allocator._gives_huge_pages(), reason="the system gives no huge pages to those who ask")
def test_kept_memory_comes_in_huge_pages() -> None:
    run = subprocess.run([sys.executable, "-c", HUGE], capture_output=True, text=True, check=True)
    assert int(run.stdout) >= 56 * 1024  # KiB, of 64 MiB in arrays of 1 MiB


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_mallopt", lambda: None)
    assert allocator.keep_freed_memory() is False

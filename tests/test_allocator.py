from __future__ import annotations

import subprocess
import sys

import pytest

from memback import allocator

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


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_mallopt", lambda: None)
    assert allocator.keep_freed_memory() is False

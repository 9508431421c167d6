"""What every test runs under."""

from __future__ import annotations

import gc
import os

# The tests' products are so small that sharing them out among threads takes longer than the products themselves, and
# on a busy machine a hundred times as long. NumPy reads this when it is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# The same examples on every machine, and no verdict on how fast it is.
settings.register_profile("memback", derandomize=True, deadline=None)
settings.load_profile("memback")


@pytest.fixture(autouse=True, scope="module")
def _only_new_objects_are_looked_at() -> None:
    """What is there before a file's tests stays: each measurement collects garbage, and would go through it all.

    It stays for good, because going through it once a file took longer than most files' tests.
    """
    gc.collect()
    gc.freeze()

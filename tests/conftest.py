"""What every test runs under."""

from __future__ import annotations

import os

# The tests' products are so small that sharing them out among threads takes longer than the products themselves, and
# on a busy machine a hundred times as long. NumPy reads this when it is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from hypothesis import settings

# The same examples on every machine, and no verdict on how fast it is.
settings.register_profile("memback", derandomize=True, deadline=None)
settings.load_profile("memback")

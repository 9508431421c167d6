"""What every test runs under."""

from __future__ import annotations

from hypothesis import settings

# The same examples on every machine, and no verdict on how fast it is.
settings.register_profile("memback", derandomize=True, deadline=None)
settings.load_profile("memback")

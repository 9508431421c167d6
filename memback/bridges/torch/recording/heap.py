"""Looking through all living objects, those that ``gc.freeze`` has put apart among them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["all_objects_seen"]


@contextmanager
def all_objects_seen() -> Iterator[None]:
    """In the block ``gc.get_objects`` and ``gc.get_referrers`` see frozen objects; they are frozen again afterwards."""
    gc.collect()  # at first, because what is garbage now would be frozen for ever
    frozen = gc.get_freeze_count() > 0
    if frozen:
        gc.unfreeze()
    try:
        yield
    finally:
        if frozen:
            gc.freeze()

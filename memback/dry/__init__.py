"""Dry runs: arrays that have a shape, a dtype and strides, and no memory."""

from __future__ import annotations

from memback.dry import functions as _functions  # noqa: F401 - registers what arrays without memory do in them
from memback.dry.mode import dry_run

__all__ = ["dry_run"]

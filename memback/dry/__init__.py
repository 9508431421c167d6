"""Dry runs: arrays that have a shape, a dtype and strides, and no memory."""

from __future__ import annotations

from memback.dry.mode import dry_run

__all__ = ["dry_run"]

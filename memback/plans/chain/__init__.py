"""Planners of chains of stages."""

from __future__ import annotations

from memback.plans.chain.persistent import frontier, solve

__all__ = ["frontier", "solve"]

"""Planners of graphs of nodes."""

from __future__ import annotations

import memback.plans.graph.search as _search
from memback.plans.graph.search import *  # noqa: F403 - which lists the public names

__all__: list[str] = []
__all__ += _search.__all__

"""Planners of graphs of nodes."""

from __future__ import annotations

from memback.plans.graph.search import (
    Graph,
    GraphBudgetError,
    IllegalGraphActionError,
    Node,
    Running,
    search,
    simulate,
    solve,
)

__all__ = ["Graph", "GraphBudgetError", "IllegalGraphActionError", "Node", "Running", "search", "simulate", "solve"]

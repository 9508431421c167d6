"""Observers, which are told of what happens on a tape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memback.engine.node import AnyTape, Edge, Node
from memback.engine.op import Op
from memback.engine.site import Site

__all__ = ["Call", "Observer"]


class Observer:
    """Base of observers: each method is called when that happens on the thread whose state has the observer."""

    def forward_begins(self, op: Op) -> None:
        """``op`` is about to run forward."""

    def forward_ended(self, call: Call) -> None:
        """An op has run forward."""

    def forward_failed(self) -> None:
        """The op that had begun raised an exception."""

    def backward_begins(self, node: Node) -> None:
        """``node`` is about to be taken backward."""

    def backward_ended(self, node: Node, edges: Sequence[Edge | None]) -> None:
        """``node`` was taken backward; its gradients have been added to ``edges``."""

    def recompute_begins(self, node: Node) -> None:
        """Calls of a region are about to be run again, ``node`` the first of them."""

    def recompute_ended(self, node: Node) -> None:
        """They were run again; their backward follows."""

    def held(self, node: Node) -> None:
        """``node`` holds what no :meth:`forward_ended` told of: what a region stores, or a call filled in."""

    def backward_pass_begins(self) -> None:
        """The walk over a tape begins; the forward pass is complete."""

    def backward_pass_ended(self) -> None:
        """The walk is over, and what it was told to free is freed."""

    def update_begins(self) -> None:
        """The optimiser is about to change the parameters."""

    def update_ended(self) -> None:
        """The optimiser has changed the parameters."""


@dataclass(slots=True, eq=False)
class Call:
    """One forward call, as an observer sees it. Not to be kept, because it refers to every value."""

    op: Op
    values: list[Any]
    out: Any
    residuals: tuple[Any, ...]
    path: str
    site: Site | None
    node: Node | None
    tape: AnyTape | None

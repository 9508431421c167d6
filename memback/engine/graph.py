"""The graph of recorded calls: which of them gradients can reach from one, on whichever tapes and threads they are."""

from __future__ import annotations

import threading
from operator import attrgetter

from memback.engine.node import Node, Walk

__all__ = ["claim"]

_claiming = threading.Lock()


def claim(origin: Node, walk: Walk) -> list[Node] | None:
    """The calls that gradients from ``origin`` can reach, in the order in which they were recorded.

    None where another thread is walking over one of them.
    """
    found = [origin]
    with _claiming:
        if _is_taken(origin, walk):
            return None
        origin.walk = walk
        for node in found:  # which grows meanwhile
            for edge in node.edges:
                if edge is None or edge._is_leaf:
                    continue
                reached: Node = edge.node if edge._is_port else edge  # type: ignore[attr-defined,assignment]
                if reached.walk is not walk:
                    if reached.walk is not None and _is_taken(reached, walk):
                        return None
                    reached.walk = walk
                    found += (reached,)
    found.sort(key=attrgetter("number"))
    return found


def _is_taken(node: Node, walk: Walk) -> bool:
    return node.walk is not None and node.walk.thread not in (None, walk.thread)

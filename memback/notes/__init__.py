"""The lecture notes worked through on a real network: every claim computed, and checked another way.

Nothing here prints. A section is a function from a seed to a dataclass whose ``checks`` say what was compared; to add
one, write it in a file of its own (the shortest is ``memory.py``) and name it in the registry.
"""

from __future__ import annotations

from collections.abc import Callable

from memback.notes import chain_rule, exercises, jacobians, memory, network
from memback.notes.check import Check, Section

__all__ = ["SECTIONS", "Check", "Section"]

SECTIONS: dict[str, Callable[[int], Section]] = {
    "1": chain_rule.section,
    "3": network.forward,
    "4.1": jacobians.section,
    "4.2": network.backward,
    "4.3": memory.section,
    "5": exercises.section,
}
"""Every section that is worked through, by its number in the notes and in their order."""

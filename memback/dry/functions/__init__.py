"""What arrays without memory do in NumPy's functions: a file a family; each handler says whose part it takes."""

from __future__ import annotations

from memback.dry.functions import creation, elements, joining, picking, reductions, shapes, universal

__all__ = ["creation", "elements", "joining", "picking", "reductions", "shapes", "universal"]

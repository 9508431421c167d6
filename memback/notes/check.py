"""What a section of the notes claims, compared with what was found another way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from memback.engine.arrays import Array

__all__ = ["Check", "Section", "checks_in"]


@dataclass(frozen=True)
class Check:
    """One comparison: what holds, by which equation, and the largest absolute error that was found.

    ``error`` is None where it is not a finite number, or where there is nothing to subtract.
    """

    what: str
    equation: str
    error: float | None
    tolerance: float
    ok: bool

    @classmethod
    def near(cls, what: str, equation: str, value: Any, reference: Any, tolerance: float) -> Check:
        """``value`` is ``reference`` to within ``tolerance``, relative to the largest reference where that exceeds 1.

        Two empty or differently shaped arrays are not near.
        """
        value, reference = np.asarray(value), np.asarray(reference)
        if value.shape != reference.shape or value.size == 0:
            return cls(what, equation, None, tolerance, ok=False)
        error = float(np.max(np.abs(value - reference)))
        allowed = tolerance * max(1.0, float(np.max(np.abs(reference))))
        return cls(what, equation, error if math.isfinite(error) else None, allowed, ok=error <= allowed)

    @classmethod
    def same_bits(cls, what: str, equation: str, values: Mapping[str, Array], references: Mapping[str, Array]) -> Check:
        """Every value has the dtype, shape and bits of the reference of the same name."""
        if values.keys() != references.keys():
            return cls(what, equation, None, 0.0, ok=False)
        pairs = [(value, references[name]) for name, value in values.items()]
        same = all(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes() for a, b in pairs)
        errors = [float(np.max(np.abs(a - b))) for a, b in pairs if a.shape == b.shape]
        error = max(errors, default=math.nan)
        return cls(what, equation, error if math.isfinite(error) else None, 0.0, ok=same)

    @classmethod
    def holds(cls, what: str, equation: str, truth: bool) -> Check:
        """A statement without a number."""
        return cls(what, equation, None, 0.0, ok=truth)


def checks_in(result: Any) -> Iterator[Check]:
    """The checks in a result, of dataclasses and tuples, in the order of their fields."""
    if isinstance(result, Check):
        yield result
    elif isinstance(result, tuple):
        for item in result:
            yield from checks_in(item)
    elif is_dataclass(result):
        for field in fields(result):
            yield from checks_in(getattr(result, field.name))


class Section:
    """Base of the sections' results, which are dataclasses."""

    @property
    def checks(self) -> Sequence[Check]:
        """Everything that was checked."""
        return tuple(checks_in(self))

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {"ok": self.ok, **asdict(self)}  # type: ignore[call-overload]

"""Budgets: bytes, or a share of the peak of full retention."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from memback.errors import UsageError
from memback.units import parse_bytes

__all__ = ["Budget"]

_SHARE = re.compile(r"(?P<number>\d{1,9}(?:\.\d{1,9})?)\s*%", re.ASCII)


@dataclass(frozen=True)
class Budget:
    """Either ``size`` in bytes, or a ``share`` of the full peak, which is that of the step without a plan or policy.

    Bytes are rounded down, so that a budget never grows.
    """

    size: int = 0
    share: Fraction | None = None

    @classmethod
    def read(cls, given: float | str) -> Budget:
        """Bytes, ``"512MiB"``, or ``"75%"`` of the full peak.

        Raises:
            UsageError: it is no size, and no share of more than nothing.
        """
        if not isinstance(given, str):
            return cls(int(given))
        if "%" not in given:
            return cls(parse_bytes(given))
        match = _SHARE.fullmatch(given.strip())
        share = Fraction(match["number"]) / 100 if match else Fraction(0)
        if not share:
            raise UsageError(f"budget {given[:80]!r} is no share of the full peak; write it as 75% or 12.5%")
        return cls(share=share)

    def bytes(self, full_peak: Callable[[], int]) -> int:
        """The bytes; ``full_peak``, in bytes, is asked for where this is a share of it."""
        return self.size if self.share is None else int(self.share * full_peak())

"""Modes in which calls are recorded."""

from __future__ import annotations

from memback.engine.state import Setting

__all__ = ["detect_anomaly", "no_grad"]


class no_grad(Setting):
    """Run the block without a tape (inference): nothing is saved, every value dies at its last use."""

    field = "tape"

    def value(self) -> None:
        """No tape."""


class detect_anomaly(Setting):
    """Check every output and every gradient in the block; the first NaN or infinity raises :class:`AnomalyError`.

    Besides, what is saved in the block is compared with its checksum when backward comes to it, so that a change of
    which the tape knows nothing (through ``.data``, say) raises :class:`TapeError`. Costs time and a byte an element.
    """

    field = "anomaly"

"""A stage of a chain as planners see it: its costs and its bytes."""

from __future__ import annotations

import math
from numbers import Integral, Real

from msgspec.structs import force_setattr

from memback.errors import UsageError
from memback.plans.data import Data, always

__all__ = ["Stage"]

_SIZES = (
    "output_bytes",
    "saved_bytes",
    "gradient_bytes",
    "forward_workspace",
    "backward_workspace",
    "sweep_workspace",
    "parameter_gradient_bytes",
)


class Stage(Data, frozen=True):
    """One stage of a chain; :mod:`memback.plans.simulate` says when each of its sizes is live.

    Attributes:
        forward_cost: of one forward, in any unit (FLOPs, seconds), the same for all stages.
        backward_cost: of the backward, in that unit.
        output_bytes: of the stage's output, which is the next stage's input.
        saved_bytes: what the stage's tape keeps besides its input and its output.
        gradient_bytes: of dL/d(output); None stands for ``output_bytes``.
        forward_workspace: the most that forward holds at once besides its input, its output and, when they are
            kept, its saves; the larger of the two ways to run it, unless ``sweep_workspace`` tells them apart.
        backward_workspace: the most that backward holds at once besides its input, output, saves and gradients.
        parameter_gradient_bytes: of the parameter gradients that the backward makes; they live on to the end.
        sweep_workspace: the most that a forward holds at once which keeps no saves, besides its input and its output;
            None stands for ``forward_workspace``.
        sweeps: whether it can be run again, and so need not keep everything.

    Raises:
        UsageError: a cost is not a finite number from 0 up, or a size is not a whole number from 0 up.
    """

    forward_cost: int | float
    backward_cost: int | float
    output_bytes: int
    saved_bytes: int = always(0)
    gradient_bytes: int | None = None
    forward_workspace: int = always(0)
    backward_workspace: int = always(0)
    parameter_gradient_bytes: int = always(0)
    sweep_workspace: int | None = None
    sweeps: bool = True

    def __post_init__(self) -> None:
        for name in ("forward_cost", "backward_cost"):
            cost = getattr(self, name)
            if not isinstance(cost, Real) or not math.isfinite(cost) or cost < 0:
                raise UsageError(f"{name} of a stage must be a finite number from 0 up, not {cost!r}")
            force_setattr(self, name, int(cost) if isinstance(cost, Integral) else float(cost))
        for name in _SIZES:
            size = getattr(self, name)
            if name in ("gradient_bytes", "sweep_workspace") and size is None:
                continue
            if not isinstance(size, Integral) or size < 0:
                raise UsageError(f"{name} of a stage must be a whole number of bytes from 0 up, not {size!r}")
            force_setattr(self, name, int(size))

    @property
    def output_gradient_bytes(self) -> int:
        """Bytes of dL/d(output)."""
        return self.output_bytes if self.gradient_bytes is None else self.gradient_bytes

    @property
    def workspace_of_sweep(self) -> int:
        """Bytes of the workspace of a forward that keeps no saves."""
        return self.forward_workspace if self.sweep_workspace is None else self.sweep_workspace

"""A model's own forward as a planned region: its calls must be those that the plan was made for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memback.engine.arrays import dtype_name, form
from memback.engine.op import Op
from memback.engine.program import Program
from memback.engine.replay import Replay, replaying
from memback.engine.state import current
from memback.errors import UsageError
from memback.plans.data import Data

__all__ = ["CallShape", "OutputShape", "PlanReplay", "run_region"]


class OutputShape(Data, frozen=True):
    """Shape and dtype of an output."""

    shape: tuple[int, ...]
    dtype: str


class CallShape(Data, frozen=True):
    """What a call in a planned region must be: its op, layer path, and its outputs."""

    op: str
    path: str
    outputs: tuple[OutputShape, ...]

    @classmethod
    def of(cls, op: Op, path: str, out: Any) -> CallShape:
        """The shape of a call that has run."""
        outs = out if op.multiple else (out,)
        return cls(op.name, path, tuple([OutputShape(o.shape, dtype_name(o.dtype)) for o in outs]))

    def matches(self, other: CallShape) -> bool:
        """Whether another call is the same, whatever its layer is called where the model is a part of another one."""
        return self.op == other.op and self.outputs == other.outputs

    def __str__(self) -> str:
        outputs = ", ".join(form(o.dtype, o.shape) for o in self.outputs)
        return f"{self.op} (layer {self.path or '(top)'!r}) giving {outputs}"


class PlanReplay(Replay):
    """One run of a planned region.

    Args:
        calls: what each call must be, in order.
        program: what is done with them.
    """

    def __init__(self, calls: Sequence[CallShape], program: Program) -> None:
        super().__init__()
        self.planned = calls
        self.program = program

    def lean(self, op: Op) -> bool:
        return self.count < len(self.planned) and self.count not in self.program.whole

    def keeps_residuals(self, op: Op) -> bool:
        return self.count in self.program.saves

    def may_run_again(self) -> bool:
        return self.count in self.program.recipes

    def runs_again(self, call: Any) -> bool:
        return call.index in self.program.again

    def expect(self, op: Op, path: str, out: Any) -> None:
        """Raise unless a call is the next one of the plan.

        Raises:
            UsageError: it is another, so the plan was made for another model or other inputs.
        """
        shape = CallShape.of(op, path, out)
        if self.count >= len(self.planned) or not self.planned[self.count].matches(shape):
            wanted = self.planned[self.count] if self.count < len(self.planned) else "the end of the model"
            raise UsageError(
                f"this plan was made for another model or other inputs: call {self.count} is {shape}, the plan has"
                f" {wanted} there. Make a plan for this one"
            )

    def add(self, call: Any, values: list[Any], out: Any, residuals: tuple[Any, ...]) -> None:
        number = self.count
        super().add(call, values, out, residuals)
        if number in self.program.outputs:
            self._hold(number, call, out)
        if number in self.program.saves:
            self._hold_residuals(number, call, residuals)

    def finish(self) -> None:
        """The region has run.

        Raises:
            UsageError: calls of the plan are missing.
        """
        super().finish()
        if self.count < len(self.planned):
            raise UsageError(
                f"this plan was made for another model or other inputs: it has {len(self.planned)} calls, of"
                f" which the model has made {self.count}. Make a plan for this one"
            )


def run_region(
    begin: Callable[[], Replay], forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """Run ``forward`` as a region; plainly where there is no tape, or checkpoints are off or around it."""
    state = current()
    outer = state.tape
    if outer is None or not state.checkpointing or outer.retain == "all" or outer.replay is not None:
        return forward(*args, **kwargs)
    with replaying(begin(), outer):
        return forward(*args, **kwargs)

"""What plans for PyTorch's modules have in common, whatever they are over."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch

from memback.errors import MembackError, UsageError
from memback.plans.saved import SavedPlan, check_parameters
from memback.profiling.measuring import Peak
from memback.units import format_bytes

__all__ = ["NoPlanError", "Progress", "TorchPlan", "parameters_of", "peak_as_data"]

Progress = Callable[[str, int, int], None]


class NoPlanError(MembackError):
    """No plan fits the budget; ``minimum_bytes`` is the least for which one was found."""

    def __init__(self, budget: int, leanest: TorchPlan) -> None:
        self.budget = budget
        self.minimum_bytes = leanest.peak_bytes + leanest.reserve_bytes
        peak = leanest.peak
        parts = {name: size for name, size in peak.items() if isinstance(size, int) and size}
        parts |= {"reserve": leanest.reserve_bytes} if leanest.reserve_bytes else {}
        made_of = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items())
        super().__init__(
            f"no plan fits {format_bytes(budget)}: the leanest found needs {format_bytes(self.minimum_bytes)}, which is"
            f" {made_of} (in {peak['phase']}, {peak['op']} of layer {peak['path'] or '(top)'!r}). Raise the budget to"
            " that, name smaller blocks, or make the step smaller (its batch, its model)"
            + (f". {leanest.optimality}" if leanest.optimality else "")
        )


@dataclass(frozen=True, kw_only=True)
class TorchPlan(SavedPlan):
    """What of a module's step is kept for backward, and what is recomputed.

    Attributes:
        name: what reports call it.
        budget: in bytes.
        peak_bytes: of the whole step, above the arguments, exactly.
        reserve_bytes: of the states of random streams beside that; both together are within the budget.
        full_peak_bytes: the peak without a plan.
        saved_bytes: at the end of the forward pass.
        flops: of one forward pass.
        extra_flops: of what is recomputed.
        extra_seconds: for what is recomputed, as predicted; None where nothing tells.
        optimality: what is known of the plan.
        peak: what the peak is made of, in bytes by category, and where it is.
        parameters: the model's parameters and their shapes, which tell whether a model is the one that this is for.
    """

    name: str
    budget: int
    peak_bytes: int
    reserve_bytes: int
    full_peak_bytes: int
    saved_bytes: int
    flops: int
    extra_flops: int
    extra_seconds: float | None
    optimality: str
    peak: Mapping[str, int | str]
    parameters: Mapping[str, tuple[int, ...]]
    _applied: dict[int, ExitStack] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    @abstractmethod
    def reserve_for(self) -> str:
        """What the reserve is for."""

    @abstractmethod
    def running(self, module: torch.nn.Module) -> AbstractContextManager[None]:
        """In the block a module runs this plan."""

    @abstractmethod
    def code(self) -> str:
        """Python that runs a model so with nothing but PyTorch.

        Raises:
            UsageError: the plan is more than such lines can say.
        """

    def apply(self, module: torch.nn.Module) -> Applied:
        """Have a module run this plan: in a ``with`` block, or until :meth:`revert`.

        Gradients have the same bits as without it, parameters and buffers are the same tensors, and its code stays as
        it is.

        Raises:
            UsageError: the plan was made for another model, or the module runs a plan already, or can't be looked into.
        """
        self.check(module)
        if id(module) in self._applied:
            raise UsageError(f"this {type(module).__name__} runs this plan already: revert it first")
        stack = ExitStack()
        stack.enter_context(self.running(module))
        self._applied[id(module)] = stack
        return Applied(self, module)

    def revert(self, module: torch.nn.Module) -> None:
        """Have a module run as it did before :meth:`apply`.

        Raises:
            UsageError: it does not run this plan.
        """
        stack = self._applied.pop(id(module), None)
        if stack is None:
            raise UsageError(f"this {type(module).__name__} does not run this plan, so there is nothing to revert")
        stack.close()

    def check(self, module: torch.nn.Module) -> None:
        """Raise unless a module has the parameters that the plan was made for.

        Raises:
            UsageError: it has not; the message names the first difference.
        """
        check_parameters(self.parameters, parameters_of(module), type(module).__name__)

    @classmethod
    def from_dict(cls, data: Any) -> TorchPlan:
        from memback.bridges.torch.planning.plan_files import from_dict

        return from_dict(data)


class Applied(AbstractContextManager[TorchPlan]):
    """A plan that a module runs, until the block ends."""

    def __init__(self, plan: TorchPlan, module: torch.nn.Module) -> None:
        self._plan, self._module = plan, module
        self._blocks = 0

    def __enter__(self) -> TorchPlan:
        self._blocks += 1
        return self._plan

    def __exit__(self, *_: object) -> None:
        self._blocks -= 1
        if not self._blocks and id(self._module) in self._plan._applied:
            self._plan.revert(self._module)


def parameters_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of a module's parameters, by name."""
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def peak_as_data(peak: Peak) -> dict[str, int | str]:
    """A peak as plans have it: where it is, and its bytes by category."""
    return {"phase": peak.interval.phase, "path": peak.interval.path, "op": peak.interval.op, **peak.parts}

"""``memback.bridges.torch.plan``: the cheapest way to run a PyTorch module's step within a budget of bytes.

What a budget counts is what a peak counts: all storages above the arguments. A plan's peak is that of a dry run of the
planned step, on tensors without memory: exactly the peak that the same step has where it runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from memback.bridges.torch.device.cards import Card, card
from memback.bridges.torch.device.exchange import place_on
from memback.bridges.torch.device.speeds import rates
from memback.bridges.torch.planning.base import NoPlanError, Progress, TorchPlan
from memback.bridges.torch.planning.block_plan import BlockPlan
from memback.bridges.torch.planning.blocks import BlockPlanning
from memback.bridges.torch.planning.call_plan import CallPlan, CallPlanning
from memback.bridges.torch.planning.recorded import Speed
from memback.bridges.torch.recording.step import Loss, Step, sum_of_outputs
from memback.errors import UsageError
from memback.plans.budget import Budget
from memback.plans.model.planning import FrontierPoint
from memback.profiling.mode import Mode

__all__ = [
    "BlockPlan",
    "CallPlan",
    "NoPlanError",
    "TorchPlan",
    "Verdict",
    "frontier",
    "plan",
    "planned_by",
    "planning_of",
    "verify",
]


def plan(
    module: torch.nn.Module,
    *inputs: Any,
    budget: str | int,
    loss: Loss = sum_of_outputs,
    kwargs: Mapping[str, Any] | None = None,
    how: str | None = None,
    blocks: Sequence[str] | None = None,
    timed: bool = False,
    autocast: torch.dtype | None = None,
    device: str | None = None,
    optimizer: Any = None,
    progress: Progress = lambda what, done, total: None,
) -> TorchPlan:
    """The cheapest plan whose peak is within a budget. Nothing is run or allocated, unless stages are to be timed.

    Args:
        module: any module; of those that are compiled, the one that was.
        inputs: what it is called with: tensors (fake ones, and those of the device ``meta``, too), and anything else.
        budget: the largest peak above the arguments, in bytes, as ``"2GiB"``, or as ``"75%"`` of the full peak.
        loss: gives the loss, a tensor of one number, from what the module gives; by default the sum of its numbers.
        kwargs: what it is called with by name.
        how: ``"calls"``: each tensor that autograd saves is kept, or recomputed from the recorded aten calls; or
            ``"checkpoint"``: whole blocks are run again under ``torch.utils.checkpoint``. By default the former, unless
            ``blocks`` or ``timed`` ask for the latter.
        blocks: patterns of the paths of submodules that may be run again, as in a shell: ``["encoder.layer.*"]``. By
            default the calls within the module that lead to its ``Sequential`` and ``ModuleList`` members, and those.
        timed: whether to run blocks for real and to find the plan that takes the least time, instead of FLOPs.
        autocast: the dtype of automatic mixed precision in the forward pass.
        device: a card that need not be there, as in :func:`memback.bridges.torch.profile`: the step is planned as CUDA
            would run it there, and the seconds of what is recomputed are predicted for it.
        optimizer: of the training step. Its update comes after backward, so no plan changes what it takes.
        progress: called with (what is done now, steps done, steps in all).

    Raises:
        NoPlanError: nothing fits; it says what would, and what memory is made of there.
        UsageError: a malformed budget; there are no blocks; the module is compiled; ``how`` is unknown.
        MembackError: the step takes decisions on values, or has ops of which a dry run does not know what they take.
    """
    wanted = Budget.read(budget)
    step = Step.of(module, inputs, kwargs, loss, autocast)
    planning = planning_of(step, how, blocks, timed, device, progress)
    return planning.plan(wanted.bytes(planning.full_peak_bytes))


def frontier(
    module: torch.nn.Module,
    *inputs: Any,
    loss: Loss = sum_of_outputs,
    kwargs: Mapping[str, Any] | None = None,
    how: str | None = None,
    blocks: Sequence[str] | None = None,
    autocast: torch.dtype | None = None,
    device: str | None = None,
    progress: Progress = lambda what, done, total: None,
) -> list[FrontierPoint]:
    """What less memory costs: (budget in bytes, FLOPs that are recomputed), each point of a plan.

    Args and errors are those of :func:`plan`.
    """
    step = Step.of(module, inputs, kwargs, loss, autocast)
    return planning_of(step, how, blocks, False, device, progress).frontier()


HOW = ("calls", "checkpoint")
"""What plans are over, and so how they are carried out."""


def planning_of(
    step: Step,
    how: str | None = None,
    blocks: Sequence[str] | None = None,
    timed: bool = False,
    device: str | None = None,
    progress: Progress = lambda what, done, total: None,
) -> CallPlanning | BlockPlanning:
    """What makes plans for a step; the arguments are those of :func:`plan`.

    Raises:
        UsageError: ``how`` is unknown, or contradicts the others; and whatever making it raises.
    """
    how = how or ("checkpoint" if blocks or timed else "calls")
    if how not in HOW:
        raise UsageError(f"how={how!r} is unknown: plans are over {' or '.join(HOW)}")
    if how == "calls" and (blocks or timed):
        raise UsageError('blocks and timed are for how="checkpoint": a plan over calls knows no blocks')
    speed = None
    if device is not None:
        on = card(device)
        step = replace(step, place=place_on(on))
        speed = speed_of(on, step)
    if how == "checkpoint":
        return BlockPlanning(step, blocks, timed, progress)
    return CallPlanning(step, speed, progress)


def speed_of(on: Card, step: Step) -> Speed:
    """How fast a card is at a step: products are in half precision where parameters or autocast are."""
    known = rates(on)
    half = step.autocast is not None or any(
        p.dtype in (torch.bfloat16, torch.float16) for p in step.module.parameters()
    )
    return Speed(known.half if half else known.single, known.bytes)


def planned_by(step: Step, policy: str | TorchPlan) -> TorchPlan:
    """The plan that a policy's name stands for; a plan is one already.

    Raises:
        UsageError: there is no such policy, or the step has no blocks.
    """
    return policy if isinstance(policy, TorchPlan) else BlockPlanning(step).by_policy(policy)


# -- is it true


@dataclass(frozen=True)
class Verdict:
    """What a run showed of a plan.

    Attributes:
        predicted_peak_bytes: what the plan says.
        measured_peak_bytes: of the storages of the planned step, for real.
        allocator_peak_bytes: what PyTorch's allocator gave out at most in it, scratch memory of kernels included, which
            is in no storage; None where it does not tell.
        full_peak_bytes: measured of the step without the plan.
        same_gradients: whether the gradients of all parameters have the same bits with and without it.
    """

    predicted_peak_bytes: int
    measured_peak_bytes: int
    allocator_peak_bytes: int | None
    full_peak_bytes: int
    same_gradients: bool


def verify(
    plan: TorchPlan,
    module: torch.nn.Module,
    *inputs: Any,
    loss: Loss = sum_of_outputs,
    kwargs: Mapping[str, Any] | None = None,
    autocast: torch.dtype | None = None,
) -> Verdict:
    """Run a module's step for real with a plan and without it, and compare."""
    step = Step.of(module, inputs, kwargs, loss, autocast)
    with step.unchanged():
        step.run(Mode("full"))  # a first step makes what later ones find
    full = step.account(Mode("full"))
    with plan.apply(module):
        planned, allocated = step.account(Mode("full")), step.allocated(Mode("full"))
        measured = planned.tracker.peak.bytes
        if planned.tracker.left:  # what adds up from step to step shows in a second one
            measured = max(measured, step.account(Mode("full")).tracker.peak.bytes)
    return Verdict(
        predicted_peak_bytes=plan.peak_bytes,
        measured_peak_bytes=measured,
        allocator_peak_bytes=None if allocated is None else allocated.peak_bytes,
        full_peak_bytes=full.tracker.peak.bytes,
        same_gradients=full.gradient_sha256 == planned.gradient_sha256,
    )

"""Plans in ``memback torch``: its options for them, and how one is shown."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, cast

import rich_click as click

from memback.commands.inputs import plan_options, progress_bar
from memback.commands.options import Output
from memback.commands.plans import BESIDE_PICTURE, plan_data, show_plan
from memback.errors import UsageError

if TYPE_CHECKING:
    from memback.bridges.torch.planning.base import TorchPlan
    from memback.bridges.torch.planning.call_plan import CallPlanning
    from memback.bridges.torch.recording.step import Step
    from memback.plans.model.planning import FrontierPoint

__all__ = ["Again", "again_options"]


@dataclass(frozen=True)
class Again:
    """What to recompute in backward, and how to show it."""

    policy: str | None
    budget: str | None
    plan_file: str | None
    blocks: tuple[str, ...]
    timed: bool
    curve: bool
    save: str | None
    code: bool
    how: str | None

    @property
    def asked(self) -> bool:
        """Whether anything is asked for."""
        return any(getattr(self, field.name) for field in fields(self))

    @property
    def instead(self) -> bool:
        """Whether a plan is shown in place of a report."""
        return self.curve or self.code

    @property
    def over_blocks(self) -> bool:
        """Whether it is about whole blocks."""
        return bool(self.policy is not None or self.blocks or self.timed or self.how == "checkpoint")

    def check(self, output: Output, dry: bool) -> None:
        """Refuse contradictory options before anything is run.

        Raises:
            UsageError: the message says what does.
        """
        if self.save is not None:
            if self.budget is None:
                raise UsageError("--save needs --budget: only its plan can be saved")
            output.check(self.save)
        if self.code and self.policy is None and self.budget is None and self.plan_file is None:
            raise UsageError("--code needs a plan: give --budget BYTES, --policy NAME or --plan FILE")
        if self.curve and (self.policy is not None or self.plan_file is not None):
            raise UsageError("--frontier shows all plans: leave out --policy and --plan")
        if self.timed and self.budget is None:
            raise UsageError("--time needs --budget: it chooses that plan by measured time")
        if self.timed and dry:
            raise UsageError("--time runs blocks for real and --dry runs nothing: leave out one of them")
        if self.blocks and self.budget is None and self.policy is None and not self.curve:
            raise UsageError("--blocks needs something to plan: give --budget BYTES, --policy NAME or --frontier")
        if self.how is not None and self.budget is None and not self.curve:
            raise UsageError("--how needs something to plan: give --budget BYTES or --frontier")
        if self.how == "calls" and (self.blocks or self.timed):
            raise UsageError("--how calls knows no blocks: leave out --blocks and --time, or give --how checkpoint")

    def plan(self, step: Step, output: Output, card: str | None = None) -> TorchPlan | None:
        """The plan that is asked for, if any, after what is to be shown of it has been shown, and saved.

        It is for a ``card``, where one is named.

        Raises:
            NoPlanError: nothing fits the budget.
            UsageError: the module has no blocks, the file is no plan for it, or the budget no size.
        """
        from memback.bridges.torch.planning.blocks import BlockPlanning
        from memback.bridges.torch.planning.plan import TorchPlan, planning_of
        from memback.plans.budget import Budget

        if self.plan_file is not None:
            loaded = TorchPlan.load(self.plan_file)
            loaded.check(step.module)
            return self._shown(loaded, None, output)
        if self.policy is None and self.budget is None and not self.curve:
            return None
        wanted = None if self.budget is None else Budget.read(self.budget)
        with progress_bar(output) as progress:
            planning: BlockPlanning | CallPlanning
            plan: TorchPlan | None = None
            if self.policy is not None:
                planning = BlockPlanning(step, self.blocks or None, self.timed, progress)
                plan = planning.by_policy(self.policy)
            else:
                planning = planning_of(step, self.how, self.blocks or None, self.timed, card, progress)
            plan = planning.plan(wanted.bytes(planning.full_peak_bytes)) if wanted is not None else plan
            points = planning.frontier() if self.curve else None
            everything = planning.unplanned()
        plan = self._shown(plan, points, output, everything)
        if plan is not None and self.save is not None:
            plan.save(self.save, output.force)
            output.say_written(self.save, "Saved")
        return plan

    def _shown(
        self,
        plan: TorchPlan | None,
        points: list[FrontierPoint] | None,
        output: Output,
        everything: TorchPlan | None = None,
    ) -> TorchPlan | None:
        from memback.reports import plan as tables
        from memback.reports import text

        if plan is not None and self.code:
            if not output.to_stdout:
                click.echo(plan.code(), nl=False)
        elif plan is not None and (self.budget is not None or self.curve):
            _show(plan, output)
        if points is not None and everything is not None:
            full = everything.peak_bytes
            output.console.print(text.table(tables.frontier(points, everything.flops, full)))
        if self.instead:
            full_peak = None if everything is None else everything.peak_bytes
            shown = {} if plan is None else {"plan": plan.to_dict(), "code": plan.code() if self.code else None}
            output.write_json(plan_data(full_peak, points, **shown))
        return plan


def _show(plan: TorchPlan, output: Output) -> None:
    from memback.bridges.torch.planning.plan import BlockPlan
    from memback.reports import plan as tables
    from memback.reports import torch_plan
    from memback.units import format_seconds

    said = tables.sentences(plan, plan.full_peak_bytes)
    if plan.extra_seconds is not None:
        said.append(f"Predicted time: {format_seconds(plan.extra_seconds)} more a step.")
    picture: list[str] = []
    if isinstance(plan, BlockPlan):
        rows = torch_plan.blocks(plan)
        picture = list(torch_plan.picture(plan, output.console.width - BESIDE_PICTURE)) if plan.runs else []
    else:
        rows = torch_plan.recomputed(cast(Any, plan))
    show_plan(output, plan.name, said, (tables.memory(plan), rows), picture)
    output.console.print()


def again_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a subcommand the options for recomputation: it gets them as ``again``, an :class:`Again`."""

    @plan_options
    @click.option("--blocks", multiple=True, metavar="PATTERN", help="Plan these submodules, as in encoder.layer.*")
    @click.option(
        "--how",
        type=click.Choice(["calls", "checkpoint"]),
        help="Plan over calls (each saved tensor is kept or recomputed), or over blocks under torch.utils.checkpoint."
        " Default: calls, or checkpoint with --blocks or --time.",
    )
    @click.option("--time", "timed", is_flag=True, help="Time the blocks by running them, and plan for the least time.")
    @click.option("--frontier", "curve", is_flag=True, help="Show the frontier instead: peak against recomputation.")
    @click.option("--save", metavar="FILE", help="Write the plan for --budget as JSON, for --plan and for Python.")
    @click.option("--code", is_flag=True, help="Print the plan as Python that needs PyTorch alone instead.")
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        again = Again(**{name: kwargs.pop(name) for name in Again.__dataclass_fields__})
        return function(*args, again=again, **kwargs)

    return wrapper

"""``memback plan``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rich_click as click

from memback.commands.inputs import profile_argument
from memback.commands.options import Output, output_options
from memback.commands.plans import BESIDE_PICTURE, plan_data, show_plan
from memback.errors import UsageError

if TYPE_CHECKING:
    from memback.plans.model.planning import FrontierPoint, ModelPlan, Planning
    from memback.profiling.definition import Profile

__all__ = ["command"]


@click.command("plan", epilog="Example: memback plan deep-mlp --budget 64MiB")
@profile_argument
@click.option("--budget", metavar="BYTES", help="The largest peak above the arguments: 512MiB, 1.5GB, 75%.")
@click.option("--planner", default="auto", show_default=True, metavar="NAME", help="`memback list` shows them.")
@click.option("--frontier", "curve", is_flag=True, help="Show the whole frontier: peak against recomputation.")
@click.option("--time", "timed", is_flag=True, help="Also run the step for real, and predict the plan's extra seconds.")
@click.option("--save", metavar="FILE", help="Write the plan as JSON, for train --plan and for mb.plans.")
@output_options
def command(
    profile: Profile,
    budget: str | None,
    planner: str,
    curve: bool,
    timed: bool,
    save: str | None,
    output: Output,
) -> None:
    """Find the cheapest way to run a training step of PROFILE within a budget of memory.

    Nothing is allocated: stages, sizes and the plan's own peak come from dry runs. The budget is for everything above
    the arguments: saved and recomputed activations, gradients, workspace. 75% is relative to the peak without a plan.
    """
    from memback.plans.budget import Budget
    from memback.plans.model.planning import Planning
    from memback.profiling.mode import Mode
    from memback.profiling.workload import Workload

    if budget is None and not curve:
        raise UsageError(
            "memback plan needs --budget BYTES (such as --budget 64MiB), or --frontier for the whole curve"
        )
    if save is not None:
        if budget is None:
            raise UsageError("--save needs --budget: a frontier is no plan")
        output.check(save)
    if timed and profile.dry:
        raise UsageError(f"profile {profile.name} is too large to run; it can only be predicted: leave out --time")
    wanted = None if budget is None else Budget.read(budget)
    work = Workload.build(profile, dry=True)
    step = work.predicted_step()
    planning = Planning(step)
    full = step.predict(Mode("full")).peak.bytes
    plan = None if wanted is None else planning.plan(wanted.bytes(lambda: full), planner)
    points = planning.frontier() if curve else None
    seconds = _seconds(profile, plan) if timed and plan is not None else None
    _show(profile, planner, plan, points, planning, full, seconds, output)
    if plan is not None and save is not None:
        plan.save(save, output.force)
        output.say_written(save, "Saved")
    data = plan_data(full, points, plan=plan and plan.to_dict())
    if seconds is not None:
        data["seconds"] = {"predicted_extra": seconds[0], "step": seconds[1]}
    output.write_json(data)


def _seconds(profile: Profile, plan: ModelPlan) -> tuple[float, float]:
    """Predicted seconds of the plan's recomputation, and measured seconds of a step without it, as train runs it."""
    from memback.engine.allocator import keep_freed_memory
    from memback.plans.model.timing import measure
    from memback.profiling.step import Step
    from memback.profiling.workload import Workload

    work = Workload.build(profile)
    keep_freed_memory()
    timing = measure(Step(work.step(), work.model, work.optimizer), plan)
    return timing.extra(plan), timing.step


def _show(
    profile: Profile,
    planner: str,
    plan: ModelPlan | None,
    points: list[FrontierPoint] | None,
    planning: Planning,
    full: int,
    seconds: tuple[float, float] | None,
    output: Output,
) -> None:
    from memback.reports import plan as tables
    from memback.reports import text

    if plan is not None:
        picture = list(tables.picture(plan, output.console.width - BESIDE_PICTURE)) if plan.extra_flops else []
        title = f"{profile.name}: a plan by {planner}"
        shown = (tables.memory(plan), tables.parts(plan))
        show_plan(output, title, tables.sentences(plan, full, seconds), shown, picture)
    if points is not None:
        if plan is not None:
            output.console.print()
        output.console.print(text.table(tables.frontier(points, planning.staged.flops, full)))

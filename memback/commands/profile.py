"""``memback profile``."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import rich_click as click
from msgspec.structs import replace

from memback.commands.inputs import plan_options, planning_of, profile_argument, progress_bar, recomputation
from memback.commands.options import Output, report_options, shown
from memback.errors import UsageError

if TYPE_CHECKING:
    from memback.plans.model.planning import ModelPlan, Planning
    from memback.profiling.definition import Profile
    from memback.profiling.report import FrontierPoint, Report

__all__ = ["command"]


@click.command("profile", epilog="Example: memback profile digits --policy sqrt")
@profile_argument
@click.option(
    "--mode",
    "modes",
    multiple=True,
    metavar="MODE",
    help="retain-all, full, checkpoint or inference; give it again for several. Default: all four.",
)
@plan_options
@click.option("--frontier", "curve", is_flag=True, help="Add the frontier of plans: peak against recomputation.")
@click.option("--dry", is_flag=True, help="Predict only: nothing is allocated or run.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Timed runs of each mode.")
@report_options
def command(
    profile: Profile,
    modes: tuple[str, ...],
    policy: str | None,
    budget: str | None,
    plan_file: str | None,
    curve: bool,
    dry: bool,
    rounds: int,
    output: Output,
) -> Report:
    """Run one training step of PROFILE in every mode, and show what each one keeps in memory.

    PROFILE is the name of a shipped profile (`memback list`) or the path of a TOML file. A mode whose predicted
    peak does not fit into the free memory is refused before anything is run, unless --force. Mode checkpoint
    recomputes what --policy, --budget or --plan say, by default the profile's own policy. With --frontier
    the report also has the cheapest plans for all budgets. The suffix of FILE is the report's format: .html .json
    .md .csv .txt .svg .png .trace.json .speedscope.json.
    """
    from memback.profiling.precision import PrecisionWarning

    planning = planning_of(profile) if curve else None
    again = recomputation(profile, policy, budget, plan_file, planning)
    with shown(PrecisionWarning, output):
        report = _report(profile, modes, again, dry or profile.dry, rounds, output)
    return report if planning is None else replace(report, frontier=_frontier(planning))


def _frontier(planning: Planning) -> tuple[FrontierPoint, ...]:
    from memback.plans.model.planning import RESERVE
    from memback.profiling.report import FrontierPoint

    return tuple(FrontierPoint(point.budget - RESERVE, point.extra_flops) for point in planning.frontier())


def _report(
    profile: Profile,
    modes: tuple[str, ...],
    policy: str | ModelPlan | None,
    dry: bool,
    rounds: int,
    output: Output,
) -> Report:
    from memback.dry.mode import dry_run
    from memback.profiling.guard import check_fits
    from memback.profiling.mode import MODES
    from memback.profiling.run import modes_of
    from memback.profiling.run import profile as run
    from memback.profiling.step import Step
    from memback.profiling.workload import Workload

    wanted = modes or MODES
    if policy is not None and "checkpoint" not in wanted:
        raise UsageError("a policy, a budget or a plan belongs to mode checkpoint: add --mode checkpoint")
    if "checkpoint" in wanted:
        policy = policy or profile.checkpoint.policy
    chosen = modes_of(wanted, policy)
    work = Workload.build(profile, dry=True)
    if not dry:
        if not output.force:
            copies = work.state_bytes  # from which every run starts
            check_fits(Step(work.step(), work.model, work.optimizer), chosen, work.argument_bytes + copies)
        work = Workload.build(profile)
    with progress_bar(output) as progress, dry_run() if dry else nullcontext():
        return run(
            work.model,
            step=work.step(),
            modes=wanted,
            policy=policy,
            optimizer=work.optimizer,
            rounds=rounds,
            about=work.about(),
            progress=progress,
        )

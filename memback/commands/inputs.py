"""Options that subcommands with a profile share: the profile, changes to it, and a progress bar."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import rich_click as click

from memback.commands.console import make_console, plain
from memback.commands.options import Output
from memback.errors import UsageError, shorten

if TYPE_CHECKING:
    from memback.plans.model.planning import ModelPlan, Planning
    from memback.profiling.definition import Profile

__all__ = ["plan_options", "planning_of", "profile_argument", "progress_bar", "recomputation"]


def profile_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a subcommand PROFILE, ``--batch``, ``--dtype`` and ``--set``: it gets the definition as ``profile``."""

    @click.argument("profile", metavar="PROFILE")
    @click.option("--batch", metavar="N", help="Samples of a batch (data.batch).")
    @click.option("--dtype", metavar="DTYPE", help="float32, float64, float16 or bfloat16.")
    @click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a key, as in model.width=128.")
    @functools.wraps(function)
    def wrapper(
        *args: Any, profile: str, batch: str | None, dtype: str | None, settings: tuple[str, ...], **kwargs: Any
    ) -> Any:
        from memback.profiling import definition

        overrides = dict(_split(setting) for setting in settings)
        if batch is not None:
            overrides["data.batch"] = batch
        if dtype is not None:
            overrides["dtype"] = dtype
        loaded = definition.load(profile)
        return function(*args, profile=loaded.with_overrides(overrides) if overrides else loaded, **kwargs)

    return wrapper


def plan_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a subcommand ``--policy``, ``--budget`` and ``--plan``: three ways to say what is recomputed."""

    @click.option("--policy", metavar="POLICY", help="What to recompute in backward: sqrt, every:4, selective, ...")
    @click.option("--budget", metavar="BYTES", help="Plan recomputation so that the peak fits: 512MiB, 1.5GB, 75%.")
    @click.option(
        "--plan", "plan_file", metavar="FILE", help="Follow the plan in a file that memback plan --save wrote."
    )
    @functools.wraps(function)
    def wrapper(*args: Any, policy: str | None, budget: str | None, plan_file: str | None, **kwargs: Any) -> Any:
        given = {"--policy": policy, "--budget": budget, "--plan": plan_file}
        names = [name for name, value in given.items() if value is not None]
        if len(names) > 1:
            raise UsageError(f"{' and '.join(names)} contradict each other: give one of them")
        return function(*args, policy=policy, budget=budget, plan_file=plan_file, **kwargs)

    return wrapper


def planning_of(profile: Profile) -> Planning:
    """The profile's step, measured by dry runs, so that plans can be made for it."""
    from memback.plans.model.planning import Planning
    from memback.profiling.workload import Workload

    return Planning(Workload.build(profile, dry=True).predicted_step())


def recomputation(
    profile: Profile,
    policy: str | None,
    budget: str | None,
    plan_file: str | None,
    planning: Planning | None = None,
) -> str | ModelPlan | None:
    """The policy, or the plan in its place, that :func:`plan_options` was given; a budget is planned for by dry runs.

    ``planning`` is that of the profile, where it has been made already.

    Raises:
        NoPlanError: nothing fits the budget.
        UsageError: the file is no plan, or the budget no size.
    """
    if plan_file is not None:
        from memback.plans.model.planning import ModelPlan

        return ModelPlan.load(plan_file)
    if budget is None:
        return policy
    from memback.plans.budget import Budget

    wanted = Budget.read(budget)
    planning = planning or planning_of(profile)
    return planning.plan(wanted.bytes(planning.full_peak_bytes))


def _split(setting: str) -> tuple[str, str]:
    key, equals, value = setting.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {shorten(repr(setting))} is no KEY=VALUE; write it as --set model.width=128")
    return key.strip(), value.strip()


@contextmanager
def progress_bar(output: Output, counted: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for work that takes longer than a second; the block calls it with (what is done now, done, in all).

    Where things are ``counted`` it shows how many are done, how many a second, and the time that is left.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = make_console(quiet=output.quiet, stderr=True)
    columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), BarColumn()]
    if counted:
        columns += [MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), TextColumn("left,")]
    columns += [TimeElapsedColumn()]
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal or output.quiet)
    task = bar.add_task("", total=None, rate="")
    began = time.monotonic()

    def tell(what: str, done: int, total: int) -> None:
        bar.update(task, description=plain(what).plain, completed=done, total=total)
        if counted and (speed := bar.tasks[0].speed):
            bar.update(task, rate=f"{speed:.1f}/s")
        if time.monotonic() - began > 1 and not bar.live.is_started:
            bar.start()

    try:
        yield tell
    finally:
        bar.stop()

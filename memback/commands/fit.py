"""``memback fit``."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import rich_click as click

from memback.commands.console import plain
from memback.commands.inputs import profile_argument, progress_bar
from memback.commands.options import Output, output_options
from memback.errors import UsageError
from memback.units import format_bytes, format_bytes_short, format_flops

if TYPE_CHECKING:
    from memback.fitting.fit import Option, Setup, Trials
    from memback.fitting.largest import Largest
    from memback.profiling.definition import Profile

__all__ = ["command"]

_SCHEMA = "memback.fit/1"
_RESULTS = {
    "rounding": "equal in exact arithmetic; sums are taken in another order.",
    "other masks": "each micro-batch draws its own dropout masks.",
    "batch norm": "each micro-batch is normalised by its own statistics, so results differ.",
}


@click.command("fit", epilog="Example: memback fit source-gpt --budget 24MiB")
@profile_argument
@click.option(
    "--budget", required=True, metavar="BYTES", help="The largest peak above the arguments: 512MiB, 1.5GB, 75%."
)
@click.option("--find", type=click.Choice(["batch", "depth", "sequence"]), help="Find the largest one that fits.")
@click.option("--policy", metavar="POLICY", help="Use this checkpoint policy throughout.")
@click.option("--plan", "planned", is_flag=True, help="With --find: make a checkpoint plan for every size.")
@click.option("--micro-batches", type=click.IntRange(1), default=1, metavar="K", help="Use K micro-batches throughout.")
@click.option("--offload", is_flag=True, help="Keep saved activations on disk throughout.")
@output_options
def command(
    profile: Profile,
    budget: str,
    find: str | None,
    policy: str | None,
    planned: bool,
    micro_batches: int,
    offload: bool,
    output: Output,
) -> None:
    """Find what to change so that a training step of PROFILE fits into a budget of memory, the fastest first.

    Tried by dry runs, alone and combined: checkpoint policies and plans, micro-batches, saved activations on disk,
    attention in another form, smaller dropout masks, a narrower dtype. Nothing is trained. A budget of 75% is relative
    to the peak of full retention of PROFILE unchanged.
    """
    from memback.fitting.fit import DoesNotFitError, Setup, Trials, fit, measure_machine
    from memback.fitting.largest import find_largest
    from memback.plans.budget import Budget

    asked = Budget.read(budget)
    if planned and (find is None or policy is not None or micro_batches > 1 or offload):
        raise UsageError("--plan belongs to --find, without --policy, --micro-batches and --offload")
    given = _given()
    with progress_bar(output) as progress:
        trials = Trials(profile, measure_machine(profile.dtype), lambda what: progress(what, 0, 0))
        wanted = asked.bytes(trials.full_peak_bytes)
        setup = Setup(policy=policy, budget=wanted if planned else None, micro_batches=micro_batches, offload=offload)
        _check(trials, setup)
        if find is not None:
            largest = find_largest(trials, find, wanted, setup)
        else:
            try:
                options = fit(trials, wanted, setup)
            except DoesNotFitError as error:
                output.write_json(_data(trials, setup, wanted, given, [], error.leanest))
                raise
    if find is not None:
        _show_largest(trials, largest, wanted, given, output)
        output.write_json(_largest_data(trials, largest, wanted, given))
        return
    _show(trials, options, setup, wanted, given, output)
    output.write_json(_data(trials, setup, wanted, given, options, None))


def _check(trials: Trials, setup: Setup) -> None:
    """Refuse a policy that there is not, or so many micro-batches, with the reason rather than "nothing fits"."""
    from memback.nn.policy import Policy, applied

    work = trials.work(setup)
    if setup.policy is not None:
        with applied(work.model, Policy.parse(setup.policy)):
            pass
    if setup.micro_batches > work.profile.data.batch:
        raise UsageError(
            f"--micro-batches {setup.micro_batches}: the batch has {work.profile.data.batch} samples, at most one each"
        )


def _given() -> list[str]:
    """PROFILE and its changes as they were typed."""
    typed = click.get_current_context().params  # type: ignore[union-attr]
    words = [typed["profile"]]
    for name in ("batch", "dtype"):
        if typed[name] is not None:
            words += [f"--{name}", typed[name]]
    for setting in typed["settings"]:
        words += ["--set", setting]
    return words


def _command(trials: Trials, option: Option, budget: int, given: list[str]) -> str:
    """The command for an option; for a profile that can't be run, the one that shows it."""
    setup = option.setup
    flags = setup.flags()
    if not trials.profile.dry:
        words = ["memback", "train", *given, *flags]
    elif setup.budget is not None:
        words = ["memback", "plan", *given, *flags]
    else:
        words = ["memback", "fit", *given, *flags, "--budget", str(budget)]
    return shlex.join(words)


def _show(trials: Trials, options: list[Option], setup: Setup, budget: int, given: list[str], output: Output) -> None:
    now = trials.option(setup)
    assert now is not None
    name = trials.profile.name
    if now is options[0]:
        output.say(
            f"{name} fits as it is ({setup.describe()}): its peak is {format_bytes(now.peak_bytes)}, the budget"
            f" {format_bytes(budget)}."
        )
        return
    output.say(plain(name, "bold"), f": what fits {format_bytes(budget)}, the fastest first")
    output.say(f"Now the peak is {format_bytes(now.peak_bytes)} ({setup.describe()}).")
    output.console.print(_table(trials, options))
    for line in _notes(trials, options):
        output.say(line, style="dim")
    output.say()
    for number, option in enumerate(options, 1):
        output.say(f"{number}  {_command(trials, option, budget, given)}", wrap=False)


def _table(trials: Trials, options: list[Option]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", style="bold")
    table.add_column("change", style="cyan", overflow="fold")
    table.add_column("peak bytes", justify="right", no_wrap=True)
    table.add_column("MiB", justify="right", no_wrap=True)
    table.add_column("time lost", justify="right", no_wrap=True)
    table.add_column("results")
    for number, option in enumerate(options, 1):
        lost = "unknown" if option.seconds is None else f"{100 * option.seconds / trials.step_seconds:.1f} %"
        mebibytes = f"{option.peak_bytes / 2**20:,.2f}"
        table.add_row(
            str(number), plain(option.setup.in_words()), f"{option.peak_bytes:,}", mebibytes, lost, option.results
        )
    return table


def _notes(trials: Trials, options: list[Option]) -> list[str]:
    machine = trials.machine
    notes = [
        f"Time lost: predicted, for a step of {format_flops(trials.flops)} (three forward passes); recomputed FLOPs"
        f" count at the rate of matrix products here ({format_flops(round(machine.flops_per_second))}/s)."
    ]
    disk = next((option.disk_bytes for option in options if option.setup.offload), None)
    if disk is not None:
        written, read = map(format_bytes_short, disk)
        rates = map(round, (machine.write_bytes_per_second, machine.read_bytes_per_second))
        write_rate, read_rate = map(format_bytes_short, rates)
        notes.append(
            f"Offloaded: {written} written and {read} read a step at most, in {machine.folder}; measured now:"
            f" {write_rate}/s written, {read_rate}/s read (from the page cache). A real step is slower than its"
            " products alone, so the disk's share is at most the one shown."
        )
    notes += dict.fromkeys(f"{note[0].upper()}{note[1:]}." for option in options for note in option.notes)
    shown = {option.results for option in options}
    notes += [f"Results, {results}: {text}" for results, text in _RESULTS.items() if results in shown]
    return notes


def _show_largest(trials: Trials, found: Largest, budget: int, given: list[str], output: Output) -> None:
    option = found.option
    output.say(
        plain(trials.profile.name, "bold"),
        f": the largest {found.dimension} that fits {format_bytes(budget)} is ",
        plain(f"{found.size:,}", "bold"),
        f" (it is {found.now:,} now)",
    )
    output.say(f"Its peak is {format_bytes(option.peak_bytes)}: {option.made_of()}.")
    if found.next_peak_bytes is not None:
        output.say(f"{found.next_size:,} would need {format_bytes(found.next_peak_bytes)}.")
    elif found.next_size is not None:
        why = "is not possible" if option.setup.budget is None else "has no plan that fits"
        output.say(f"{found.next_size:,} {why}.")
    elif found.limit:
        output.say(f"More would fit, but {found.limit}.")
    output.say()
    output.say(_command(trials, option, budget, given), wrap=False)


def _largest_data(trials: Trials, found: Largest, budget: int, given: list[str]) -> dict[str, Any]:
    option = found.option.to_dict(trials.step_seconds, _command(trials, found.option, budget, given))
    return {
        "schema": _SCHEMA,
        "profile": trials.profile.name,
        "budget_bytes": budget,
        "find": found.dimension,
        "now": found.now,
        "size": found.size,
        "option": option,
        "next_size": found.next_size,
        "next_peak_bytes": found.next_peak_bytes,
    }


def _data(
    trials: Trials, setup: Setup, budget: int, given: list[str], options: list[Option], leanest: Option | None
) -> dict[str, Any]:
    def plain(option: Option | None) -> dict[str, Any] | None:
        if option is None:
            return None
        return option.to_dict(trials.step_seconds, _command(trials, option, budget, given))

    return {
        "schema": _SCHEMA,
        "profile": trials.profile.name,
        "budget_bytes": budget,
        "fits": bool(options),
        "now": plain(trials.option(setup)),
        "options": [plain(option) for option in options],
        "leanest": plain(leanest),
        "step_flops": trials.flops,
        "machine": asdict(trials.machine),
    }

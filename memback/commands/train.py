"""``memback train``."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import rich_click as click

from memback.commands.inputs import plan_options, profile_argument, recomputation
from memback.commands.options import Output, output_options, shown
from memback.units import format_bytes_short

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from memback.plans.model.planning import ModelPlan
    from memback.profiling.definition import Profile
    from memback.profiling.training import StepResult, Training

__all__ = ["command"]

_REFRESH_SECONDS = 0.2

_COLOURS = {
    "parameters": "cyan",
    "optimiser state": "magenta",
    "gradients": "yellow",
    "saved activations": "blue",
}
"""A colour for each kind of memory of the live display."""


@click.command("train", epilog="Example: memback train digits --steps 200")
@profile_argument
@click.option("--steps", type=click.IntRange(1), metavar="N", help="Train up to step N. Default: the profile's own.")
@plan_options
@click.option(
    "--micro-batches",
    type=click.IntRange(1),
    default=1,
    metavar="K",
    help="Run a batch in K parts; their gradients add up to the batch's, up to rounding.",
)
@click.option("--offload", is_flag=True, help="Keep saved activations in a file in TMPDIR instead of in memory.")
@click.option("--save", "save", metavar="FILE", help="Write everything to resume from, at the end and on Ctrl-C.")
@click.option("--save-every", type=click.IntRange(1), metavar="N", help="Also write --save FILE every N steps.")
@click.option("--resume", metavar="FILE", help="Resume from a file that --save wrote; results are bit-identical.")
@output_options
def command(
    profile: Profile,
    steps: int | None,
    policy: str | None,
    budget: str | None,
    plan_file: str | None,
    micro_batches: int,
    offload: bool,
    save: str | None,
    save_every: int | None,
    resume: str | None,
    output: Output,
) -> None:
    """Train PROFILE for real, and show loss, accuracy, throughput and live memory.

    PROFILE is the name of a shipped profile (`memback list`) or the path of a TOML file. A policy, a budget and
    --offload change memory and time; results are bit-identical. A step that does not fit into the free memory is
    refused, unless --force.
    """
    from memback.engine.allocator import keep_freed_memory
    from memback.errors import UsageError
    from memback.files import check_target
    from memback.profiling.precision import PrecisionWarning
    from memback.profiling.training import Training
    from memback.profiling.workload import Workload

    if profile.dry:
        raise UsageError(f"profile {profile.name} is too large to run; it can only be predicted: memback profile")
    if save_every is not None and save is None:
        raise UsageError("--save-every needs --save FILE, where to write")
    if save is not None:
        check_target(save, overwrite=output.force or save == resume)
    if micro_batches > 1 and (budget is not None or plan_file is not None):
        raise UsageError("a plan is made for whole batches: leave out --micro-batches, or give a --policy instead")
    again = recomputation(profile, policy, budget, plan_file)
    if not output.force:
        _check_fits(profile, again, micro_batches, offload)
    training = Training(Workload.build(profile), again, micro_batches, offload)
    if resume is not None:
        training.resume(resume)
    until = profile.train.steps if steps is None else steps
    if training.next_step >= until:
        raise UsageError(f"{resume} has done {training.next_step} steps already; ask for more than --steps {until}")
    keep_freed_memory()
    try:
        with shown(PrecisionWarning, output):
            history, seconds = _train(training, until, save, save_every, output)
    finally:
        keep_freed_memory(False)
    if save is not None:
        training.save(save)
    accuracy = training.accuracy()
    _conclude(training, history, seconds, accuracy, save, output)


def _check_fits(profile: Profile, policy: str | ModelPlan | None, micro_batches: int, offload: bool) -> None:
    """Refuse a training whose step would not fit into the free memory."""
    from memback.engine.offload import save_on_disk
    from memback.profiling.guard import check_fits
    from memback.profiling.mode import Mode
    from memback.profiling.workload import Workload

    work = Workload.build(profile, dry=True)
    mode = Mode("full") if policy is None else Mode("checkpoint", policy)
    with save_on_disk() if offload else nullcontext():
        check_fits(work.predicted_step(micro_batches), [mode], work.argument_bytes, option="--policy")


def _train(
    training: Training, until: int, save: str | None, save_every: int | None, output: Output
) -> tuple[list[StepResult], float]:
    """Run the steps under a live display; on Ctrl-C finish the step and write it before giving way."""
    from rich.live import Live

    history: list[StepResult] = []
    began = time.perf_counter()
    shown = 0.0
    live = output.console.is_terminal and not output.console.quiet
    with _interruptions() as interrupted:
        with Live(console=output.console, transient=True, auto_refresh=False) if live else nullcontext() as display:
            for result in training.steps(until):
                history.append(result)
                now = time.perf_counter()
                if display is not None and now - shown > _REFRESH_SECONDS:
                    display.update(_picture(training, history, until), refresh=True)
                    shown = now
                elif display is None and (result.step + 1) % max(1, until // 10) == 0:
                    output.say(_line(history), wrap=False)
                if save_every is not None and save is not None and training.next_step % save_every == 0:
                    training.save(save)
                if interrupted():
                    break
        if interrupted():
            if save is not None:
                training.save(save)
                output.say(f"Interrupted after step {training.next_step}; continue with --resume {save}", wrap=False)
            raise KeyboardInterrupt
    return history, time.perf_counter() - began


@contextmanager
def _interruptions() -> Iterator[Callable[[], bool]]:
    """In the block Ctrl-C is only noted, since half a step can't be resumed from; a second one stops at once.

    Gives a function that says whether there was one.
    """
    count = 0

    def note(*_: object) -> None:
        nonlocal count
        count += 1
        if count > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: count > 0
    finally:
        signal.signal(signal.SIGINT, before)


def _smooth(history: list[StepResult]) -> float:
    recent = [result.loss for result in history[-20:]]
    return sum(recent) / len(recent)


def _speed(history: list[StepResult]) -> float:
    recent = history[-20:]
    return sum(r.samples for r in recent) / sum(r.seconds for r in recent)


def _line(history: list[StepResult]) -> str:
    last = history[-1]
    live = last.live["saved"]
    return (
        f"step {last.step + 1}  loss {_smooth(history):.4f}  {_speed(history):,.0f} samples/s"
        f"  saved activations {format_bytes_short(live)}"
    )


def _picture(training: Training, history: list[StepResult], until: int) -> Table:
    """The live display of a running training."""
    import psutil
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from memback.reports.text import bar

    last = history[-1]
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column()

    def beside(name: str, amount: str, rest: RenderableType) -> None:
        cells = Table.grid(padding=(0, 1))
        cells.add_column(width=10, justify="right")
        cells.add_row(amount, rest)
        grid.add_row(name, cells)

    beside("step", f"{last.step + 1}/{until}", ProgressBar(until, last.step + 1, width=40))
    beside("loss", f"{_smooth(history):.4f}", "")
    beside("speed", f"{_speed(history):,.0f}", f"samples/s, {last.seconds * 1e3:.1f} ms a step")
    sizes = _memory(training, last)
    most = max(sizes.values())
    for name, size in sizes.items():
        beside(name, format_bytes_short(size), Text(bar(size / most, 40), _COLOURS[name]))
    beside("process (RSS)", format_bytes_short(psutil.Process().memory_info().rss), "")
    return grid


def _memory(training: Training, last: StepResult) -> dict[str, int]:
    """Training memory by category, in bytes: at the end of the forward pass, and what is there all the time."""
    from memback.engine.arrays import distinct_bytes

    parameters = distinct_bytes(p.data for p in training.work.model.parameters())
    gradients = sum(p.grad.nbytes for p in training.work.model.parameters() if p.grad is not None)
    return {
        "parameters": parameters,
        "optimiser state": training.work.optimizer.state_bytes,
        "gradients": gradients,
        "saved activations": last.live["saved"],
    }


def _conclude(
    training: Training,
    history: list[StepResult],
    seconds: float,
    accuracy: float | None,
    save: str | None,
    output: Output,
) -> None:
    """Print and write what came out."""
    samples = sum(r.samples for r in history)
    sizes = _memory(training, history[-1])
    result: dict[str, Any] = {
        "profile": training.work.profile.name,
        "policy": getattr(training.policy, "name", None),
        "micro_batches": training.micro_batches,
        "offloaded_bytes": None if training.disk is None else training.disk.bytes_written // len(history),
        "first_step": history[0].step,
        "steps": training.next_step,
        "loss": _smooth(history),
        "losses": [r.loss for r in history],
        "accuracy": accuracy,
        "seconds": seconds,
        "samples_per_second": samples / seconds,
        "memory": sizes,
    }
    line = f"{result['profile']}: step {training.next_step}, loss {result['loss']:.4f}"
    if accuracy is not None:
        line += f", test accuracy {100 * accuracy:.2f} %"
    output.say(f"{line}; {seconds:.1f} s, {samples / seconds:,.0f} samples/s")
    memory = ", ".join(f"{name} {format_bytes_short(size)}" for name, size in sizes.items())
    output.say(f"Memory: {memory}")
    if training.disk is not None:
        written = format_bytes_short(training.disk.bytes_written // len(history))
        output.say(f"On disk: {written} a step, in {training.disk.folder}", wrap=False)
    if save is not None:
        output.say_written(save, "Saved")
    output.write_json(result)

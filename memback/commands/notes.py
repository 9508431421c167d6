"""``memback notes``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import rich_click as click
from rich import box
from rich.console import Console, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from memback._version import __version__
from memback.commands.inputs import progress_bar
from memback.commands.options import Output, output_options
from memback.errors import MembackError
from memback.notes import SECTIONS, Check, Section, chain_rule, exercises, jacobians, memory, network
from memback.reports.text import to_ascii
from memback.units import format_bytes_short, format_seconds

__all__ = ["command"]

NONE = "–"
NARROWEST = 80
"""Columns that the widest table needs."""


@click.command("notes", epilog="Example: memback notes --section 4.2")
@click.option(
    "--section",
    "wanted",
    multiple=True,
    type=click.Choice(list(SECTIONS)),
    help="Show this section alone; give it again for several. Default: all.",
)
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True, help="Of weights and data.")
@output_options
def command(wanted: tuple[str, ...], seed: int, output: Output) -> None:
    """Walk through the lecture notes on a real network: what backprop computes, keeps and frees, step by step.

    Every figure is computed in this run, and every claim is checked another way: by finite differences, by explicit
    Jacobians, or bit by bit. If one does not hold, the exit code is 1.
    """
    names = [name for name in SECTIONS if not wanted or name in wanted]
    found: dict[str, Section] = {}
    with progress_bar(output) as progress:
        for done, name in enumerate(names):
            progress(f"section {name}", done, len(names))
            found[name] = SECTIONS[name](seed)
    for name, section in found.items():
        _print(output.console, _show(name, section))
    checks = [check for section in found.values() for check in section.checks]
    failed = [check for check in checks if not check.ok]
    output.write_json(
        {
            "schema": "memback.notes/1",
            "memback": __version__,
            "seed": seed,
            "ok": not failed,
            "sections": {name: section.to_dict() for name, section in found.items()},
        }
    )
    if failed:
        which = "; ".join(f"{check.what} ({_equations(check)})" for check in failed)
        raise MembackError(f"{len(failed)} of {len(checks)} checks do not hold: {which}")
    _print(output.console, [Text(f"All {len(checks)} checks hold.", "bold green")])


# -- sections


def _show(name: str, section: Section) -> Iterator[RenderableType]:
    title, show = _SHOWN[name]
    yield Rule(Text(f"{name}  {title}", "bold"), align="left", style="dim")
    yield from show(section)
    yield Text()


def _chain_rule(section: chain_rule.ChainRule) -> Iterator[RenderableType]:
    for graph in section.graphs:
        variable, value = next(iter(graph.values.items()))
        yield Text.assemble((graph.title, "cyan"), f": {', '.join(graph.formulas)}; {variable} = {value:.4g}")
        table = _table("Eq.", "derivative", "found by", "value:", "error:", "")
        for row in graph.derivatives:
            number = "undefined" if row.value is None else f"{row.value:.6f}"
            table.add_row(row.equation, row.name, row.call, number, _error(row.check), _verdict(row.check.ok))
        yield table
        yield Text()
    yield Text("Error: distance from the central finite difference (Eq. 1 with a small step).", "dim")
    refusal = next((row for graph in section.graphs for row in graph.derivatives if row.error), None)
    if refusal is not None:
        yield Text.assemble((refusal.call, "cyan"), f" is refused; f and x are its arguments: {refusal.error}.")


def _forward(section: network.Forward) -> Iterator[RenderableType]:
    yield Text(
        f"A batch of {section.batch} {section.data}, {section.dtype}; loss {section.loss:.4f}. There before the step:"
        f" parameters {section.parameter_bytes:,} B, x and y {section.input_bytes:,} B."
    )
    table = _table("Eq.", "step", "output", "keeps for\nbackward", "saved\nbytes:", "shared\nbytes:")
    for step in section.steps:
        shape = "×".join(map(str, step.shape)) or "scalar"
        kept = ", ".join(step.keeps) or NONE
        table.add_row(step.equation, step.formula, shape, kept, f"{step.saved_bytes:,}", f"{step.shared_bytes:,}")
    table.add_section()
    table.add_row("", "total", "", "", f"{section.saved_bytes:,}", "", style="bold")
    yield table
    yield Text(
        "Saved bytes are charged to the step that made the buffer, and shared where another step keeps it. Parameters,"
        " x and y are there anyway and cost nothing. relu keeps h in place of a: its step function is the same"
        " (Eq. 18), and the next linear keeps h anyway.",
        "dim",
    )
    yield _lines(section.checks)
    yield Text(f"    On one image, in float64; those Jacobians take {section.jacobian_bytes:,} B.", "dim")


def _costs(section: jacobians.Costs) -> Iterator[RenderableType]:
    for growth in section.growths:
        yield Text.assemble(
            (growth.op, "cyan"), f": Jacobians and their sum ({growth.explicit}) against backward ({growth.direct})"
        )
        table = _table(
            "D:", "Jacobians,\nbytes:", "gradients,\nbytes:", "Jacobians\n+ sum:", "backward:", "time\nratio:"
        )
        for cost in growth.costs:
            table.add_row(f"{cost.size:,}", f"{cost.jacobian_bytes:,}", f"{cost.gradient_bytes:,}", *_times(cost))
        table.add_section()
        exponents = (
            growth.jacobian_bytes_exponent,
            growth.backward_bytes_exponent,
            growth.jacobian_exponent,
            growth.backward_exponent,
        )
        table.add_row("grows as", *map(_power, exponents), "", style="bold")
        yield table
        if growth.correction:
            yield Text(f"A slip of the notes, put right here: {growth.correction}")
        yield Text()
    yield Text(
        f"Times are medians of {section.rounds} rounds in which the methods alternate. Powers are fitted over the"
        f" {section.fitted} largest sizes of a column, less what D = 1 takes, which is the cost of any call. Jacobians"
        f" of more than {format_bytes_short(jacobians.LIMIT_BYTES)} are not made; their bytes follow from their shapes"
        " (Eq. 14).",
        "dim",
    )
    yield _lines(section.checks)


def _power(exponent: float | None) -> str:
    return NONE if exponent is None else f"D^{exponent:.2f}"


def _times(cost: jacobians.Cost) -> tuple[str, str, str]:
    backward = format_seconds(cost.backward_seconds)
    if cost.jacobian_seconds is None:
        return "not made", backward, NONE
    ratio = f"{cost.jacobian_seconds / cost.backward_seconds:,.1f}×" if cost.backward_seconds else NONE
    return format_seconds(cost.jacobian_seconds), backward, ratio


def _backward(section: network.Backward) -> Iterator[RenderableType]:
    yield Text(f"At the end of forward the tape holds {section.saved_bytes:,} B.")
    table = _table("Eq.", "step, and what it gives", "uses", "freed\nbytes:", "still\nheld:", "dropped,\nbytes:")
    for step in section.steps:
        star = "*" if step.correction else ""
        what = f"{step.formula}\n→ {', '.join(step.yields)}"
        dropped = f"{step.dropped}\n{step.dropped_bytes:,}" if step.dropped_bytes else "nothing"
        freed, held = f"{step.freed_bytes:,}", f"{step.held_bytes:,}"
        table.add_row(step.equation + star, what, ", ".join(step.uses), freed, held, dropped)
    yield table
    slips = [step.correction for step in section.steps if step.correction]
    yield Text(f"* Slips of the notes, put right here: {' '.join(slips)}")
    yield Text(
        "Freed: buffers that this step freed, because nothing needs them any more: linear and relu share h, which relu"
        " gets in place of a, so relu frees it. dL/dx and dL/dy are gradients of data and not computed. The"
        f" {section.gradient_bytes:,} B of Eq. 12 remain.",
        "dim",
    )
    yield _lines(section.checks)


def _memory(section: memory.Memory) -> Iterator[RenderableType]:
    full = next(way.saved_bytes for way in section.ways if way.mode == "full")
    table = _table("mode", "keeps", "saved bytes:", "of full:", "peak bytes:")
    for way in section.ways:
        peak = NONE if way.peak_bytes is None else f"{way.peak_bytes:,}"
        share = f"{way.saved_bytes / full:.2f}×" if full else NONE
        table.add_row(way.mode, ", ".join(way.keeps) or "nothing", f"{way.saved_bytes:,}", share, peak)
    yield table
    yield Text("Saved: at the end of forward, by the ledger. Peak: of the whole step, measured.", "dim")
    yield _lines(section.checks)
    yield Text.assemble("For any model, layer by layer and with checkpoints: ", ("memback profile digits", "cyan"))


def _exercises(section: exercises.Exercises) -> Iterator[RenderableType]:
    yield Text(f"On a = linear(h, W, b) from {section.inputs} to {section.outputs} features: step 11e on one image.")
    table = _table("", "exercise and answer", "Eq.", "finite\ndifferences:", "sum:", "op:", "")
    for exercise in section.exercises:
        what = Text.assemble(exercise.question, "\n", (exercise.answer, "cyan"))
        by_sum = NONE if exercise.against_sum is None else _error(exercise.against_sum)
        errors = (_error(exercise.against_differences), by_sum, _error(exercise.against_op))
        ok = all(check.ok for check in exercise.checks)
        table.add_row(str(exercise.number), what, exercise.equation, *errors, _verdict(ok))
    yield table
    sums = ", ".join(e.sum_equation for e in section.exercises if e.sum_equation)
    yield Text(
        "The answer's largest absolute error, in float64: against central finite differences; against the sum that it"
        f" simplifies, term by term (Eqs. {sums}); and against linear.jacobian (1 to 3) or linear.backward (4 to 6).",
        "dim",
    )
    slips = " ".join(e.correction for e in section.exercises if e.correction)
    yield Text(f"A slip of the notes, put right here: {slips}")


_SHOWN: dict[str, tuple[str, Callable[[Any], Iterator[RenderableType]]]] = {
    "1": ("Partial and total derivatives", _chain_rule),
    "3": ("The network of Eq. 11, and what each step keeps for backward", _forward),
    "4.1": ("Explicit Jacobians against backward", _costs),
    "4.2": ("The backward pass of Eq. 30, step by step", _backward),
    "4.3": ("What a step holds", _memory),
    "5": ("The exercises", _exercises),
}


# -- parts


def _table(*titles: str) -> Table:
    """A table; a column whose title ends in a colon holds numbers, which are kept whole where it is tight."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for title in titles:
        number = title.endswith(":")
        table.add_column(title.removesuffix(":"), justify="right" if number else "left", no_wrap=number)
    return table


def _lines(checks: Iterable[Check]) -> RenderableType:
    """One line a check, its verdict first."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    for check in checks:
        told = check.error is not None and (check.tolerance or not check.ok)
        error = f"; largest error {_error(check)}" if told else ""
        grid.add_row(_verdict(check.ok), f"{check.what} ({_equations(check)}){error}")
    return grid


def _equations(check: Check) -> str:
    return f"Eqs. {check.equation}" if "," in check.equation else f"Eq. {check.equation}"


def _error(check: Check) -> str:
    if check.error is None:
        return NONE
    return f"{check.error:.0e}" if check.error else "0"


def _verdict(ok: bool) -> Text:
    return Text("ok", "green") if ok else Text("FAILED", "bold red")


def _print(console: Console, parts: Iterator[RenderableType] | Sequence[RenderableType]) -> None:
    """Print; into a file or pipe without padding, and in ASCII where nothing else can be taken.

    A terminal that is narrower than the tables breaks their lines; made to fit, they would lose digits.
    """
    console.width = max(console.width, NARROWEST)
    with console.capture() as captured:
        console.print(*parts, sep="\n", highlight=False)
    text = captured.get()
    if not console.is_terminal:
        text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    if console.options.ascii_only:
        text = to_ascii(text)
    if not console.quiet:
        console.file.write(text)

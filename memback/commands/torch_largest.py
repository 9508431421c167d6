"""``memback torch --find``: the largest batch or sequence whose training step fits on a card."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import rich_click as click

from memback.commands.inputs import progress_bar
from memback.commands.options import Output
from memback.errors import UsageError
from memback.units import format_bytes_short

if TYPE_CHECKING:
    from memback.bridges.torch.largest import Found, Trial
    from memback.bridges.torch.source import Source
    from memback.reports.tables import Table

__all__ = ["find"]


def find(source: Source, dimension: str, card: str, optimizer: Any, options: dict[str, Any], output: Output) -> None:
    """Find it, show it and what was tried, and write it as JSON.

    Raises:
        UsageError: a report is asked for as well.
        MembackError: as :func:`memback.bridges.torch.largest.find_largest`.
    """
    from memback.bridges.torch.device.cards import card as card_of
    from memback.bridges.torch.largest import find_largest
    from memback.reports import text

    if click.get_current_context().params["files"]:  # type: ignore[union-attr]
        raise UsageError(f"-o is for a report: leave it out, and then give --{dimension} N for that of a size")
    with progress_bar(output) as progress:
        found = find_largest(
            source, dimension, card_of(card), optimizer, **options, progress=lambda what: progress(what, 0, 0)
        )
    console = output.console
    console.print(text.line(_answer(found), "bold"))
    if found.limit:
        console.print(text.line(f"No more, because of the model: {found.limit}"))
    console.print()
    console.print(text.table(_tried(found)))
    output.write_json(found.to_dict())


def _answer(found: Found) -> str:
    of = {trial.size: trial for trial in found.trials}
    larger = of.get(found.size + 1)
    beyond = f"; {larger.size} would need {format_bytes_short(larger.needed_bytes)}" if larger is not None else ""
    return (
        f"The largest {found.dimension} that fits on cuda:{found.card.name} is {found.size}: it needs"
        f" {format_bytes_short(of[found.size].needed_bytes)} of {format_bytes_short(found.card.memory_bytes)}{beyond}."
    )


def _tried(found: Found) -> Table:
    from memback.bridges.torch.device.cards import CONTEXT_BYTES
    from memback.reports.tables import Cell, Column, Row, Table

    def row(trial: Trial) -> Row:
        spare = trial.memory_bytes - trial.needed_bytes
        verdict = Cell("fits", "good") if trial.fits else Cell("does not fit", "bad")
        sizes = (trial.steady.allocated_peak_bytes, trial.steady.reserved_peak_bytes, trial.needed_bytes, spare)
        return Row([Cell(str(trial.size)), *(Cell(f"{size:,}") for size in sizes), verdict])

    columns = [
        Column(found.dimension, "key"),
        Column("allocated peak", optional=True),
        Column("reserved", group=1),
        Column("needed", group=1),
        Column("to spare", group=1),
        Column("", "text", 1),
    ]
    notes = [
        "Each was predicted by a dry run of three training steps. Reserved: the most that PyTorch's allocator has from"
        f" the card, in a steady step. Needed: that, and {format_bytes_short(CONTEXT_BYTES)} for CUDA's context, which"
        " is an estimate."
    ]
    return Table("Sizes tried", columns, [row(trial) for trial in found.trials], notes=notes)

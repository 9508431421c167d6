"""How subcommands show plans, of profiles and of PyTorch modules, and write them as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from memback.commands.options import Output

if TYPE_CHECKING:
    from memback.plans.model.planning import FrontierPoint
    from memback.reports.tables import Table

__all__ = ["BESIDE_PICTURE", "plan_data", "show_plan"]

BESIDE_PICTURE = 12
"""Columns of the console that names of sweeps take beside the picture."""


def show_plan(
    output: Output, title: str, sentences: Iterable[str], tables: Iterable[Table], picture: Sequence[str]
) -> None:
    """Print a plan: what it costs, what is kept, and, where anything is recomputed, the picture."""
    from rich.text import Text

    from memback.reports import text

    console = output.console
    console.print(text.line(title, "bold"), *map(text.line, sentences), sep="\n")
    for table in tables:
        console.print(Text(), text.table(table), sep="\n")
    if picture:
        console.print(Text(), text.line("What is kept and recomputed, sweep by sweep", "bold"), sep="\n")
        console.print(*map(text.line, picture), sep="\n")


def plan_data(full_peak_bytes: int | None, points: Sequence[FrontierPoint] | None, **others: Any) -> dict[str, Any]:
    """A plan and a frontier as JSON, as far as they are there."""
    frontier = None if points is None else [point._asdict() for point in points]
    data = {"full_peak_bytes": full_peak_bytes, **others, "frontier": frontier}
    return {name: value for name, value in data.items() if value is not None}

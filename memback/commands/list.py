"""``memback list``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import rich_click as click
from rich import box
from rich.table import Table

from memback.commands.options import Output, output_options

__all__ = ["command"]


@click.command("list", epilog="Example: memback list --json -")
@output_options
def command(output: Output) -> None:
    """List the shipped profiles, models, data sets, ops and checkpoint policies and planners, each with one line."""
    found = _collect()
    for kind, entries in found.items():
        table = Table(title=kind, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_header=False)
        table.add_column(style="cyan", no_wrap=True)
        table.add_column()
        for entry in entries:
            table.add_row(entry["name"], entry["description"])
        output.console.print(table)
    output.write_json(found)


def _collect() -> dict[str, list[dict[str, str]]]:
    """Name and description of everything, by kind."""
    from memback import models
    from memback.data import REGISTRY as DATA
    from memback.engine import op
    from memback.nn.policy import POLICIES
    from memback.plans import PLANNERS, WHOLE
    from memback.profiling import definition

    profiles = {name: definition.load(name).description for name in definition.shipped()}
    return {
        "profiles": _rows(profiles),
        "models": _rows(_described(models.REGISTRY)),
        "data": _rows(_described(DATA)),
        "ops": _rows(_described(op.REGISTRY)),
        "policies": _rows(_described(POLICIES)),
        "planners": _rows({**_described(PLANNERS), **WHOLE}),
    }


def _described(registry: Mapping[str, Any]) -> dict[str, str]:
    summaries = {name: (entry.__doc__ or "").strip().partition("\n")[0] for name, entry in registry.items()}
    return {name: summary.removesuffix(".") for name, summary in summaries.items()}


def _rows(described: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "description": line} for name, line in described.items()]

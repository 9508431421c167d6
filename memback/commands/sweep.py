"""``memback sweep``."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import rich_click as click

from memback.commands.inputs import profile_argument, progress_bar
from memback.commands.options import Output, output_options
from memback.errors import MembackError, UsageError

if TYPE_CHECKING:
    from memback.profiling.definition import Profile
    from memback.sweeps.grid import Grid
    from memback.sweeps.html import View
    from memback.sweeps.point import Row
    from memback.sweeps.store import Store

__all__ = ["command"]


@click.command(
    "sweep", epilog="Example: memback sweep digits --grid batch=16,32,64 --grid policy=none,sqrt -o sweep.csv"
)
@profile_argument
@click.option(
    "--grid",
    "axes",
    multiple=True,
    required=True,
    metavar="KEY=A,B,…",
    help="Values of a key: batch, sequence, depth, dtype, policy, budget, planner, or any key of the profile, such as"
    " model.width. Give it again for more keys.",
)
@click.option("--policy", metavar="POLICY", help="The checkpoint policy of every point. [default: the profile's]")
@click.option("--budget", metavar="BYTES", help="Make a plan for every point, within 512MiB, 1.5GB, 1000000.")
@click.option("--planner", metavar="NAME", help="The planner; `memback list` shows them. [default: chain]")
@click.option("--workers", type=click.IntRange(1), metavar="N", help="Processes on this machine. [default: one a core]")
@click.option("--scheduler", metavar="ADDRESS", help="Run on a Dask cluster instead, as tcp://host:8786.")
@click.option("--resume", is_flag=True, help="Resume an interrupted sweep; no finished point is run again.")
@click.option(
    "-o", "--output", "files", multiple=True, metavar="FILE", help="Write the rows (.parquet .csv), a heat-map (.html)."
)
@click.option("--x", metavar="KEY", help="The heat-map's horizontal axis. [default: the first key]")
@click.option("--y", metavar="KEY", help="Its vertical axis. [default: the second key]")
@click.option("--value", metavar="NAME", help="Its first value: saved_bytes, peak, plan_peak, … [default: peak]")
@output_options
def command(
    profile: Profile,
    axes: tuple[str, ...],
    policy: str | None,
    budget: str | None,
    planner: str | None,
    workers: int | None,
    scheduler: str | None,
    resume: bool,
    files: tuple[str, ...],
    x: str | None,
    y: str | None,
    value: str | None,
    output: Output,
) -> None:
    """Predict many variants of PROFILE: every combination of the grid's values, on all cores, by dry runs.

    Every point gets its saved bytes, its peak and what that consists of, and its FLOPs, in modes full, checkpoint and
    inference; with a budget also a plan. An invalid point is a row with its error. Rows are written to FILE as they
    finish: after a kill or Ctrl-C, the same command with --resume continues. For long lists use the shell:
    batch=$(seq -s, 1 64).
    """
    from memback.sweeps.store import Store

    if workers is not None and scheduler is not None:
        raise UsageError("--workers and --scheduler contradict each other: a cluster has workers of its own")
    grid = _grid(profile, axes, policy, budget, planner)
    pages = [file for file in files if file.lower().endswith(".html")]
    view = _view(grid, x, y, value, pages)
    output.check(*pages)
    kept = [file for file in files if file not in pages]
    if resume and not kept:
        raise UsageError("--resume needs the file with the rows: add -o FILE.csv or -o FILE.parquet")
    store = Store(grid, kept, output.force, resume)
    _run(store, workers, scheduler, output)
    for page in pages:
        from memback.sweeps import html

        assert view is not None
        output.write(page, html.render(grid, store.ordered, view))
    _show(store, output)
    for file in files:
        output.say_written(file)
    output.write_json(_data(store))
    _judge(store)


def _grid(profile: Profile, axes: tuple[str, ...], policy: str | None, budget: str | None, planner: str | None) -> Grid:
    from memback.sweeps.grid import PLANNER, POLICY, Grid, check_planner, parse_axis
    from memback.units import parse_bytes

    if policy is not None:
        profile = profile.with_overrides({POLICY: policy}, "--policy")
    if planner is not None:
        check_planner(planner)
    read = tuple(parse_axis(axis, profile, axes) for axis in axes)
    for name, given in (("policy", policy), ("budget", budget), ("planner", planner)):
        if given is not None and any(axis.key == name for axis in read):
            raise UsageError(f"--{name} and --grid {name} contradict each other: give one of them")
    return Grid(profile, read, None if budget is None else parse_bytes(budget), planner or PLANNER)


def _view(grid: Grid, x: str | None, y: str | None, value: str | None, pages: list[str]) -> View | None:
    """How the heat-map begins."""
    if not pages:
        given = {"--x": x, "--y": y, "--value": value}
        if wrong := [name for name, content in given.items() if content is not None]:
            raise UsageError(f"{', '.join(wrong)}: there is no heat-map; add -o FILE.html")
        return None
    from memback.sweeps.html import View

    return View.of(grid, x, y, value)


# -- running


def _run(store: Store, workers: int | None, scheduler: str | None, output: Output) -> None:
    """Run the points that have no row yet; whatever ends it, what is finished is kept."""
    grid = store.grid
    missing = [point for point in grid.points if point.number not in store.rows]
    before = len(store.rows)
    if before:
        output.say(f"{before:,} of {len(grid):,} points were there already.")
    try:
        with progress_bar(output, counted=True) as progress, closing(_rows(grid, missing, workers, scheduler)) as rows:
            progress(grid.profile.name, before, len(grid))
            for some in rows:
                store.add(some)
                progress(grid.profile.name, len(store.rows), len(grid))
    except BaseException:
        store.close()
        if store.files and store.rows:
            kept = f"{len(store.rows):,} of {len(grid):,} points are in {store.files[0]}"
            output.say(f"{kept}; --resume runs the others.", wrap=False)
        raise
    store.close()


def _rows(
    grid: Grid, points: list[Any], workers: int | None, scheduler: str | None
) -> Generator[list[Row], None, None]:
    from memback.sweeps import run

    if scheduler is not None:
        yield from run.on_dask(grid.profile, points, scheduler)
        return
    yield from run.on_cores(grid.profile, points, workers or run.cores())


# -- showing


def _show(store: Store, output: Output) -> None:
    from memback.reports import text
    from memback.sweeps import summary

    rows = store.ordered
    output.console.print(text.line(summary.headline(store.grid, rows), "bold"))
    for table in summary.tables(store.grid, rows):
        output.console.print()
        output.console.print(text.table(table))


def _data(store: Store) -> dict[str, Any]:
    from memback.sweeps import summary
    from memback.sweeps.store import columns, describe

    rows = store.ordered
    return {
        **describe(store.grid),
        "summary": summary.counts(store.grid, rows),
        "points": list(map(columns, rows)),
    }


def _judge(store: Store) -> None:
    """Raise if points are lost, or if none could be run.

    Raises:
        MembackError: then.
    """
    rows = store.ordered
    lost = [row for row in rows if row.status == "lost"]
    if lost:
        remedy = "--resume runs them again" if store.files else "run the sweep again, with -o FILE to keep its rows"
        raise MembackError(f"{len(lost):,} points are lost: {lost[0].error}; {remedy}")
    if all(row.status == "failed" for row in rows):
        raise MembackError(f"no point could be run: {rows[0].error}")

"""Reports of the ranks that train one model, merged into one: the rank that needs the most memory leads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from memback.errors import UsageError
from memback.profiling.report import Distributed, Rank, RankRun, Report

__all__ = ["merge", "rank_file"]


def merge(reports: Sequence[Report]) -> Report:
    """One report of several ranks' reports, those that there are.

    Its arguments and runs are those of the rank that needs the most memory; its field ``distributed`` has the totals of
    every rank, and knows which ranks are missing.

    Raises:
        UsageError: a report is no rank's, is merged already, or is of another job than the first; or a rank is there
            twice.
    """
    if not reports:
        raise UsageError("there are no reports of ranks to merge")
    ranks = [_rank(report, reports[0]) for report in reports]
    numbers = [rank.rank for rank in ranks]
    twice = next((number for number in numbers if numbers.count(number) > 1), None)
    if twice is not None:
        raise UsageError(f"there are several reports of rank {twice}: give one for each rank")
    order = sorted(range(len(ranks)), key=lambda i: (-ranks[i].memory_bytes, ranks[i].rank))
    worst = reports[order[0]]
    assert worst.distributed is not None
    merged = replace(worst, distributed=replace(worst.distributed, ranks=tuple(ranks[i] for i in order)))
    merged.validate()
    return merged


def _rank(report: Report, first: Report) -> Rank:
    of, name = report.distributed, report.profile.name
    if of is None:
        raise UsageError(f"the report of {name} is not of one of several ranks: only such reports are merged")
    if of.ranks:
        raise UsageError(f"the report of {name} is merged already: give the reports of the single ranks")
    if first.distributed is not None and _job(report, of) != _job(first, first.distributed):
        this, that = (
            f"{a.profile.name}, {b.strategy}, {b.world_size} ranks, modes {', '.join(run.label for run in a.runs)}"
            for a, b in ((report, of), (first, first.distributed))
        )
        raise UsageError(f"these reports are of different jobs: {this}; {that}")
    return Rank(rank=of.rank, arguments=report.arguments, runs=tuple(map(RankRun.of, report.runs)), stopped=of.stopped)


def _job(report: Report, of: Distributed) -> tuple[object, ...]:
    return report.profile.name, of.strategy, of.world_size, tuple(run.label for run in report.runs)


def rank_file(file: str, rank: int) -> str:
    """Where a rank's own report is written if the merged one is to be in ``file``: ``out.html``, ``out.rank0.json``."""
    path = Path(file)
    stem = path.name.split(".")[0] or path.name
    return str(path.with_name(f"{stem}.rank{rank}.json"))

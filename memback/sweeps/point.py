"""Points of a sweep, run dry: rows for a few points of one model.

Points that differ only in policy, budget and planner share their model, its runs in modes full and inference, and the
measured stages of their plans.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property, partial
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta, Struct

from memback._version import __version__
from memback.engine.arrays import distinct_bytes
from memback.errors import MembackError
from memback.plans.model.planning import KEEPING_EVERYTHING, RESERVE, NoPlanError, Planning
from memback.profiling.accounts import EXCHANGED
from memback.profiling.definition import Profile
from memback.profiling.ledger import DryLedger
from memback.profiling.mode import Mode
from memback.profiling.step import Step
from memback.profiling.workload import Workload
from memback.sweeps.grid import Point

__all__ = ["Arguments", "Done", "Figures", "PlanFigures", "Row", "Task", "run"]

SECONDS = 5.0
"""Seconds of processor time after which a task returns its rows, so that a killed process loses little more."""

_WORTHWHILE = 5
"""A task runs for at least this many times the duration of its first point, which measures the model for all."""

Count = Annotated[int, Meta(ge=0)]
T = TypeVar("T")


class Arguments(Struct, frozen=True, kw_only=True):
    """Memory that is there before the step, in bytes."""

    parameter_bytes: Count
    buffer_bytes: Count
    input_bytes: Count
    optimizer_bytes: Count


class Figures(Struct, frozen=True, kw_only=True):
    """A mode's predictions, in bytes and FLOPs: those of ``memback profile --dry``. ``peak_…`` says where the peak is,
    and what it is made of: saved, gradients, recomputed, outputs and workspace add up to ``peak_bytes``.
    """

    saved_bytes: Count
    peak_bytes: Count
    peak_phase: str
    peak_path: str
    peak_op: str
    peak_saved: Count
    peak_gradients: Count
    peak_recomputed: Count
    peak_outputs: Count
    peak_workspace: Count
    flops: Count
    recomputed_flops: Count


class PlanFigures(Struct, frozen=True, kw_only=True):
    """The plan of ``memback plan`` for a budget; where none fits, the budget that the leanest plan needs."""

    budget_bytes: Count
    planner: str
    fits: bool
    peak_bytes: Count | None = None
    saved_bytes: Count | None = None
    extra_flops: Count | None = None
    optimality: str | None = None
    least_budget_bytes: Count | None = None


class Row(Struct, frozen=True, kw_only=True):
    """The outcome of a point.

    ``failed`` is a point that can't be run (``error`` says why; what could be run is there), ``lost`` one whose process
    died: the next ``--resume`` reruns it.
    """

    point: Count
    id: str
    settings: dict[str, Any]
    status: Literal["done", "failed", "lost"]
    error: str | None = None
    policy: str | None = None
    arguments: Arguments | None = None
    full: Figures | None = None
    checkpoint: Figures | None = None
    inference: Figures | None = None
    plan: PlanFigures | None = None


class Task(Struct, frozen=True):
    """Points of one model, to be run in one process. ``version`` is that of the memback that started the sweep."""

    profile: Profile
    points: tuple[Point, ...]
    version: str = __version__


class Done(Struct, frozen=True):
    """Rows of the points that a task has run, and the points that it has not come to."""

    rows: list[Row]
    rest: tuple[Point, ...] = ()


def run(task: Task, seconds: float = SECONDS) -> Done:
    """Run points, at least one, until ``seconds`` of the processor are over, and measuring the model has paid off.

    Raises:
        MembackError: this is another version of memback than the sweep's.
    """
    if task.version != __version__:
        raise MembackError(
            f"this process has memback {__version__}, the sweep {task.version}: install the same version everywhere"
        )
    began = time.thread_time()
    rows: list[Row] = []
    try:
        model = _Model(task.profile.with_overrides(dict(task.points[0].overrides), "--grid"))
    except Exception as error:
        return Done([failed(point, _reason(error)) for point in task.points])
    for number, point in enumerate(task.points):
        if rows and time.thread_time() - began > seconds:
            return Done(rows, task.points[number:])
        rows.append(_row(model, point))
        if number == 0 and seconds > 0:
            seconds = max(seconds, _WORTHWHILE * (time.thread_time() - began))
    return Done(rows)


def failed(point: Point, error: str, status: Literal["failed", "lost"] = "failed") -> Row:
    """The row of a point of which nothing is known but what went wrong."""
    return Row(point=point.number, id=point.id, settings=point.settings, status=status, error=error)


def _row(model: _Model, point: Point) -> Row:
    policy = point.policy or model.policy
    errors: list[str] = []

    def get(part: Callable[[], T]) -> T | None:
        try:
            return part()
        except Exception as error:
            reason = _reason(error)
            if reason not in errors:
                errors.append(reason)
            return None

    full = get(lambda: model.figures(Mode("full")))
    return Row(
        point=point.number,
        id=point.id,
        settings=point.settings,
        policy=policy,
        full=full,
        checkpoint=None if full is None else get(lambda: model.figures(Mode("checkpoint", policy))),
        inference=None if full is None else get(lambda: model.figures(Mode("inference"))),
        arguments=None if full is None else model.arguments,
        plan=None if full is None or point.budget is None else get(partial(model.plan, point.budget, point.planner)),
        status="failed" if errors else "done",
        error="; ".join(errors) or None,
    )


def _reason(error: Exception) -> str:
    """Why a point can't be run; for a defect, its kind too, because it fails the point and not the sweep."""
    return str(error) if isinstance(error, MembackError) else f"{type(error).__name__}: {error}"


class _Model:
    """A model with its batch, run dry in each mode once."""

    def __init__(self, profile: Profile) -> None:
        self.work = Workload.build(profile, dry=True)
        self.step: Step = self.work.predicted_step()
        self.policy = profile.checkpoint.policy
        self._figures: dict[Mode, Figures] = {}
        self._input_bytes = 0

    @cached_property
    def planning(self) -> Planning:
        return Planning(self.step)

    @property
    def arguments(self) -> Arguments:
        model = self.work.model
        return Arguments(
            parameter_bytes=distinct_bytes(p.data for p in model.parameters()),
            buffer_bytes=distinct_bytes(array for _, array in model.named_buffers()),
            input_bytes=self._input_bytes,
            optimizer_bytes=self.work.optimizer.state_bytes,
        )

    def figures(self, mode: Mode) -> Figures:
        if mode not in self._figures:
            prediction = self.step.predict(mode, partial(DryLedger, events=False))
            ledger, interval = prediction.ledger, prediction.peak.interval
            self._input_bytes = ledger.input_bytes
            self._figures[mode] = Figures(
                saved_bytes=ledger.saved_at_end_of_forward or 0,
                peak_bytes=prediction.peak.bytes,
                peak_phase=interval.phase,
                peak_path=interval.path,
                peak_op=interval.op,
                flops=ledger.flops,
                recomputed_flops=ledger.recomputed_flops,
                # a point has one rank
                **{f"peak_{name}": n for name, n in prediction.peak.parts.items() if name not in EXCHANGED},
            )
        return self._figures[mode]

    def plan(self, budget: int, planner: str) -> PlanFigures:
        full = self.figures(Mode("full"))
        if full.peak_bytes + RESERVE <= budget and planner in KEEPING_EVERYTHING:
            saved, proof = full.saved_bytes, "optimal: nothing is computed twice"
            figures: dict[str, Any] = {"peak_bytes": full.peak_bytes, "saved_bytes": saved, "optimality": proof}
            return PlanFigures(budget_bytes=budget, planner=planner, fits=True, extra_flops=0, **figures)
        try:
            plan = self.planning.plan(budget, planner)
        except NoPlanError as error:
            least = error.minimum_bytes
            return PlanFigures(budget_bytes=budget, planner=planner, fits=False, least_budget_bytes=least)
        figures = {name: getattr(plan, name) for name in ("peak_bytes", "saved_bytes", "extra_flops", "optimality")}
        return PlanFigures(budget_bytes=budget, planner=planner, fits=True, **figures)

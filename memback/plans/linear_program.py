"""Linear programs, some of whose variables may have to be integers, and HiGHS, which solves them.

(Huangfu & Hall 2018, "Parallelizing the dual revised simplex method", Mathematical Programming Computation 10.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

__all__ = ["GAP", "ONE", "LinearProgram", "Term", "quiet_solver", "solve"]

GAP = 1e-9
"""Share of the objective within which a solution is optimal."""

Term: TypeAlias = tuple[int, float]
"""(variable, coefficient); the variable ``ONE`` stands for the number 1."""
ONE = -1


@dataclass
class LinearProgram:
    """The rows and columns of a program."""

    integer: list[bool] = field(default_factory=list)
    cost: list[float] = field(default_factory=list)
    starts: list[int] = field(default_factory=lambda: [0])
    columns: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    row_upper: list[float] = field(default_factory=list)

    def variable(self, cost: float = 0.0, integer: bool = True) -> int:
        """A new column, from 0 to 1."""
        self.integer.append(integer)
        self.cost.append(cost)
        return len(self.cost) - 1

    def at_most(self, terms: Sequence[Term], bound: float) -> None:
        """A new row: the terms' sum is at most ``bound``."""
        merged: dict[int, float] = {}
        for variable, coefficient in terms:
            if variable == ONE:
                bound -= coefficient
            else:
                merged[variable] = merged.get(variable, 0.0) + coefficient
        self.columns += merged.keys()
        self.values += merged.values()
        self.starts.append(len(self.columns))
        self.row_upper.append(bound)


def solve(program: LinearProgram, time_limit: float) -> tuple[Sequence[float] | None, float]:
    """The values of the best solution found, if any, and a lower bound of the objective."""
    import highspy

    lp = highspy.HighsLp()
    lp.num_col_, lp.num_row_ = len(program.cost), len(program.row_upper)
    lp.col_cost_, lp.col_lower_, lp.col_upper_ = np.asarray(program.cost), np.zeros(lp.num_col_), np.ones(lp.num_col_)
    lp.row_lower_ = np.full(lp.num_row_, -highspy.kHighsInf)
    lp.row_upper_ = np.asarray(program.row_upper)
    lp.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    lp.a_matrix_.start_ = np.asarray(program.starts)
    lp.a_matrix_.index_ = np.asarray(program.columns)
    lp.a_matrix_.value_ = np.asarray(program.values)
    kinds = highspy.HighsVarType
    lp.integrality_ = [kinds.kInteger if integer else kinds.kContinuous for integer in program.integer]

    highs = quiet_solver()
    highs.setOptionValue("time_limit", time_limit)
    highs.setOptionValue("mip_rel_gap", 0.0)
    highs.setOptionValue("mip_abs_gap", GAP)
    highs.passModel(lp)
    highs.run()
    info = highs.getInfo()
    bound = info.mip_dual_bound if math.isfinite(info.mip_dual_bound) else 0.0
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return None, bound
    return list(highs.getSolution().col_value), bound


def quiet_solver() -> Any:
    """A solver of HiGHS's that prints nothing."""
    import highspy

    class Quiet(highspy.Highs):
        """The solver, which would greet on standard output before it can be told to be silent."""

        def enableCallbacks(self) -> None:  # the first thing that its constructor does
            self.setOptionValue("output_flag", False)
            super().enableCallbacks()  # type: ignore[no-untyped-call]

    highs = Quiet()  # type: ignore[no-untyped-call]
    highs.setOptionValue("output_flag", False)
    return highs

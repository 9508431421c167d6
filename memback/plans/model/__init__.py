"""Plans of a model's recorded step."""

from __future__ import annotations

from memback.plans.model.planning import (
    KEEPING_EVERYTHING,
    RESERVE,
    TIME_LIMIT,
    FrontierPoint,
    ModelPlan,
    NoPlanError,
    Planning,
    knee,
    leaner,
    plan,
)

__all__ = [
    "KEEPING_EVERYTHING",
    "RESERVE",
    "TIME_LIMIT",
    "FrontierPoint",
    "ModelPlan",
    "NoPlanError",
    "Planning",
    "knee",
    "leaner",
    "plan",
]

"""Plans over the recorded calls of a step, whichever engine has run them: which values to keep, which to recompute."""

from __future__ import annotations

from memback.plans.calls.planner import Choice, Planner
from memback.plans.calls.recorded import RecordedCalls, Value
from memback.plans.calls.timeline import Judgement, Timeline

__all__ = ["Choice", "Judgement", "Planner", "RecordedCalls", "Timeline", "Value"]

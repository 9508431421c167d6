"""Plans of a model's recorded step."""

from __future__ import annotations

from memback.plans.model import planning
from memback.plans.model.planning import *  # noqa: F403 - which lists the public names

__all__: list[str] = []
__all__ += planning.__all__

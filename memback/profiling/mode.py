"""The ways to run a step."""

from __future__ import annotations

from dataclasses import dataclass

from memback.errors import UsageError
from memback.nn.policy import PlanLike

__all__ = ["MODES", "Mode"]


MODES = ("retain-all", "full", "checkpoint", "inference")
"""The ways to run a step, from the most memory to the least."""


@dataclass(frozen=True)
class Mode:
    """A way to run a step: one of :data:`MODES`, with a policy (or a plan) where it is ``checkpoint``.

    Without one, ``checkpoint`` leaves the checkpoints as the model itself has them; in the other modes it has none.
    """

    name: str
    policy: str | PlanLike | None = None

    def __post_init__(self) -> None:
        if self.name not in MODES:
            raise UsageError(f"unknown mode {self.name!r}; there are {', '.join(MODES)}")
        if self.policy is not None and self.name != "checkpoint":
            raise UsageError(f"mode {self.name!r} takes no policy")

    def __str__(self) -> str:
        return self.name if self.policy is None else f"{self.name}:{self.policy_name}"

    @property
    def policy_name(self) -> str | None:
        """What the policy, or the plan in its place, is called."""
        return self.policy if self.policy is None or isinstance(self.policy, str) else self.policy.name

    @property
    def trains(self) -> bool:
        """Whether there is a backward pass."""
        return self.name != "inference"

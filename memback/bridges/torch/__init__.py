"""PyTorch's models under memback's questions: which layer holds what, until when, and what would it cost not to.

    import memback.bridges.torch as bridge

    report = bridge.profile(module, x, loss=lambda y: y.square().mean())
    plan = bridge.plan(module, x, loss=lambda y: y.square().mean(), budget="2GiB")
    with plan.apply(module): ...

needs PyTorch, which the extra ``torch`` brings; nothing else of memback does.
"""

from __future__ import annotations

from memback.errors import MembackError
from memback.extras import how_to_install

try:
    import torch as _torch  # noqa: F401
except ImportError as error:
    raise MembackError(
        f"PyTorch can't be imported ({error}); models of it need it: {how_to_install('torch')}"
    ) from error

from memback.bridges.torch.planning.call_plan import PlanWarning
from memback.bridges.torch.planning.plan import (
    BlockPlan,
    CallPlan,
    NoPlanError,
    TorchPlan,
    Verdict,
    frontier,
    plan,
    verify,
)
from memback.bridges.torch.profile import DryRunWarning, WatchingWarning, profile
from memback.bridges.torch.profile_step import profile_step
from memback.bridges.torch.ranks.predict import predict

__all__ = [
    "BlockPlan",
    "CallPlan",
    "DryRunWarning",
    "NoPlanError",
    "PlanWarning",
    "TorchPlan",
    "Verdict",
    "WatchingWarning",
    "frontier",
    "plan",
    "predict",
    "profile",
    "profile_step",
    "verify",
]

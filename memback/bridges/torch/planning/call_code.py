"""A plan over calls as a Python file of its own, which needs PyTorch alone."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from textwrap import fill

from memback.bridges.torch.planning.call_plan import CallPlan
from memback.bridges.torch.recording import replay

__all__ = ["code"]

_END = '''

# -- the plan

FUNCS = """
{funcs}
""".split()
"""The calls of the forward pass that the plan was made for."""

AGAIN = frozenset(map(int, """
{again}
""".split()))
"""Those that are recomputed in backward."""


def apply(model: torch.nn.Module) -> Callable[[], None]:
    """Have a model run this plan; what is given back, when it is called, has the model run as before."""
    forward = model.forward

    def planned(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        with Region(FUNCS, AGAIN):
            return forward(*args, **kwargs)

    model.forward = planned

    def revert() -> None:
        del model.forward

    return revert
'''


def code(plan: CallPlan) -> str:
    """The replay's own source, the plan, and a function that applies it."""
    about = (
        f"# {plan.name}: a peak of {plan.peak_bytes:,} B above the arguments in place of {plan.full_peak_bytes:,} B,\n"
        f"# {len(plan.again)} of {len(plan.funcs)} calls recomputed. Needs PyTorch alone: import this file, call"
        " apply(model).\n\n"
    )
    end = _END.format(funcs=_wrapped(plan.funcs), again=_wrapped(map(str, sorted(plan.again))))
    return about + inspect.getsource(replay).rstrip() + "\n" + end


def _wrapped(words: Iterable[str]) -> str:
    return fill(" ".join(words), 118, break_long_words=False, break_on_hyphens=False)

"""A plan as Python to paste: plain ``torch.utils.checkpoint``, without memback."""

from __future__ import annotations

import json
from collections import Counter

from memback.bridges.torch.planning.block_plan import BlockPlan
from memback.bridges.torch.recording.body import Body, blocks_in
from memback.errors import UsageError

__all__ = ["code"]

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

_IMPORTS = """\
from contextlib import nullcontext

"""

_SEGMENTS = """\
from torch.utils.checkpoint import checkpoint

# {about}
# A list is a segment: it keeps its input alone and is run again in backward. A list in a list is run again within that.
SEGMENTS = [
{segments}]


"""

_KEPT = '''\
class StatisticsKept:
    """Running statistics are not updated a second time by what is run again."""

    def __init__(self, modules):
        self.buffers = [buffer for module in modules for buffer in module.buffers()]

    def __enter__(self):
        self.values = [buffer.clone() for buffer in self.buffers]

    def __exit__(self, *_):
        for buffer, value in zip(self.buffers, self.values):
            buffer.data.copy_(value)
        del self.values


'''

_FUNCTION = '''\
def checkpointed(model):
    """Have the model run these segments. Hooks of their blocks see what goes into a segment and what comes out."""

    def blocks(item):
        return [block for part in item for block in blocks(part)] if isinstance(item, list) else [item]

    def runner(item):
        if isinstance(item, str):
            block = model.get_submodule(item)
            forward, block.forward = block.forward, lambda x, *same, **named: x  # the segment's first block has run it
            return forward
        parts = [runner(part) for part in item]{modules}

        def run(*args, **named):
            x = parts[0](*args, **named)
            for part in parts[1:]:
                x = part(x, *args[1:], **named)
            return x

        def again(*args, **named):
            return checkpoint(lambda *given: run(*given, **named), *args, use_reentrant=False{contexts})

        return again

    for segment in SEGMENTS:
        run = runner(segment)
        model.get_submodule(blocks(segment)[0]).forward = run
    return model
'''

_MODULES = """

        def contexts():
            return nullcontext(), StatisticsKept([model.get_submodule(block) for block in blocks(item)])"""


def code(plan: BlockPlan) -> str:
    """The lines; ``checkpointed(model)`` in them changes a model in place and gives it back.

    Raises:
        UsageError: a few lines can't say it: nothing is run again; or more than one value flows between blocks of a
            segment, besides what all of them are given alike; or a block of a segment is called several times; or it
            writes to buffers other than running statistics.
    """
    segments = [item for item in plan.body if not isinstance(item, int)]
    if not segments:
        raise UsageError("this plan runs nothing again, so there is no code for it: the model is run as it is")
    numbers = [list(blocks_in(segment)) for segment in segments]
    _check_calls(plan, [number for those in numbers for number in those])
    for first, *others in numbers:
        for number in others:
            _check_flow(plan, first, number)
    changes = any(plan.calls[number].changes for those in numbers for number in those)
    about = f"Peak {plan.peak_bytes:,} B instead of {plan.full_peak_bytes:,} B, above parameters and inputs."
    lines = "".join(f"    {json.dumps(_paths(plan, segment), ensure_ascii=False)},\n" for segment in segments)
    contexts = ", context_fn=contexts" if changes else ""
    return "".join(
        (
            _IMPORTS if changes else "",
            _SEGMENTS.format(about=about, segments=lines),
            _KEPT if changes else "",
            _FUNCTION.format(modules=_MODULES if changes else "", contexts=contexts),
        )
    )


def _paths(plan: BlockPlan, body: Body) -> list[object]:
    return [plan.calls[item].path if isinstance(item, int) else _paths(plan, item) for item in body]


def _check_calls(plan: BlockPlan, numbers: list[int]) -> None:
    times = Counter(call.path for call in plan.calls)
    for number in numbers:
        call = plan.calls[number]
        if times[call.path] > 1:
            raise UsageError(
                f"{call.path} is called {times[call.path]} times, which a few lines can't tell apart: save the plan as"
                " JSON, and apply it"
            )
        other = next((name for name in call.changes if name.rpartition(".")[2] not in _STATISTICS), None)
        if other is not None:
            raise UsageError(
                f"{call.path} writes to {other}, which a few lines can't put back: save the plan as JSON, and apply it"
            )


def _check_flow(plan: BlockPlan, first: int, number: int) -> None:
    """One tensor goes from block to block, as the first argument; all else is given to all alike."""
    match plan.calls[first].flow, plan.calls[number].flow:
        case ["tuple", ["tuple", _, *same], named], ["tuple", ["tuple", ["output", 0], *same_there], named_there] if (
            same == same_there and named == named_there and plan.calls[number - 1].single
        ):
            return
    raise UsageError(
        f"more than one value flows from {plan.calls[number - 1].path} to {plan.calls[number].path}, which a few lines"
        " can't say: save the plan as JSON, and apply it"
    )

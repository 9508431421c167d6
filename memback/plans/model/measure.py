"""Cut a real step into stages, and measure their sizes and costs by dry runs.

What a planner adds up (:mod:`memback.plans.simulate`) are the sizes of what is stored, known from the trace. Whatever
else a stage holds for a moment is its workspace, found by running the step dry in the two extreme ways, with everything
kept and with the stages' inputs alone, and taking what the peak of each action has beyond what is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec import structs

from memback.engine.checkpoint import tensors_in
from memback.engine.node import Edge, Node
from memback.engine.observer import Call
from memback.engine.recipe import RecordedCall
from memback.engine.replay import Replay
from memback.engine.state import current
from memback.errors import UsageError
from memback.plans.actions import Action, Backward, Forward
from memback.plans.model.region import Region, Selection
from memback.plans.model.replay import run_region
from memback.plans.model.selections import selections
from memback.plans.model.trace import StageLayout, Trace
from memback.plans.segments import inputs_alone, recorded
from memback.plans.simulate import Chain
from memback.plans.stage import Stage
from memback.profiling.ledger import DryLedger
from memback.profiling.measuring import Prediction
from memback.profiling.mode import Mode
from memback.profiling.step import Step

if TYPE_CHECKING:
    from memback.nn.module import Module

__all__ = ["Choice", "StepStages", "measure", "planned", "predict", "trace"]


@contextmanager
def planned(
    module: Module, begin: Callable[[], Replay], after: Callable[[Any], None] = lambda out: None, alone: bool = False
) -> Iterator[None]:
    """In the block each call of ``module`` is a planned region, with the execution that ``begin`` makes.

    Where it is ``alone``, those calls are that this thread makes; in others the module runs as before.
    """
    state = current()

    def runner(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if alone and current() is not state:
            return forward(*args, **kwargs) if before is None else before(forward, args, kwargs)
        out = run_region(begin, forward, args, kwargs)
        after(out)
        return out

    before = module._runner
    module._runner = runner
    try:
        yield
    finally:
        module._runner = before


def predict(
    step: Step, begin: Callable[[], Replay], ledger: Callable[[Mapping[int, str]], DryLedger] | None = None
) -> Prediction:
    """Run a step dry, its module as a planned region."""
    assert step.module is not None
    with planned(step.module, begin, alone=True):
        return step.predict(Mode("checkpoint"), ledger or partial(DryLedger, events=False))


class _ByAction(DryLedger):
    """A dry ledger that records the highest number of live bytes during each action of a plan."""

    region: Region

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__(names, events=False)
        self.actions: list[tuple[type[Action], int, int]] = []
        """(what was done, the stage, highest number of live bytes)"""
        self.before_region = 0
        self._noted = 0
        self._seen = 0
        self._last: int | None = None

    def _note(self, kind: type[Action], stage: int) -> None:
        peak = max(self.peaks[self._noted :], default=0)
        self._noted = len(self.peaks)
        if self.actions and self.actions[-1][:2] == (kind, stage):
            peak = max(peak, self.actions.pop()[2])
        self.actions.append((kind, stage, peak))

    def forward_ended(self, call: Call) -> None:
        if isinstance(call.node, RecordedCall) and not self._seen and self._phase == "forward":
            self.before_region = sum(self.intervals[-1].end)
            self._noted = len(self.peaks)
        super().forward_ended(call)
        if self._phase == "recompute":
            return
        if isinstance(call.node, RecordedCall):
            self._seen = call.node.index + 1
            self._note(Forward, self.region.stage_of[call.node.index])
        elif self._seen == len(self.region.calls):
            self._note(Forward, self.region.stages - 1)

    def backward_pass_begins(self) -> None:
        super().backward_pass_begins()
        self._note(Forward, self.region.stages - 1)

    def backward_ended(self, node: Node, edges: Sequence[Edge | None]) -> None:
        super().backward_ended(node, edges)
        if isinstance(node, RecordedCall):
            self._last = self.region.stage_of[node.index]
        if self._last != 0 or isinstance(node, RecordedCall):
            self._note(Backward, self.region.stages - 1 if self._last is None else self._last)

    def recompute_ended(self, node: Node) -> None:
        super().recompute_ended(node)
        if isinstance(node, RecordedCall):
            self._note(Forward, self.region.stage_of[node.index])


@dataclass(frozen=True)
class Choice:
    """A way to keep stages: what of each (None: all that backward needs), and the stages as planners then see them."""

    kept: tuple[Selection | None, ...]
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class StepStages:
    """A step cut into stages, the last of which includes all that comes after the region, up to the loss.

    ``base_bytes`` is live during all of them: what comes before the region holds, and lasting activations.
    ``skeleton`` is the region without actions. The first of the ``choices`` keeps everything of a stage that is kept;
    the others compute more and more kinds of op again, beginning with those that are cheapest for the bytes they give.
    """

    skeleton: Region
    choices: tuple[Choice, ...]
    base_bytes: int
    flops: int

    def region(self, kept: Sequence[Selection | None], actions: Sequence[Action]) -> Region:
        """The region under a plan for the stages."""
        return replace(self.skeleton, kept=tuple(kept), actions=tuple(actions))


def measure(step: Step, traced: Trace | None = None) -> StepStages:
    """Cut a step into stages, and measure these by dry runs; ``traced`` is the step's trace, if it is there already.

    Raises:
        UsageError: the step does not call its module exactly once, or records nothing of it.
    """
    return _Measurement(step, StageLayout(traced or trace(step))).staged()


class _Measurement:
    """Dry runs of a step with known stages."""

    def __init__(self, step: Step, layout: StageLayout) -> None:
        self.step, self.layout = step, layout
        self.n = len(layout.bounds) - 1
        self.skeleton = Region(
            calls=tuple(call.shape for call in layout.calls),
            bounds=layout.bounds,
            crossing=layout.crossing,
            lasting=layout.lasting,
            kept=(None,) * self.n,
            actions=(),
        )
        self.everything: list[Action] = list(recorded(0, self.n))
        self.inputs: list[Action] = list(inputs_alone(self.n))

    def staged(self) -> StepStages:
        """The stages, with a choice for each sort of op that may be computed again."""
        layout, trace = self.layout, self.layout.trace
        full, _ = self._run(self.skeleton.kept, self.everything)
        self.base = full.before_region + trace.bytes_of(layout.lasting_buffers)
        self.after_flops = full.flops - sum(call.flops for call in layout.calls)
        held = (full.saved_at_end_of_forward or 0) - full.before_region
        self.after_saved = max(held - trace.bytes_of(layout.saved), 0)
        lean, _ = self._run(self.skeleton.kept, self.inputs)
        stages = self._with_workspace(self._stages(None), [(full, self.everything), (lean, self.inputs)])
        choices = [Choice(self.skeleton.kept, stages)]
        choices += [self._choice(selection) for selection in selections(layout)]
        return StepStages(self.skeleton, tuple(choices), self.base, full.flops)

    def _choice(self, selections: Sequence[Selection]) -> Choice:
        kept: tuple[Selection | None, ...] = (*selections[:-1], None)  # the last stage's backward follows at once
        ledger, runs = self._run(kept, self.everything)
        lean, _ = self._run(kept, self.inputs)
        done = [(ledger, self.everything), (lean, self.inputs)]
        return Choice(kept, self._with_workspace(self._stages(kept, runs), done))

    def _stages(self, kept: Sequence[Selection | None] | None, runs: Mapping[int, int] | None = None) -> list[Stage]:
        """The stages without workspace; ``runs`` says how often each call is run again for its stage's backward."""
        layout, trace = self.layout, self.layout.trace
        gradients = _parameter_gradients(layout)
        stages = []
        for i in range(self.n):
            last = i == self.n - 1
            flops = sum(layout.calls[k].flops for k in layout.calls_of(i)) + last * self.after_flops
            again = sum(layout.calls[k].flops * (runs or {}).get(k, 0) for k in layout.calls_of(i))
            saved = layout.saved_of(i, None if kept is None else kept[i])
            stages.append(
                Stage(
                    forward_cost=flops,
                    backward_cost=2 * flops + again,
                    output_bytes=trace.bytes_of(layout.activations[i + 1]),
                    saved_bytes=trace.bytes_of(saved) + last * self.after_saved,
                    parameter_gradient_bytes=gradients[i],
                )
            )
        return stages

    def _run(
        self, kept: tuple[Selection | None, ...], actions: Sequence[Action]
    ) -> tuple[_ByAction, Mapping[int, int]]:
        region = replace(self.skeleton, kept=kept, actions=tuple(actions))
        run = region.begin()
        watched = type("_OfRegion", (_ByAction,), {"region": region})
        ledger = predict(self.step, lambda: run, watched).ledger
        assert isinstance(ledger, _ByAction)
        return ledger, run.runs

    def _with_workspace(
        self, stages: list[Stage], done: Sequence[tuple[_ByAction, Sequence[Action]]]
    ) -> tuple[Stage, ...]:
        most: dict[tuple[type[Action], int], int] = {}
        for ledger, actions in done:
            for key, size in _beyond(Chain(stages), actions, ledger.actions, self.base).items():
                most[key] = max(most.get(key, 0), size)
        return tuple(
            structs.replace(
                stage,
                forward_workspace=most.get((Forward, i), 0),
                backward_workspace=most.get((Backward, i), 0),
            )
            for i, stage in enumerate(stages)
        )


def trace(step: Step) -> Trace:
    """What a dry run of the step tells of its module's calls.

    Raises:
        UsageError: the step does not call the module exactly once, or records nothing of it.
    """
    if step.module is None:
        raise UsageError("a plan needs the module that it is for")
    traces: list[Trace] = []

    def begin() -> Trace:
        if traces:
            raise UsageError(
                f"the step calls {type(step.module).__name__} more than once: plan a module that it calls once"
            )
        traces.append(Trace())
        return traces[0]

    def after(out: Any) -> None:
        if traces:
            traces[0].returned(tensors_in(out))

    with planned(step.module, begin, after, alone=True):
        step.predict(Mode("checkpoint"))
    if not traces or not traces[0].calls:
        raise UsageError(
            f"the step records no call of {type(step.module).__name__}: it must call the module itself, with"
            " parameters that require gradients"
        )
    traces[0].release()
    return traces[0]


def _parameter_gradients(layout: StageLayout) -> list[int]:
    """Bytes of parameter gradients by the stage whose backward makes them first."""
    sizes = [0] * (len(layout.bounds) - 1)
    seen: set[int] = set()
    for i in reversed(range(len(sizes))):
        for call in layout.calls[layout.bounds[i] : layout.bounds[i + 1]]:
            for leaf, size in call.leaves:
                if leaf not in seen:
                    seen.add(leaf)
                    sizes[i] += size
    return sizes


def _beyond(
    chain: Chain, actions: Sequence[Action], done: Sequence[tuple[type[Action], int, int]], base: int
) -> dict[tuple[type[Action], int], int]:
    """How far the peak of each action rose above what the chain says is stored, by kind of action and stage."""
    beyond: dict[tuple[type[Action], int], int] = {}
    state, events = chain.start(), iter(done)
    event = next(events, None)
    for action in actions:
        key = (type(action), action.stage)
        outcome = chain.do(state, action)
        assert not isinstance(outcome, str), outcome
        stored, state = base + outcome[0], outcome[1]
        # what a reversal computes again belongs to it, unless the plan says so in an action of its own
        while event is not None and (event[:2] == key or (isinstance(action, Backward) and event[1] == action.stage)):
            beyond[key] = max(beyond.get(key, 0), event[2] - stored)
            event = next(events, None)
    if event is not None:
        raise AssertionError(f"the dry run did {event[0].__name__} of stage {event[1]}, which was not planned")
    return beyond

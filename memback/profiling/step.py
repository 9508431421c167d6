"""Run a step to record its buffers, its time, its measured peak, and the growth of the process.

Each of these disturbs the others (a ledger takes time, tracemalloc takes memory), so each has a run of its own; the
step repeats itself exactly, since the random stream, the gradients and the running statistics are put back in between.
"""

from __future__ import annotations

import gc
import hashlib
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from memback.dry.array import ShapeArray
from memback.dry.memory import dry_memory, fresh_dry_memory
from memback.dry.mode import dry_run
from memback.engine.arrays import root
from memback.engine.modes import no_grad
from memback.engine.observer import Observer
from memback.engine.state import current
from memback.engine.tape import Tape
from memback.engine.tensor import Tensor
from memback.errors import MembackError, UsageError
from memback.nn.policy import applied
from memback.profiling.accounts import peak_of
from memback.profiling.ledger import DryLedger, Ledger
from memback.profiling.measuring import (
    AtEveryInterval,
    Bookkeeping,
    Observation,
    Peak,
    PhaseClock,
    Prediction,
    RssSampler,
    Seconds,
    TracedPeaks,
)
from memback.profiling.mode import Mode
from memback.profiling.precision import warn_of_subnormal_gradients
from memback.profiling.stand_ins import stand_ins

if TYPE_CHECKING:
    from memback.nn.module import Module
    from memback.optim import Optimizer

__all__ = ["Step", "dry_arguments"]


@contextmanager
def dry_arguments(module: Module | None, optimizer: Optimizer | None = None) -> Iterator[None]:
    """In the block, parameters, buffers and optimiser state hold no memory, and neither does what an op is given.

    So it is for this thread; others go on with the real ones.
    """
    with stand_ins(module, optimizer, ShapeArray.argument_like), dry_run():
        yield


class Step:
    """A training step that can be run again and again, each time to the same bits.

    Args:
        function: runs forward and returns the scalar loss.
        module: whose parameters are trained; they, their gradients and the buffers are as before after every run.
        optimizer: whose update ends the step, if there is one; its state is as before, too.
    """

    def __init__(
        self, function: Callable[[], Tensor], module: Module | None, optimizer: Optimizer | None = None
    ) -> None:
        self.function = function
        self.module = module
        self.optimizer = optimizer
        state = current()
        self._random = (state.seed, state.draws)
        self._gradients_looked_at = False
        self._update_workspace: dict[tuple[Any, ...], int] = {}

    def run(
        self, mode: Mode, observer: Observer | None, clock: Callable[[], None] = lambda: None, update: bool = True
    ) -> Tensor:
        """Run once; ``clock`` is called between forward and backward, the optimiser unless not ``update``.

        Returns the loss.
        """
        state = current()
        state.seed, state.draws = self._random
        before = state.observer, state.checkpointing
        state.observer, state.checkpointing = observer, mode.name == "checkpoint"
        try:
            with applied(self.module, mode.policy) if self.module is not None else _no_policy(mode):
                if not mode.trains:
                    with no_grad():
                        loss = self._forward()
                    clock()
                else:
                    with Tape("all" if mode.name == "retain-all" else "needed"):
                        loss = self._forward()
                        clock()
                        loss.backward()
                    if update and self.optimizer is not None:
                        self._update(observer, self.optimizer)
        finally:
            state.observer, state.checkpointing = before
        return loss

    def _update(self, observer: Observer | None, optimizer: Optimizer) -> None:
        if observer is not None:
            observer.update_begins()
        if current().dry:
            self._update_dry(current().stand_in(optimizer))
        else:
            optimizer.step()
        if observer is not None:
            observer.update_ended()

    def _update_dry(self, optimizer: Optimizer) -> None:
        """Update without memory: piece by piece once, then in one go wherever the gradients have the same layout."""
        grads = [p.grad for p in optimizer.parameters]
        alike = tuple([None if g is None else (g.shape, g.dtype, getattr(g, "strides", None)) for g in grads])
        memory = dry_memory()
        if alike in self._update_workspace:
            memory.allocate(self._update_workspace[alike])
            memory.free(self._update_workspace[alike])
            return
        before, highest = memory.live, memory.peak
        memory.reset_peak()
        optimizer.step()
        if memory.live == before:
            self._update_workspace[alike] = memory.peak - before
        memory.peak = max(memory.peak, highest)

    def _forward(self) -> Tensor:
        loss: object = self.function()
        if not isinstance(loss, Tensor) or loss.size != 1:
            raise UsageError(f"a step must return its scalar loss as a Tensor, not {loss!r:.80}")
        return loss

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """The block starts without gradients; afterwards they are as before, and so is whatever the step changes."""
        state = current()
        random = (state.seed, state.draws)
        parameters = [] if self.module is None else list(self.module.parameters())
        gradients = [p.grad for p in parameters]
        changed = [] if self.module is None or state.dry else [a for _, a in self.module.named_buffers()]
        optimizer = None if state.dry else self.optimizer
        steps: Any = None
        if optimizer is not None:
            steps = optimizer.steps
            changed += [p.data for p in parameters]
            changed += [a for arrays in optimizer.state.values() for a in arrays]
        copies = [None if isinstance(a, ShapeArray) else a.copy() for a in changed]
        for parameter in parameters:
            parameter.grad = None
        try:
            yield
        finally:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            for array, copy in zip(changed, copies, strict=True):
                if copy is not None:
                    array[...] = copy
            if optimizer is not None:
                optimizer.steps = steps
            state.seed, state.draws = random

    def names(self) -> dict[int, str]:
        """What the arguments are called, by the id of their root buffer."""
        if self.module is None:
            return {}
        state = current()
        buffers = [(f"buffer {name}", array) for name, array in self.module.named_buffers()]
        names = {id(root(a)): name for name, array in buffers for a in (array, state.stand_in(array))}
        names |= {id(root(p.data)): f"parameter {name}" for name, p in self.module.named_parameters()}
        return names

    # -- one run for each question

    def account(self, mode: Mode) -> Observation:
        """Run under a ledger."""
        with self.unchanged():
            ledger = Ledger(self.names(), timed=True)
            with RssSampler() as rss:
                loss = self.run(mode, ledger)
            ledger.finish()
            sha, size = self._gradients() if mode.trains else (None, 0)
            return Observation(ledger, float(loss.data), sha, size, rss.growth)

    def time(self, mode: Mode) -> Seconds:
        """Run for the time alone."""
        with self.unchanged():
            phases = PhaseClock()
            middle: list[float] = []
            start = time.perf_counter()
            self.run(mode, phases, lambda: middle.append(time.perf_counter()), update=False)
            end = time.perf_counter()
        return Seconds(middle[0] - start, end - middle[0] - phases.recompute, phases.recompute)

    def measure(self, mode: Mode, ledger: Ledger) -> tuple[Peak, int]:
        """Run twice under tracemalloc: the measured peak, and Python's own bytes at that moment (bookkeeping).

        Raises:
            MembackError: tracemalloc is in use already, so that its figures would not be this step's alone.
        """
        if tracemalloc.is_tracing():
            raise MembackError("tracemalloc is tracing already: stop it before a profile, which measures with it")
        recorder = TracedPeaks(len(ledger.intervals))
        self._traced(mode, recorder)
        bookkeeping = Bookkeeping(int(recorder.peaks.argmax()))
        self._traced(mode, bookkeeping)
        number, parts = peak_of(ledger.intervals, (recorder.peaks - bookkeeping.bytes).tolist())
        return Peak(sum(parts.values()), ledger.intervals[number], parts), bookkeeping.bytes

    def _traced(self, mode: Mode, observer: AtEveryInterval) -> None:
        with self.unchanged():
            gc.collect()
            tracemalloc.start()
            try:
                self.run(mode, observer)
                observer.finish()
            finally:
                tracemalloc.stop()

    def predict(self, mode: Mode, make_ledger: Callable[[Mapping[int, str]], DryLedger] = DryLedger) -> Prediction:
        """Run dry: the same code on arrays that hold no memory. ``make_ledger`` gives the ledger that watches.

        Raises:
            NoValuesError: the step takes decisions on values.
        """
        with fresh_dry_memory(), dry_arguments(self.module, self.optimizer), self.unchanged():
            ledger = make_ledger(self.names())
            loss = self.run(mode, ledger)
            ledger.finish()
            del loss  # which outlives the step, as in a real run
            number, parts = peak_of(ledger.intervals, ledger.peaks)
            return Prediction(Peak(sum(parts.values()), ledger.intervals[number], parts), ledger)

    def _gradients(self) -> tuple[str, int]:
        digest, size = hashlib.sha256(), 0
        parameters = {} if self.module is None else dict(self.module.named_parameters())
        if not self._gradients_looked_at:
            self._gradients_looked_at = True
            warn_of_subnormal_gradients(parameters.items(), stacklevel=6)
        for name in sorted(parameters):
            grad = parameters[name].grad
            if grad is not None:
                digest.update(np.ascontiguousarray(grad).tobytes())
                size += grad.nbytes
        return digest.hexdigest(), size


@contextmanager
def _no_policy(mode: Mode) -> Iterator[None]:
    if mode.policy is not None:
        raise UsageError(f"mode {mode} needs `module`, the model whose layers the policy is applied to")
    yield

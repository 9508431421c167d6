"""One training step of a PyTorch module, that can be run again and again to the same bits."""

from __future__ import annotations

import hashlib
import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensor
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_map

from memback.bridges.torch.recording.allocator import Allocated, allocated
from memback.bridges.torch.recording.dry_mode import in_dry_run
from memback.bridges.torch.recording.exchanges import exchanges_told
from memback.bridges.torch.recording.fake import DryRunError, is_dry
from memback.bridges.torch.recording.paths import described
from memback.bridges.torch.recording.restoring import leaves_below, other_streams_kept, weights_kept
from memback.bridges.torch.recording.sharding import reshard, strategy_of
from memback.bridges.torch.recording.standing_in import standing_in
from memback.bridges.torch.recording.storages import tensors, unwrapped
from memback.bridges.torch.recording.tracking import Tracker
from memback.errors import MembackError, UsageError
from memback.profiling.measuring import RssSampler, Seconds
from memback.profiling.mode import Mode

__all__ = ["Account", "DryRunError", "Place", "Step", "explained", "sum_of_outputs"]

Loss = Callable[[Any], torch.Tensor]

Place = Callable[..., AbstractContextManager[tuple[torch.nn.Module, Any]]]
"""What has a module and its inputs stand in for the real ones, as
:func:`~memback.bridges.torch.recording.standing_in.standing_in` does."""


@dataclass(frozen=True)
class Account:
    """What a watched real run showed."""

    tracker: Tracker
    loss: float
    gradient_sha256: str | None
    rss_growth: int


def sum_of_outputs(output: Any) -> torch.Tensor:
    """The sum of all floating-point numbers that a module gives: a loss for want of another one.

    What is a loss itself, the one number that is given or what the output calls ``loss``, stays as it is.

    Raises:
        UsageError: there are none.
    """
    given = getattr(output, "loss", None)
    if isinstance(given, torch.Tensor):
        return given
    found = [tensor for tensor in tensors(output) if tensor.is_floating_point() or tensor.is_complex()]
    if not found:
        raise UsageError("the module gives no floating-point tensor to take a loss of; give a loss of its output")
    if len(found) == 1 and found[0].numel() == 1:
        return found[0]
    sums = [tensor.abs().sum() if tensor.is_complex() else tensor.sum() for tensor in found]
    return sums[0] if len(sums) == 1 else torch.stack([one.float() for one in sums]).sum()


@dataclass(frozen=True)
class Step:
    """A module, what it is called with, and the loss of what it gives.

    ``autocast`` is the type to which PyTorch's automatic mixed precision turns the forward pass, if at all, and
    ``place`` where it is run dry, if elsewhere than where the module is.
    """

    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    loss: Loss = sum_of_outputs
    autocast: torch.dtype | None = None
    place: Place | None = None
    _outside: list[tuple[torch.Tensor, Any]] = field(default_factory=list, init=False, repr=False, compare=False)
    """Leaves that are no arguments and have been given gradients, and what they had before."""

    @staticmethod
    def of(
        module: torch.nn.Module,
        inputs: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None,
        loss: Loss,
        autocast: torch.dtype | None,
    ) -> Step:
        """A step whose backward ends at its inputs, whatever these were computed from."""
        return Step(module, tree_map(_leaf, inputs), tree_map(_leaf, dict(kwargs or {})), loss, autocast)

    @property
    def dry(self) -> bool:
        """Whether it holds no memory to begin with."""
        return is_dry(self.module, self.args, self.kwargs)

    @cached_property
    def strategy(self) -> str | None:
        """How several ranks train the module, if they do."""
        return strategy_of(self.module)

    @property
    def device(self) -> torch.device:
        """Where the parameters are, or the inputs of a module that has none."""
        first = next(iter((*self.module.parameters(), *tensors((self.args, self.kwargs)))), None)
        return torch.device("cpu") if first is None else first.device

    def arguments(self) -> list[tuple[str, torch.Tensor]]:
        """Everything that is there before the step, by name."""
        named = [(f"parameter {name}", tensor) for name, tensor in self.module.named_parameters()]
        named += [(f"buffer {name}", tensor) for name, tensor in self.module.named_buffers()]
        return named + [("input", tensor) for tensor in tensors((self.args, self.kwargs))]

    def forward(self) -> torch.Tensor:
        """The loss.

        Raises:
            UsageError: it is not one number.
        """
        kind = self.device.type
        with nullcontext() if self.autocast is None else torch.autocast(kind, self.autocast):
            loss = self.loss(self.module(*self.args, **self.kwargs))
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else f"{loss!r:.80}"
            raise UsageError(f"the loss must be a tensor of one number, not {what}")
        return loss

    def run(self, mode: Mode, between: Callable[[torch.Tensor], None] = lambda loss: None) -> torch.Tensor:
        """Run once, and give the loss; ``between`` is told of it between forward and backward.

        A mode's plan (of :mod:`memback.bridges.torch.plan`, a policy's too) is applied for as long.

        Raises:
            UsageError: the loss is not one number, or does not depend on anything that is trained; or the plan is for
                another model.
        """
        with nullcontext() if mode.policy is None else cast(Any, mode.policy).apply(self.module):
            return self._run(mode, between)

    def _run(self, mode: Mode, between: Callable[[torch.Tensor], None]) -> torch.Tensor:
        if not mode.trains:
            with torch.no_grad():
                loss = self.forward()
            between(loss)
            return loss
        with torch.enable_grad():
            loss = self.forward()
        between(loss)
        if not loss.requires_grad:
            raise UsageError(
                "the loss depends on no parameter or input that requires a gradient, so there is no backward pass;"
                " set requires_grad, or ask for --mode inference alone"
            )
        self._set_aside(loss)
        loss.backward()
        return loss

    def _set_aside(self, loss: torch.Tensor) -> None:
        """Note the gradients of leaves that are no arguments, such as a loss's own weights, which start without."""
        arguments = {id(tensor) for _, tensor in self.arguments()}
        for leaf in leaves_below(loss):
            if id(leaf) not in arguments:
                self._outside.append((leaf, leaf.grad))
                leaf.grad = None

    # -- one run for each question

    def watch(self, mode: Mode, events: bool = True) -> tuple[Tracker, torch.Tensor]:
        """Run under a tracker, which keeps a timeline of ``events`` or none, and give it and the loss."""
        kind = None if self.place is None else self.device.type
        tracker = Tracker(self.arguments(), self.module, mode.name == "retain-all", events, kind)
        tracker.told_of_forward = True
        with exchanges_told(tracker, self.strategy), _seen(), tracker:
            loss = self.run(mode, tracker.forward_ended if mode.trains else lambda loss: None)
        tracker.finish(loss)
        return tracker, loss

    def account(self, mode: Mode) -> Account:
        """Run for real, under a tracker."""
        self.run_in(mode)
        with self.unchanged():
            with RssSampler() as rss:
                tracker, loss = self.watch(mode)
            sha = self._gradient_sha256() if mode.trains else None
            return Account(tracker, loss.detach().item(), sha, rss.growth)

    def predict(self, mode: Mode) -> Tracker:
        """Run dry: the same ops on tensors that hold no memory.

        Raises:
            DryRunError: the step can't be run so, such as one that takes decisions on values.
        """
        with self.standing_in() as step:
            if not (self.strategy == "ddp" and mode.trains):  # as DDP's stand-in is good for one step
                step.run_in(mode)
            with step.unchanged():
                tracker = step.watch(mode)[0]
            if not tracker.left or (self.strategy == "ddp" and mode.trains):
                return tracker
            with step.unchanged():  # a first step makes what later ones find, and a real one is not the first
                return step.watch(mode)[0]

    @contextmanager
    def standing_in(self) -> Iterator[Step]:
        """In the block there is a step like this one that is run dry.

        Raises:
            DryRunError: what goes wrong in it; see :func:`~memback.bridges.torch.recording.standing_in.standing_in`,
            too.
        """
        inputs = self.args, dict(self.kwargs)
        place = standing_in if self.place is None else self.place
        with explained(), place(self.module, inputs, self.loss) as (module, (args, kwargs)):
            yield replace(self, module=module, args=args, kwargs=kwargs)

    def run_in(self, mode: Mode) -> None:
        """Run so often that a strategy has what it makes in its first steps, such as DDP's buckets, rebuilt."""
        for _ in range(2 if self.strategy == "ddp" else 1 if self.strategy else 0):
            with self.unchanged():
                self.run(mode)

    def allocated(self, mode: Mode) -> Allocated | None:
        """Run for what PyTorch's allocator gives out, unwatched; None where others than this thread give it back."""
        if self.strategy is not None and self.device.type == "cpu":
            return None
        self.run_in(mode)
        with self.unchanged():
            return allocated(lambda: self.run(mode), self.device)

    def time(self, mode: Mode) -> Seconds:
        """Run for the time alone."""
        with self.unchanged(), _RecomputeClock(self.now) as clock:
            times = [self.now()]
            self.run(mode, lambda loss: times.append(self.now()))
            times.append(self.now())
        return Seconds(times[1] - times[0], times[2] - times[1] - clock.seconds, clock.seconds)

    def now(self) -> float:
        """Seconds on a clock, once the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """The block starts without gradients; afterwards they, buffers, inputs and random streams are as they were.


        So are parameters that hooks on them change, see :func:`~.restoring.weights_kept`.
        """
        reshard(self.module)
        self._outside.clear()
        leaves = [tensor for _, tensor in self.arguments()]
        gradients = [tensor.grad for tensor in leaves]
        dry = self.dry or in_dry_run()
        inputs = [] if dry else list(tensors((self.args, self.kwargs)))
        versions = [tensor._version for tensor in inputs]
        changed = [] if dry else [*self.module.buffers(), *inputs, *self._gradients_in_buckets()]
        copies = [tensor.detach().clone() for tensor in changed]
        devices = [self.device] if self.device.type == "cuda" else []
        weights = [] if dry or self.strategy else list(self.module.parameters())
        streams = torch.random.fork_rng(devices, enabled=not self.dry)
        with streams, other_streams_kept(), weights_kept(weights), _uncompiled():
            for tensor in leaves:
                tensor.grad = None
            try:
                yield
            finally:
                reshard(self.module)
                for tensor, gradient in zip(leaves, gradients, strict=True):
                    tensor.grad = gradient
                for tensor, gradient in self._outside:
                    tensor.grad = gradient
                self._outside.clear()
                same = {id(t) for t, version in zip(inputs, versions, strict=True) if t._version == version}
                with torch.no_grad():
                    for tensor, copy in zip(changed, copies, strict=True):
                        if id(tensor) not in same:
                            tensor.copy_(copy)

    def _gradients_in_buckets(self) -> list[torch.Tensor]:
        """Gradients whose memory is DDP's buckets, which the next step writes into."""
        if not getattr(self.module, "gradient_as_bucket_view", False):
            return []
        return [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]

    def _gradient_sha256(self) -> str:
        """Over every parameter's gradient in the order of their names, each in row-major order."""
        digest = hashlib.sha256()
        for _, parameter in sorted(self.module.named_parameters(), key=lambda pair: pair[0]):
            if parameter.grad is not None:
                for part in unwrapped(parameter.grad):
                    dense = part.to_dense() if part.is_sparse else part
                    flat = dense.detach().cpu().contiguous().reshape(-1)
                    digest.update(flat.view(torch.uint8).numpy())
        return digest.hexdigest()


def _leaf(value: Any) -> Any:
    """Cut a tensor off from what it was computed from: backward ends there."""
    if not isinstance(value, torch.Tensor) or value.is_leaf:
        return value
    return value.detach().requires_grad_(value.requires_grad)


class _RecomputeClock:
    """The seconds for which modules run in the midst of backward, as checkpoints have them run again."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.seconds = 0.0
        self.now = now
        self._depth = 0
        self._began = 0.0

    def __enter__(self) -> _RecomputeClock:
        self._hooks = [
            register_module_forward_pre_hook(self._begins),
            register_module_forward_hook(self._ended, always_call=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begins(self, module: Any, inputs: Any) -> None:
        if torch._C._current_graph_task_id() == -1:
            return
        if self._depth == 0:
            self._began = self.now()
        self._depth += 1

    def _ended(self, module: Any, inputs: Any, output: Any) -> None:
        if torch._C._current_graph_task_id() == -1:
            return
        self._depth -= 1
        if self._depth == 0:
            self.seconds += self.now() - self._began


@contextmanager
def _uncompiled() -> Iterator[None]:
    """Have functions under torch.compile run as they are written: the compiler's kernels make memory unseen."""
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def _seen() -> Iterator[None]:
    """Say in words that a step uses transforms which let nobody see what they keep.

    Raises:
        MembackError: it does.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_unseen(error):
            raise
        raise MembackError(
            "the step uses torch.func (grad, vjp, jacrev or hessian), of which no saved-tensor hook can see what it"
            f" keeps, so that it can't be watched: take torch.autograd.grad instead. {described(error)}"
        ) from error


def _is_unseen(error: RuntimeError) -> bool:
    return "torch.func" in str(error) and "saved tensor hooks" in str(error)


@contextmanager
def explained(what: str = "module") -> Iterator[None]:
    """Tell what goes wrong in a dry run as a :class:`DryRunError`, which is enough: PyTorch logs it as well."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with _seen():
            yield
    except MembackError:
        raise
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise DryRunError(
            f"the {what} takes a decision on values ({error.func}), which a dry run does not have: run it for real"
        ) from error
    except Exception as error:
        if isinstance(error, KeyError) and error.args and isinstance(error.args[0], FakeTensor):
            raise DryRunError(
                f"the {what} looks up a parameter that another one stands for in a dry run, as an optimiser that steps"
                f" in hooks does: take bridge.profile_step, whose parameters stay what they are. {described(error)}"
            ) from error
        raise DryRunError(f"the {what} can't be run dry: {described(error)}") from error
    finally:
        log.setLevel(level)

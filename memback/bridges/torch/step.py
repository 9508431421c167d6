"""One training step of a PyTorch module, that can be run again and again to the same bits."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from memback.bridges.torch.exchanges import exchanges_told
from memback.bridges.torch.fake import is_dry
from memback.bridges.torch.sharding import reshard, strategy_of
from memback.bridges.torch.standing_in import standing_in
from memback.bridges.torch.storages import tensors, unwrapped
from memback.bridges.torch.tracking import Tracker
from memback.errors import UsageError
from memback.profiling.passes import Mode, RssSampler, Seconds

__all__ = ["Account", "Step", "sum_of_outputs"]

Loss = Callable[[Any], torch.Tensor]


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

    ``autocast`` is the type to which PyTorch's automatic mixed precision turns the forward pass, if at all.
    """

    module: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    loss: Loss = sum_of_outputs
    autocast: torch.dtype | None = None

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

    def run(self, mode: Mode, between: Callable[[], None] = lambda: None) -> torch.Tensor:
        """Run once, and give the loss; ``between`` is called between forward and backward.

        Raises:
            UsageError: the loss is not one number, or does not depend on anything that is trained.
        """
        if not mode.trains:
            with torch.no_grad():
                loss = self.forward()
            between()
            return loss
        with torch.enable_grad():
            loss = self.forward()
        between()
        if not loss.requires_grad:
            raise UsageError(
                "the loss depends on no parameter or input that requires a gradient, so there is no backward pass;"
                " set requires_grad, or ask for --mode inference alone"
            )
        loss.backward()
        return loss

    # -- one run for each question

    def watch(self, mode: Mode) -> tuple[Tracker, torch.Tensor]:
        """Run under a tracker, and give it and the loss."""
        tracker = Tracker(self.arguments(), self.module, retain_all=mode.name == "retain-all")
        with exchanges_told(tracker), tracker:
            loss = self.run(mode)
        tracker.finish()
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
            MembackError: the step takes decisions on values.
        """
        with standing_in(self.module, (self.args, dict(self.kwargs))) as (module, (args, kwargs)):
            step = replace(self, module=module, args=args, kwargs=kwargs)
            if not (self.strategy == "ddp" and mode.trains):  # as DDP's stand-in is good for one step
                step.run_in(mode)
            with step.unchanged():
                return step.watch(mode)[0]

    def run_in(self, mode: Mode) -> None:
        """Have what a strategy makes in its first steps, and keeps: DDP's buckets as rebuilt, FSDP2's whole parameters."""
        for _ in range(2 if self.strategy == "ddp" else 1 if self.strategy else 0):
            with self.unchanged():
                self.run(mode)

    def time(self, mode: Mode) -> Seconds:
        """Run for the time alone."""
        with self.unchanged():
            clock = [self._now()]
            self.run(mode, lambda: clock.append(self._now()))
            clock.append(self._now())
        return Seconds(clock[1] - clock[0], clock[2] - clock[1], 0.0)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """The block starts without gradients; afterwards they, buffers and random streams are as they were."""
        reshard(self.module)
        leaves = [tensor for _, tensor in self.arguments()]
        gradients = [tensor.grad for tensor in leaves]
        changed = [] if self.dry else [*self.module.buffers(), *self._gradients_in_buckets()]
        copies = [tensor.clone() for tensor in changed]
        with torch.random.fork_rng(enabled=not self.dry):
            for tensor in leaves:
                tensor.grad = None
            try:
                yield
            finally:
                reshard(self.module)
                for tensor, gradient in zip(leaves, gradients, strict=True):
                    tensor.grad = gradient
                with torch.no_grad():
                    for tensor, copy in zip(changed, copies, strict=True):
                        tensor.copy_(copy)

    def _gradients_in_buckets(self) -> list[torch.Tensor]:
        """Gradients whose memory is DDP's buckets, which the next step writes into."""
        if not getattr(self.module, "gradient_as_bucket_view", False):
            return []
        return [parameter.grad for parameter in self.module.parameters() if parameter.grad is not None]

    def _gradient_sha256(self) -> str:
        """Over every parameter's gradient in the order of their names."""
        digest = hashlib.sha256()
        for _, parameter in sorted(self.module.named_parameters(), key=lambda pair: pair[0]):
            if parameter.grad is not None:
                for part in unwrapped(parameter.grad):
                    dense = part.to_dense() if part.is_sparse else part
                    flat = dense.detach().cpu().contiguous().reshape(-1)
                    digest.update(flat.view(torch.uint8).numpy())
        return digest.hexdigest()

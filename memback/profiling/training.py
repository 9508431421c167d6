"""Training a profile for real, step by step, so that it can be stopped and resumed to the same bits."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from memback.engine.micro_batches import accumulate_gradients
from memback.engine.modes import no_grad
from memback.engine.offload import save_on_disk
from memback.engine.state import current
from memback.engine.tape import Tape
from memback.errors import MembackError, UsageError, shorten
from memback.nn.module import check_state
from memback.nn.policy import PlanLike, Policy, applied
from memback.nn.state import read, write
from memback.optim import AdamW
from memback.profiling.accounts import Category, Row
from memback.profiling.ledger import Ledger
from memback.profiling.precision import warn_of_subnormal_gradients, warn_of_wider_values
from memback.profiling.workload import Workload

__all__ = ["StepResult", "Training"]

_SCHEMA: Final = "memback.training/1"

Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class _About(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a saved training says of itself beside its arrays; ``random`` is the stream's seed and its draws."""

    schema: Literal["memback.training/1"]
    profile: str
    training: str
    step: Number
    random: tuple[Number, Number]


_LOOK_EVERY = 100
"""Steps from one look at the gradients to the next: a look reads each of them twice."""


@dataclass(frozen=True)
class StepResult:
    """One training step: its number from 0, loss, seconds, and bytes by category at the end of its forward pass."""

    step: int
    loss: float
    seconds: float
    samples: int
    live: Mapping[Category, int]


class Training:
    """A run of a profile.

    Args:
        work: the workload, not dry.
        policy: the checkpoint policy or plan, or None for full retention. It changes memory and time, and no bit of
            the result.
        micro_batches: into how many parts a batch is divided; gradients add up over them, as
            :func:`memback.accumulate_gradients` says.
        offload: whether saved activations wait on disk (:class:`memback.save_on_disk`). Changes no bit of the result.

    Raises:
        UsageError: there is no such policy, or the batch has fewer samples than there are to be micro-batches.
    """

    def __init__(
        self, work: Workload, policy: str | PlanLike | None = None, micro_batches: int = 1, offload: bool = False
    ) -> None:
        if not 1 <= micro_batches <= work.profile.data.batch:
            raise UsageError(
                f"{micro_batches} micro-batches can't be made of a batch of {work.profile.data.batch}: at most one a"
                " sample"
            )
        self.work = work
        self.policy = Policy.parse(policy) if isinstance(policy, str) else policy
        self.micro_batches = micro_batches
        self.disk = save_on_disk() if offload else None
        self.next_step = 0
        self._warned = False

    def steps(self, until: int) -> Iterator[StepResult]:
        """Train up to step ``until`` (exclusive), giving each step's result.

        Warns (:class:`memback.PrecisionWarning`) where the first step computes in a wider dtype than the parameters',
        and, once, where the first or a hundredth step after it has subnormal gradients.

        Raises:
            MembackError: the loss is not finite any more.
        """
        self.work.model.train()
        first = self.next_step
        while self.next_step < until:
            with np.errstate(over="ignore", divide="ignore", invalid="ignore"):  # it is met in the loss
                result = self._step(self.next_step - first)
            yield result

    def _look(self, rows: Sequence[Row], since_first: int) -> None:
        model = self.work.model
        if since_first == 0:
            warn_of_wider_values(rows, model.parameters(), stacklevel=4)
        if since_first % _LOOK_EVERY == 0 and not self._warned:
            self._warned = warn_of_subnormal_gradients(model.named_parameters(), stacklevel=4)

    def _step(self, since_first: int) -> StepResult:
        work, step = self.work, self.next_step
        work.optimizer.lr = work.profile.train.rate(step)
        x, y = work.batch(step)
        began = time.perf_counter()
        work.optimizer.zero_grad()
        ledger = Ledger(events=False)
        live: list[Mapping[Category, int]] = []
        with ExitStack() as stack:
            stack.enter_context(applied(work.model, self.policy))
            stack.enter_context(self.disk or nullcontext())
            stack.enter_context(Tape())
            state = current()
            stack.callback(setattr, state, "observer", state.observer)
            state.observer = ledger
            loss = accumulate_gradients(
                work.loss,
                x,
                y,
                count=self.micro_batches,
                reduction=work.reduction,
                after_forward=lambda: live.append(ledger.live()),
            )
        value = float(loss)
        if not math.isfinite(value):
            raise MembackError(f"the loss of step {step} is {value}: training has diverged. {_remedy(work)}")
        self._look(ledger.rows, since_first)
        work.optimizer.step()
        self.next_step += 1
        return StepResult(step, value, time.perf_counter() - began, len(x), live[0])

    def accuracy(self) -> float | None:
        """The share of test targets that the model gets right; None where the model has no such notion."""
        model = self.work.model
        if not hasattr(model, "correct"):
            return None
        right = total = 0
        model.eval()
        try:
            with no_grad():
                for x, y in self.work.test_batches():
                    hits = np.asarray(model.correct(x, y))
                    right, total = right + int(hits.sum()), total + hits.size
        finally:
            model.train()
        return right / total if total else None

    # -- stopping and resuming

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything that the next step depends on, whole or not at all; an older file is replaced.

        Raises:
            MembackError: the system does not let it be written.
        """
        state = current()
        arrays = {f"model.{name}": array for name, array in self.work.model.state_dict().items()}
        arrays |= {f"optimizer.{name}": array for name, array in self.work.optimizer.state_dict().items()}
        about = _About(
            schema=_SCHEMA,
            profile=self.work.profile.name,
            training=_fingerprint(self.work, self.micro_batches),
            step=self.next_step,
            random=(state.seed, state.draws),
        )
        write(path, arrays, {"memback": msgspec.json.encode(about).decode()}, overwrite=True)

    def resume(self, path: str | os.PathLike[str]) -> None:
        """Go on where :meth:`save` left off: the following steps have the bits that an uninterrupted run has.

        Raises:
            UsageError: there is no such file, it is none of memback's or damaged, or it was made by another training.
                Nothing is changed then.
        """
        if not os.path.exists(path):
            raise UsageError(f"There is no file {shorten(path)} to resume from; memback train --save FILE makes one")
        arrays, texts = read(path)
        about = _about(texts.get("memback"), path)
        if about.training != _fingerprint(self.work, self.micro_batches):
            raise UsageError(
                f"{path} belongs to another training (profile {shorten(repr(about.profile))}): model, data, dtype,"
                " [train] or --micro-batches differ. Resume with the profile and the --set values that it was started"
                " with"
            )
        model, optimizer = _part(arrays, "model."), _part(arrays, "optimizer.")
        try:
            _check_arrays(self.work.model.state_dict(), model)
            _check_arrays(self.work.optimizer.state_dict(), optimizer)
        except MembackError as error:
            raise _no_training(path, error) from None
        self.work.model.load_state_dict(model)
        self.work.optimizer.load_state_dict(optimizer)
        self.next_step = about.step
        state = current()
        state.seed, state.draws = about.random


def _about(text: str | None, path: str | os.PathLike[str]) -> _About:
    """Read what a file says of the training in it.

    Raises:
        UsageError: it says nothing, or what no training can be.
    """
    if text is None:
        raise _no_training(path, "it says nothing of one")
    try:
        return msgspec.json.decode(text, type=_About)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise _no_training(path, error) from None


def _remedy(work: Workload) -> str:
    """What helps where the loss is not finite any more."""
    train, optimizer = work.profile.train, work.optimizer
    if isinstance(optimizer, AdamW):
        narrow = next((p.data.dtype for p in optimizer.parameters if not p.data.dtype.type(optimizer.eps)), None)
        if narrow is not None:
            return (
                f"AdamW's eps (={optimizer.eps:g}) is 0 in {narrow}, so that weights whose gradients have squares of 0"
                ' are divided by 0: use bfloat16 or float32, or train.optimizer = "sgd"'
            )
    return f"Lower train.learning_rate (={train.learning_rate}) or lengthen train.warmup (={train.warmup})"


def _no_training(path: str | os.PathLike[str], why: object) -> UsageError:
    return UsageError(f"{path} is no training saved by this version of memback ({_SCHEMA}): {shorten(why)}")


def _check_arrays(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Raise unless arrays have the names, the shapes and, as a training never changes them, the dtypes of mine.

    Raises:
        MembackError: they have not; the message names the first that differ.
    """
    check_state(mine, theirs)
    for name, array in mine.items():
        if theirs[name].dtype != np.asarray(array).dtype:
            raise MembackError(f"{name} is {theirs[name].dtype} in it, here {np.asarray(array).dtype}")
    if min(map(int, theirs.get("steps", ())), default=0) < 0:
        raise MembackError("it has a negative number of steps")


def _part(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _fingerprint(work: Workload, micro_batches: int) -> str:
    """A text that differs between trainings whose steps differ; a constant rate does not depend on the last step."""
    train = work.profile.train
    steps = {} if train.schedule == "constant" else {"steps": train.steps}
    parts = {} if micro_batches == 1 else {"micro_batches": micro_batches}
    content = work.profile.to_dict()
    for name in ("description", "checkpoint", "name"):
        content.pop(name)
    content["train"].pop("steps")
    return json.dumps({**content, **steps, **parts}, sort_keys=True)

"""The model, data, optimiser and step of a profile definition."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from memback.dry.array import ShapeArray
from memback.dry.mode import dry_run
from memback.engine.arrays import distinct_bytes
from memback.engine.micro_batches import micro_batches as parts
from memback.engine.op import OpError
from memback.engine.state import manual_seed
from memback.engine.tensor import Tensor
from memback.errors import UsageError, shorten
from memback.profiling.definition import Profile, load_data, load_layout, make_model
from memback.profiling.step import Step

if TYPE_CHECKING:
    from memback.data import Dataset, Layout
    from memback.optim import Optimizer

__all__ = ["Workload"]


@dataclass(frozen=True)
class Workload:
    """What a profile describes, ready to run."""

    profile: Profile
    model: Any
    data: Dataset | None
    layout: Layout
    optimizer: Optimizer

    @classmethod
    def build(cls, profile: Profile, dry: bool = False) -> Workload:
        """Make the model (from the profile's seed), load the data, make the optimiser.

        If ``dry``, models and batches hold no memory, and no data is read.

        Raises:
            UsageError: the model or the loader refuses its arguments.
        """
        manual_seed(profile.train.seed)
        with dry_run() if dry else nullcontext(), _named(profile):
            model = make_model(profile)
            optimizer = make_optimizer(profile, model)
        return cls(profile, model, None if dry else load_data(profile), load_layout(profile), optimizer)

    @property
    def dry(self) -> bool:
        """Whether it holds no memory."""
        return self.data is None

    def batch(self, step: int) -> tuple[Any, Any]:
        """Inputs and targets of a training step, counted from 0; without memory if the workload is dry."""
        size = self.profile.data.batch
        if self.data is None:
            x, y = (ShapeArray.argument(shape, dtype) for shape, dtype in self.layout.batch(size))
            return x, y
        return self.data.batch(size, self.profile.train.seed, step)

    def loss(self, x: Any, y: Any) -> Tensor:
        """The training loss of a batch.

        Raises:
            UsageError: the model can't take such data.
        """
        with _named(self.profile):
            loss: Tensor = self.model.loss(x, y)
        return loss

    def step(self) -> Callable[[], Tensor]:
        """The forward pass of the first training step, which gives its loss."""
        x, y = self.batch(0)
        return lambda: self.loss(x, y)

    def predicted_step(self, micro_batches: int = 1) -> Step:
        """The training step on the first batch, update included, for dry runs; in ``micro_batches`` parts.

        Of these only the first two are run, and FLOPs are theirs: the others find the same gradients there, and are no
        larger, so their peaks are no higher.

        Raises:
            UsageError: the batch has fewer samples.
        """
        x, y = self.batch(0)
        if micro_batches == 1:
            return Step(lambda: self.loss(x, y), self.model, self.optimizer)
        (_, first), (_, second) = [*parts((x, y), micro_batches)][:2]

        def both() -> Tensor:
            self.loss(*first).backward()
            return self.loss(*second)

        return Step(both, self.model, self.optimizer)

    @property
    def reduction(self) -> Literal["mean", "sum"]:
        """How the loss of a batch is made of those of its samples."""
        return "sum" if getattr(self.model, "reduction", "mean") == "sum" else "mean"

    def test_batches(self) -> Iterator[tuple[Any, Any]]:
        """The test samples in batches."""
        return iter(()) if self.data is None else self.data.test_batches(self.profile.data.batch)

    @property
    def state_bytes(self) -> int:
        """Parameters, buffers and optimiser state in bytes."""
        arrays = [p.data for p in self.model.parameters()] + [a for _, a in self.model.named_buffers()]
        return distinct_bytes(arrays) + int(self.optimizer.state_bytes)

    @property
    def argument_bytes(self) -> int:
        """Parameters, buffers, optimiser state and inputs in bytes: what is there before a step."""
        return self.state_bytes + distinct_bytes(self.batch(0))

    def about(self) -> dict[str, Any]:
        """What a report says of the profile."""
        content = self.profile.to_dict()
        return {
            "name": self.profile.name,
            "model": content["model"],
            "data": content["data"],
            "dtype": self.profile.dtype,
            "sha256": self.profile.sha256,
        }


@contextmanager
def _named(profile: Profile) -> Iterator[None]:
    """Name the profile in errors of its model, because models know nothing of profiles."""
    try:
        yield
    except (ValueError, OpError) as error:
        raise UsageError(f"profile {profile.name}: {shorten(error, 1000)}") from error


def make_optimizer(profile: Profile, model: Any) -> Optimizer:
    """The optimiser that a profile asks for, on the model's parameters."""
    from memback.optim import SGD, AdamW

    train = profile.train
    if train.optimizer == "sgd":
        return SGD(model.parameters(), lr=train.learning_rate, momentum=train.momentum, weight_decay=train.weight_decay)
    return AdamW(model.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay)

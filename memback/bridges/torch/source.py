"""Where a step's module and inputs come from: a factory or a config, at one size or another."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from memback.bridges.torch.hugging_face.adapters import Lora
from memback.bridges.torch.hugging_face.config import is_config, transformers
from memback.bridges.torch.loading import Loaded, find, load
from memback.bridges.torch.recording.inputs import Input
from memback.errors import UsageError

__all__ = ["DIMENSIONS", "Source"]

DIMENSIONS: Mapping[str, tuple[str, ...]] = {
    "batch": ("batch", "batch_size"),
    "sequence": ("sequence", "sequence_length", "seq_len"),
}
"""Sizes of inputs that can be chosen, and what a factory's argument for one may be called."""


@dataclass(frozen=True)
class Source:
    """What ``memback torch`` was asked for.

    Attributes:
        reference: ``package.module:factory``, or ``hf:CONFIG``.
        inputs: of the module, where they are given.
        arguments: of the factory, or settings of the config, as text by name.
        device: where everything is made.
        dry: whether it is made without memory.
        sizes: by the names of :data:`DIMENSIONS`.
        dtype: of parameters and floating-point inputs, where it is given.
        lora: adapters, where they are given.
        evaluate: whether the module is put into evaluation mode.
    """

    reference: str
    inputs: Sequence[Input] = ()
    arguments: Mapping[str, str] = field(default_factory=dict)
    device: torch.device | None = None
    dry: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)
    dtype: torch.dtype | None = None
    lora: Lora | None = None
    evaluate: bool = False

    def sized(self, dimension: str, size: int) -> Source:
        """The same with inputs of another size."""
        return replace(self, sizes={**self.sizes, dimension: size})

    def load(self) -> Loaded:
        """Make the module and its inputs.

        Raises:
            UsageError: what is asked for is not there, or the sizes are not those of what it makes.
            MembackError: it can't be made.
        """
        loaded = self._config() if is_config(self.reference) else self._factory()
        if self.lora is not None:
            loaded = replace(loaded, module=self.lora.on(loaded.module))
        if self.evaluate:
            loaded.module.eval()
        return loaded

    def _config(self) -> Loaded:
        from memback.bridges.torch.hugging_face.inputs import Sizes
        from memback.bridges.torch.hugging_face.model import load_config

        transformers().utils.logging.set_verbosity_error()  # it speaks of what it would do with weights
        sizes = Sizes(**self.sizes)
        return load_config(self.reference, sizes, self.inputs, self.device, self.dry, self.arguments, self.dtype)

    def _factory(self) -> Loaded:
        inputs, arguments = self.inputs, dict(self.arguments)
        for dimension, size in self.sizes.items():
            name = _argument(self.reference, dimension)
            if name is not None:
                arguments[name] = str(size)
            elif dimension == "batch" and inputs:
                inputs = _of_batch(inputs, size)
            else:
                raise UsageError(
                    f"--{dimension} {size}: {self.reference} takes no argument {' or '.join(DIMENSIONS[dimension])};"
                    " give it one, or write hf:CONFIG in its place"
                )
        loaded = load(self.reference, inputs, self.device, self.dry, arguments, self.dtype)
        return replace(loaded, data={**self.sizes, "inputs": list(map(str, inputs))})


def _argument(reference: str, dimension: str) -> str | None:
    """What a factory's argument for a dimension is called, if it has one."""
    try:
        known = inspect.signature(find(reference)).parameters
    except (TypeError, ValueError):  # it can't be called, or does not say how
        return None
    return next((name for name in DIMENSIONS[dimension] if name in known), None)


def _of_batch(inputs: Sequence[Input], size: int) -> list[Input]:
    first = {one.shape[:1] for one in inputs}
    if len(first) != 1:
        raise UsageError(
            f"--batch {size}: the inputs do not all have the same first dimension: {', '.join(map(str, inputs))}"
        )
    return [replace(one, shape=(size, *one.shape[1:])) for one in inputs]

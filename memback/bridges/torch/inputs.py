"""What a module is called with, from text: ``8x3x224x224``, ``8x1024:int64``, ``mask=8x1x1x1024:bool``."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from memback.errors import UsageError, shorten

__all__ = ["Input", "dtype_named", "parse_inputs"]

_SPEC = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>\w+))?", re.ASCII)
_MOST = 2**63 - 1
_DIGITS = 19


@dataclass(frozen=True)
class Input:
    """A tensor to be made, and the argument's name where it is given by name."""

    name: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def parse(cls, text: str) -> Input:
        """Read ``[NAME=]SHAPE[:DTYPE]``; without a DTYPE it is float32.

        Raises:
            UsageError: it is no such thing, or there is no such dtype.
        """
        shown = shorten(repr(text))
        match = _SPEC.fullmatch(text.strip())
        if match is None:
            raise UsageError(
                f"input {shown} is no shape; write it as 8x3x224x224, 8x1024:int64 or, by name, mask=8x1024:bool"
            )
        lengths = match["shape"].split("x")
        dtype = dtype_named(match["dtype"] or "float32")
        if max(map(len, lengths)) > _DIGITS or math.prod(map(int, lengths)) * dtype.itemsize > _MOST:
            raise UsageError(f"input {shown} has more than 2**63 - 1 bytes")
        return cls(match["name"], tuple(map(int, lengths)), dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def make(self, device: torch.device) -> torch.Tensor:
        """The tensor: floating-point numbers are drawn from a normal distribution, all others are zeros.

        Zeros are an index into anything and a class among any number of classes.
        """
        if self.dtype.is_floating_point or self.dtype.is_complex:
            drawn = self.dtype if self.dtype.itemsize > 1 else torch.float32
            return torch.randn(self.shape, dtype=drawn, device=device).to(self.dtype)
        return torch.zeros(self.shape, dtype=self.dtype, device=device)

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"{'' if self.name is None else f'{self.name}='}{shape}:{str(self.dtype).removeprefix('torch.')}"


def parse_inputs(texts: Iterable[str]) -> list[Input]:
    """Read several, of which no two may have the same name.

    Raises:
        UsageError: as :meth:`Input.parse`, or a name is given twice.
    """
    inputs = [Input.parse(text) for text in texts]
    names = [one.name for one in inputs if one.name is not None]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"input {shorten(repr(twice))} is given twice")
    return inputs


def dtype_named(name: str) -> torch.dtype:
    """``float32`` as PyTorch has it.

    Raises:
        UsageError: there is none.
    """
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise UsageError(
            f"there is no dtype {shorten(repr(name))} in PyTorch; there are float32, bfloat16, int64, bool and others"
        )
    return found

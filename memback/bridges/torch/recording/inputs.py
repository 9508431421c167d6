"""What a module is called with, from text: ``8x3x224x224``, ``8x1024:int64``, ``mask=8x1024:int64=1``."""

from __future__ import annotations

import cmath
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from memback.errors import UsageError, shorten

__all__ = ["Input", "dtype_named", "dtype_remedy", "parse_inputs"]

_SPEC = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:x\d+)*)(?::(?P<dtype>\w+))?(?:=(?P<fill>.*))?", re.ASCII
)
_MOST = 2**63 - 1
_DIGITS = 19


@dataclass(frozen=True)
class Input:
    """A tensor to be made, the argument's name where it is given by name, and what it is filled with, if anything."""

    name: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    fill: float | None = None

    @classmethod
    def parse(cls, text: str) -> Input:
        """Read ``[NAME=]SHAPE[:DTYPE][=VALUE]``; without a DTYPE it is float32.

        Raises:
            UsageError: it is no such thing, there is no such dtype, or the dtype can't hold the value.
        """
        shown = shorten(repr(text))
        match = _SPEC.fullmatch(text.strip())
        if match is None:
            raise UsageError(
                f"input {shown} is no shape; write it as 8x3x224x224, 8x1024:int64 or, by name and filled with ones,"
                " mask=8x1024:int64=1"
            )
        lengths = match["shape"].split("x")
        dtype = dtype_named(match["dtype"] or "float32")
        if max(map(len, lengths)) > _DIGITS or math.prod(map(int, lengths)) * dtype.itemsize > _MOST:
            raise UsageError(f"input {shown} has more than 2**63 - 1 bytes")
        fill = None if match["fill"] is None else _number(match["fill"], dtype, text)
        return cls(match["name"], tuple(map(int, lengths)), dtype, fill)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize

    def make(self, device: torch.device) -> torch.Tensor:
        """The tensor: filled with its value if there is one, else of normal random numbers, or zeros of other types.

        Zeros are an index into anything and a class among any number of classes.
        """
        if self.fill is not None:
            return torch.full(self.shape, self.fill, dtype=self.dtype, device=device)
        if self.dtype.is_floating_point or self.dtype.is_complex:
            drawn = self.dtype if self.dtype.itemsize > 1 else torch.float32
            return torch.randn(self.shape, dtype=drawn, device=device).to(self.dtype)
        return torch.zeros(self.shape, dtype=self.dtype, device=device)

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape))
        name = "" if self.name is None else f"{self.name}="
        fill = "" if self.fill is None else f"={self.fill}"
        return f"{name}{shape}:{str(self.dtype).removeprefix('torch.')}{fill}"


def _number(text: str, dtype: torch.dtype, given: str) -> float:
    """The value from text, where the dtype has one like it: the same one of whole numbers, a finite one of others."""
    value = _WORDS.get(text.lower())
    try:
        if value is None:
            value = int(text) if _WHOLE.fullmatch(text) else float(text.replace("_", "?"))  # 1_0 is no 10
        held = torch.full((), value, dtype=dtype).item()
        whole = not (dtype.is_floating_point or dtype.is_complex)
        holds = held == value if whole else cmath.isfinite(held) or not cmath.isfinite(value)
    except (ValueError, RuntimeError, OverflowError):
        holds = False
    if value is None or not holds:
        name = str(dtype).removeprefix("torch.")
        shown = f"input {shorten(repr(given))}: {shorten(repr(text))}"
        raise UsageError(f"{shown} is no value of {name}; write it as 8x1024:int64=1")
    return value


_WORDS: Mapping[str, float] = {"true": 1, "false": 0}
_WHOLE = re.compile(r"-?\d{1,19}", re.ASCII)


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


def dtype_remedy(message: str, inputs: Sequence[Input]) -> str:
    """What to write instead, if a message of PyTorch's says that an op has refused an input's dtype; else nothing."""
    floating = [one for one in inputs if one.dtype.is_floating_point]
    if floating and _INDICES.search(message):
        return f". Indices are whole numbers: write --input {replace(floating[0], dtype=torch.int64, fill=None)}"
    if inputs and _DTYPES.search(message):
        return ". The dtype of an input is written after its shape, as in --input 8x1024:bfloat16"
    return ""


_INDICES = re.compile(r"scalar types: Long|indices to be long|LongTensor|used as indices must be|int32( or |/)int64")
_DTYPES = re.compile(r"same dtype|mixed dtype|should be the same|expected scalar type|boolean masks|to be bool")


def dtype_named(name: str) -> torch.dtype:
    """``float32``, or ``fp32`` for short, as PyTorch has it.

    Raises:
        UsageError: there is none.
    """
    found = getattr(torch, _SHORT.get(name, name), None)
    if not isinstance(found, torch.dtype):
        raise UsageError(
            f"there is no dtype {shorten(repr(name))} in PyTorch; there are float32, bfloat16, int64, bool and others"
        )
    return found


_SHORT: Mapping[str, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}

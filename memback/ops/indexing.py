"""Picking elements and rows."""

from __future__ import annotations

from typing import Any

import numpy as np

from memback.engine.arrays import Array, DryArray, is_array
from memback.engine.op import Op
from memback.engine.tensor import Tensor
from memback.ops import compiled
from memback.ops.workspace import wide

__all__ = ["embedding", "getitem"]


class Getitem(Op):
    """input[index], by NumPy's rules. Slices give a view; integer arrays pick, and are kept for backward."""

    name = "getitem"
    source = "out_k = x_i(k), dL/dx_i = sum of dL/dout_k over the k with i(k) = i"
    saves = {"input": ("index",)}

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """As for every op; an index may hold Tensors."""
        input, index = super().bind(args, kwargs)
        return [input, tuple(map(_array, index)) if isinstance(index, tuple) else _array(index)]

    def forward(self, input: Array, index: Any) -> Array:
        return input[index]

    def vjp(self, d_out: Array, index: Any, shapes: list[tuple[int, ...]]) -> Array:
        if not _picks(index):
            d_input = np.zeros_like(d_out, shape=shapes[0])
            d_input[index] = d_out
            return d_input
        d_input = np.zeros_like(d_out, shape=shapes[0], dtype=wide(d_out.dtype))
        np.add.at(d_input, index, d_out)
        return d_input.astype(d_out.dtype, copy=False)

    def flops(self) -> int:
        return 0


def _array(item: Any) -> Any:
    return item.data if isinstance(item, Tensor) else item


def _picks(index: Any) -> bool:
    """Whether an element can be picked more than once."""
    items = index if isinstance(index, tuple) else (index,)
    return any(is_array(item) or isinstance(item, list) for item in items)


def check_indices(name: str, indices: Any, count: int) -> None:
    """Raise a ValueError unless all lie in 0..count - 1; NumPy counts negative ones from the end, which hides mistakes.

    On a dry run they have no values, and pass.
    """
    if isinstance(indices, DryArray) or not indices.size:
        return
    for index in (indices.min(), indices.max()):
        if not 0 <= index < count:
            raise ValueError(f"`{name}` holds {index}, it must lie between 0 and {count - 1}")


class Embedding(Op):
    """Rows of ``weight`` (n, width) by integer ``input`` of any shape: its shape + (width,). Keeps the indices."""

    name = "embedding"
    source = "out_k = W_i(k), dL/dW_i = sum of dL/dout_k over the k with i(k) = i"
    saves = {"weight": ("input",)}

    def forward(self, input: Array, weight: Array) -> Array:
        if input.dtype.kind not in "iu":
            raise ValueError(f"`input` must be integers, not {input.dtype}")
        check_indices("input", input, len(weight))
        return np.take(weight, input, axis=0)

    def vjp(self, d_out: Array, input: Array, shapes: list[tuple[int, ...]]) -> tuple[None, Array]:
        d_weight = np.zeros_like(d_out, shape=shapes[1], dtype=wide(d_out.dtype))
        check_indices("input", input, shapes[1][0])  # a kernel does not look whether a row is there
        if not compiled.run("add_rows", d_out, input, d_weight):
            _add_rows(d_out, input, d_weight)
        return None, d_weight.astype(d_out.dtype, copy=False)

    def flops(self) -> int:
        return 0


WIDE = 64
"""The row width from which one call per row is faster than np.add.at, which adds element by element."""


def _add_rows(rows: Array, numbers: Array, out: Any) -> None:
    """Add each row, in order, to the row of ``out`` with its number."""
    width = out.shape[-1]
    if width < WIDE or isinstance(out, DryArray):
        np.add.at(out, numbers, rows)
        return
    for number, row in zip(np.reshape(numbers, -1), np.reshape(rows, (-1, width)), strict=True):
        target = out[number]
        target += row


embedding = Embedding()
getitem = Getitem()

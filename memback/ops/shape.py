"""The same values in other shapes. What NumPy returns as a view costs nothing, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from memback.engine.arrays import Array
from memback.engine.op import Op
from memback.ops.broadcasting import unbroadcast

__all__ = ["broadcast_to", "concatenate", "permute", "reshape", "split", "stack", "swapaxes", "transpose"]


class _Shape(Op):
    def flops(self) -> int:
        return 0


class Reshape(_Shape):
    """The same elements in another shape; one dimension may be -1. A view where the layout allows one."""

    name = "reshape"
    source = "out = x, element by element in row-major order: dL/dx = dL/dout in the shape of x"
    saves = {"input": ()}

    def forward(self, input: Array, shape: Sequence[int]) -> Array:
        return np.reshape(input, tuple(shape))

    def vjp(self, d_out: Array, shapes: list[tuple[int, ...]]) -> Array:
        return np.reshape(d_out, shapes[0])


class Transpose(_Shape):
    """Two dimensions exchanged: a view."""

    name = "transpose"
    source = "out_ij = x_ji, dL/dx_ij = dL/dout_ji"
    saves = {"input": ()}

    def forward(self, input: Array, dim0: int, dim1: int) -> Array:
        return np.swapaxes(input, dim0, dim1)

    def vjp(self, d_out: Array, dim0: int, dim1: int) -> Array:
        return np.swapaxes(d_out, dim0, dim1)


class Swapaxes(Transpose):
    """Two dimensions exchanged: a view. NumPy's name for transpose(input, dim0, dim1)."""

    name = "swapaxes"
    source = "out_ij = x_ji, dL/dx_ij = dL/dout_ji"


class Permute(_Shape):
    """All dimensions in a new order: a view."""

    name = "permute"
    source = "dL/dx = dL/dout with its dimensions in the inverse order"
    saves = {"input": ()}

    def forward(self, input: Array, dims: Sequence[int]) -> Array:
        return np.transpose(input, tuple(dims))

    def vjp(self, d_out: Array, dims: Sequence[int]) -> Array:
        order = [0] * len(dims)
        for place, d in enumerate(dims):
            order[d % len(dims)] = place
        return np.transpose(d_out, order)


class BroadcastTo(_Shape):
    """The values repeated to a larger shape: a view."""

    name = "broadcast_to"
    source = "out_ij = x_j, dL/dx_j = sum_i dL/dout_ij"
    saves = {"input": ()}

    def forward(self, input: Array, shape: Sequence[int]) -> Array:
        return np.broadcast_to(input, tuple(shape))

    def vjp(self, d_out: Array, shapes: list[tuple[int, ...]]) -> Array:
        return unbroadcast(d_out, shapes[0])


def _cuts(lengths: Sequence[int], dim: int, ndim: int) -> list[tuple[slice, ...]]:
    """The index of each part, of the given lengths along ``dim``."""
    cuts, start = [], 0
    for length in lengths:
        cuts.append((slice(None),) * (dim % ndim) + (slice(start, start + length),))
        start += length
    return cuts


class Concatenate(_Shape):
    """The inputs one after the other along ``dim``. Their gradients are views of the output's."""

    name = "concatenate"
    source = "dL/dx_k = the part of dL/dout where x_k lies"
    saves = {"tensors": ()}

    def forward(self, tensors: Sequence[Array], dim: int = 0) -> Array:
        return np.concatenate(tensors, axis=dim)

    def vjp(self, d_out: Array, shapes: list[tuple[int, ...]], dim: int) -> tuple[Array, ...]:
        lengths = [shape[dim] for shape in shapes]
        return tuple(d_out[cut] for cut in _cuts(lengths, dim, d_out.ndim))


class Stack(_Shape):
    """The inputs, all of one shape, side by side along a new dimension. Their gradients are views of the output's."""

    name = "stack"
    source = "dL/dx_k = (dL/dout)_k"
    saves = {"tensors": ()}

    def forward(self, tensors: Sequence[Array], dim: int = 0) -> Array:
        return np.stack(tensors, axis=dim)

    def vjp(self, d_out: Array, dim: int) -> tuple[Array, ...]:
        moved = np.moveaxis(d_out, dim, 0)
        return tuple(moved[i] for i in range(moved.shape[0]))


class Split(_Shape):
    """Parts along ``dim``: views. Each has the given size, the last may be shorter; a list gives the size of each."""

    name = "split"
    source = "dL/dx = the dL/dout_k one after the other, zeros for those without use"
    saves = {"input": ()}
    multiple = True

    def forward(self, input: Array, split_size_or_sections: int | Sequence[int], dim: int = 0) -> tuple[Array, ...]:
        lengths = _lengths(input.shape[dim], split_size_or_sections)
        return tuple(input[cut] for cut in _cuts(lengths, dim, input.ndim))

    def vjp(
        self,
        d_out: tuple[Array | None, ...],
        shapes: list[tuple[int, ...]],
        split_size_or_sections: int | Sequence[int],
        dim: int,
    ) -> Array:
        shape = shapes[0]
        cuts = _cuts(_lengths(shape[dim], split_size_or_sections), dim, len(shape))
        like = next(part for part in d_out if part is not None)
        d_input = np.empty_like(like, shape=shape)
        for cut, part in zip(cuts, d_out, strict=True):
            d_input[cut] = 0 if part is None else part
        return d_input


def _lengths(size: int, parts: Any) -> list[int]:
    if isinstance(parts, int):
        if parts < 1:
            raise ValueError(f"`split_size_or_sections` (={parts}) must be positive")
        return [min(parts, size - start) for start in range(0, size, parts)]
    if sum(parts) != size:
        raise ValueError(f"`split_size_or_sections` (={list(parts)}) must sum to the dimension's size, {size}")
    return list(parts)


broadcast_to = BroadcastTo()
concatenate = Concatenate()
permute = Permute()
reshape = Reshape()
split = Split()
stack = Stack()
swapaxes = Swapaxes()
transpose = Transpose()

"""Hooks on saved values: what a call keeps for backward is packed when it is saved and unpacked when backward comes.

A packed value holds no array as far as the engine can see, unless what the pack function gave is one; so the ledger
counts what is really held.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from operator import is_
from typing import Any

from memback.engine.arrays import Array, buffer_bytes, forgotten, is_array, leaves, root
from memback.engine.node import Node
from memback.engine.op import Op
from memback.engine.packed import Packed, PackedValue, mapped
from memback.engine.state import Setting, current

__all__ = ["saved_tensors_hooks"]


class saved_tensors_hooks(Setting):
    """In the block, saved activations are kept as ``pack`` gives them, and ``unpack`` makes them arrays for backward.

    Args:
        pack: is given each saved activation as a plain array (a view, where a view was saved) and returns anything.
        unpack: is given that, and returns an array of the same shape and dtype.

    Arguments (parameters, inputs and what else no op in the block has made) are left as they are, and so is what a
    checkpoint recomputes, which is used at once. What was packed in the block is unpacked by whichever backward
    needs it, in the block or after it. Of nested blocks the innermost counts. If ``unpack`` gives the bits that
    ``pack`` got, gradients are bit-identical to those without.

    After PyTorch's ``torch.autograd.graph.saved_tensors_hooks``, which packs parameters and inputs, too.
    """

    field = "packing"
    min_bytes = 0
    """Buffers smaller than this stay as they are."""

    def __init__(self, pack: Callable[[Array], Any], unpack: Callable[[Any], Array]) -> None:
        super().__init__()
        self._functions = (pack, unpack)
        self._made: dict[int, weakref.ref[Any]] = {}

    def value(self) -> saved_tensors_hooks:
        """The hooks themselves."""
        return self

    def pack(self, array: Array) -> Any:
        """What is kept in place of a saved activation."""
        return self._functions[0](array)

    def unpack(self, packed: Any) -> Array:
        """The saved activation again."""
        return self._functions[1](packed)

    # -- what the engine tells

    def called(self, op: Op, values: list[Any], out: Any, residuals: tuple[Any, ...], node: Node | None) -> None:
        """An op has run forward, and was recorded as ``node`` if that is not None: pack what it keeps."""
        given = {id(root(array)) for value in values for array in leaves(value)}
        self._note(leaves((out, residuals)), given)
        if node is None or not node.kept or node.saving is None:
            return
        kept = list(node.kept)
        for slot in node.saving.slots:
            kept[slot] = self.packed(kept[slot])
        if not all(map(is_, kept, node.kept)):
            node.kept = Packed(kept)

    def packed(self, value: Any) -> Any:
        """A saved value with its activations packed; itself where it has none."""
        if is_array(value):
            return PackedValue((self, self._pack_alone(value))) if self._wants(value) else value
        return mapped(value, self.packed)

    def _pack_alone(self, array: Array) -> Any:
        state = current()
        state.packing = None  # what the function calls is not to be packed in its turn
        try:
            return self.pack(array)
        finally:
            state.packing = self

    def _note(self, arrays: Iterable[Array], given: set[int]) -> None:
        """Remember the buffers that an op has made: its results that are no views of what it was given."""
        made = self._made
        for array in arrays:
            buffer = root(array)
            key = id(buffer)
            if key not in given and key not in made:
                made[key] = weakref.ref(buffer, forgotten(made, key))

    def _wants(self, array: Array) -> bool:
        buffer = root(array)
        return id(buffer) in self._made and buffer_bytes(buffer) >= self.min_bytes

"""The masks of dropout.

A mask is drawn from a counter-based generator (Philox4x64-10; Salmon et al. 2011, doi 10.1145/2063384.2063405) keyed
by the thread's random stream: (seed, number of the draw). An element is kept where its 32 random bits are at least
p 2^32. So the same key gives the same mask at any later time, in any dtype, and it can be kept in three forms:

``"bool"``   one byte an element;
``"bits"``   one bit an element;
``"seed"``   only the key: the mask is redrawn in backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import numpy as np

from memback.engine.arrays import Array, DryArray
from memback.engine.state import current
from memback.ops.workspace import pieces, slices

__all__ = ["Mask", "MaskForm", "apply_mask", "check_dropout", "draw_mask"]

MaskForm: TypeAlias = Literal["bool", "bits", "seed"]
"""How a mask is kept until backward."""

Mask: TypeAlias = "Array | tuple[int, int]"
"""A mask in the form that is kept: a row of bools or packed bits for each block, or the key."""

PIECE = 2**17
"""Elements drawn at a time: 512 KiB of random bits. A multiple of 8, so that packed pieces join."""


def _draw(generator: np.random.Generator, n: int, like: Any) -> Array:
    """Random numbers of 32 bits; without memory, the buffer that they would be in."""
    words = -(-n // 2)
    if isinstance(like, DryArray):
        return np.empty_like(like, shape=(2 * words,), dtype=np.uint32)[:n]
    return generator.integers(0, 2**64, words, dtype=np.uint64).view(np.uint32)[:n]


def _keeps(key: tuple[int, int], block: int, n: int, p: float, like: Any) -> Iterator[tuple[slice, Array]]:
    """Which of the ``n`` elements of a block are kept, piece by piece."""
    generator = np.random.Generator(np.random.Philox(counter=[0, 0, block, 0], key=np.array(key, np.uint64)))
    threshold = round(p * 2**32)
    for part in pieces(slices(n, PIECE), like):
        yield part, np.greater_equal(_draw(generator, part.stop - part.start, like), threshold)


def draw_mask(like: Array, blocks: int, n: int, p: float, form: MaskForm) -> Mask:
    """Take the next key of the thread's random stream and draw a mask of ``blocks`` rows of ``n`` elements.

    Args:
        like: an array of the mask's kind.
        blocks: rows of the mask; each is drawn and applied by itself.
        n: elements in a row.
        p: probability that an element is dropped.
        form: how the mask is kept.
    """
    key = current().draw()
    if form == "seed":
        return key
    if form == "bool":
        mask = np.empty_like(like, shape=(blocks, n), dtype=bool, order="C")
    else:
        mask = np.empty_like(like, shape=(blocks, -(-n // 8)), dtype=np.uint8, order="C")
    for block in pieces(range(blocks), like):
        for part, keep in _keeps(key, block, n, p, like):
            _store(mask[block], part, keep)
            del keep  # before the next piece is drawn
    return mask


def _store(row: Array, part: slice, keep: Array) -> None:
    if row.dtype == bool:
        row[part] = keep
    else:
        row[part.start // 8 : -(-part.stop // 8)] = np.packbits(keep)


def _stored(row: Array, n: int, like: Any) -> Iterator[tuple[slice, Array]]:
    for part in pieces(slices(n, PIECE), like):
        if row.dtype == bool:
            yield part, row[part]
        else:
            packed = row[part.start // 8 : -(-part.stop // 8)]
            yield part, np.unpackbits(packed, count=part.stop - part.start)


def apply_mask(x: Array, mask: Mask, p: float, block: int = 0) -> None:
    """Turn x into x mask / (1 - p), by row ``block`` of the mask; x must be contiguous and belong to the caller."""
    flat = np.reshape(x, -1)
    scale = 0.0 if p == 1 else 1 / (1 - p)
    rows = _keeps(mask, block, x.size, p, x) if isinstance(mask, tuple) else _stored(mask[block], x.size, x)
    for part, keep in rows:
        np.multiply(flat[part], keep, out=flat[part])
        np.multiply(flat[part], scale, out=flat[part])
        del keep


def check_dropout(p: float, form: str) -> None:
    """Raise a ValueError unless ``p`` is a probability and ``form`` a :data:`MaskForm`."""
    if not 0 <= p <= 1:
        raise ValueError(f"the dropout probability (={p}) must lie between 0 and 1")
    if form not in ("bool", "bits", "seed"):
        raise ValueError(f"`mask` (={form!r}) must be 'bool', 'bits' or 'seed'")

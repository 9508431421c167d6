"""Scaled dot-product attention, softmax(q k^T scale) v: plainly, and by tiles without ever making an L x S array.

Queries (..., H, L, E), keys (..., H_kv, S, E), values (..., H_kv, S, E_v), output (..., H, L, E_v) of the queries'
dtype. H_kv may be any divisor of H: then each group of H / H_kv query heads shares one head of keys and values
(grouped-query attention; Ainslie et al. 2023, arXiv 2305.13245), which is not repeated for it. Heads are worked off one
after the other, in float32 for float16 and bfloat16. A query that may attend to no key at all gives zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod, sqrt
from typing import Any, TypeAlias

import numpy as np

from memback.engine.arrays import Array
from memback.engine.op import Op
from memback.ops.masks import Mask, MaskForm, apply_mask, check_dropout, draw_mask
from memback.ops.workspace import pieces, slices, wide

__all__ = ["scaled_dot_product_attention", "tiled_attention"]

Head: TypeAlias = tuple[int, ...]

ROWS = 128
"""Rows of scores that are masked at a time."""


def _check(query: Array, key: Array, value: Array) -> None:
    q, k, v = query.shape, key.shape, value.shape
    if min(len(q), len(k), len(v)) < 2 or k[:-1] != v[:-1] or q[-1] != k[-1] or q[:-3] != k[:-3] or len(q) != len(k):
        raise ValueError(
            "attention needs query (..., H, L, E), key (..., H_kv, S, E) and value (..., H_kv, S, E_v), their shapes"
            f" are {q}, {k} and {v}"
        )
    if len(q) > 2 and (k[-3] == 0 or q[-3] % k[-3]):
        raise ValueError(f"the query's heads (={q[-3]}) must be divisible by the key's (={k[-3]})")


def _check_masks(is_causal: bool, attn_mask: Array | None) -> None:
    if is_causal and attn_mask is not None:
        raise ValueError("`attn_mask` and `is_causal` exclude each other: make the mask causal")


def _heads(like: Array, query: tuple[int, ...], key: tuple[int, ...]) -> Iterator[tuple[int, Head, Head]]:
    """For each query head: its number, its index, and the index of its keys and values."""
    group = query[-3] // key[-3] if len(query) > 2 else 1
    for number, head in pieces(enumerate(_places(query[:-2])), like):
        yield number, head, (*head[:-1], head[-1] // group) if head else head


def _places(shape: tuple[int, ...]) -> Iterator[Head]:
    """Every index of an array of ``shape``; np.ndindex would hold all numbers along each dimension at once."""
    if not shape:
        yield ()
        return
    for i in range(shape[0]):
        for rest in _places(shape[1:]):
            yield (i, *rest)


def _dense(x: Array) -> Array:
    """Contiguous rows in the type to calculate in; the array itself if it is that already."""
    return np.ascontiguousarray(x, wide(x.dtype), like=x)


def _scaled(query: Array, scale: float) -> Array:
    rows = query.astype(wide(query.dtype))
    return np.multiply(rows, scale, out=rows)


def _default_scale(scale: float | None, width: int) -> float:
    return 1 / sqrt(width) if scale is None else scale


def _output(query: Array, width: int) -> Array:
    """An empty output with the memory layout of the queries, so that joining the heads needs no copy."""
    if query.shape[-1] == width:
        return np.empty_like(query)
    return np.empty_like(query, shape=(*query.shape[:-1], width), order="C")


def _gradient(d_out: Array, shape: tuple[int, ...], needed: bool) -> Array | None:
    return np.zeros_like(d_out, shape=shape, dtype=wide(d_out.dtype), order="C") if needed else None


def _hide_future(scores: Array, row: int, column: int) -> None:
    """Forbid keys that come after their query; the scores begin at query ``row`` and key ``column``."""
    rows, columns = scores.shape
    later = np.empty_like(scores, dtype=bool, order="C")
    keys, queries = np.arange(column, column + columns, like=scores), np.arange(row, row + rows, like=scores)
    np.greater(keys, queries[:, None], out=later)
    np.copyto(scores, -np.inf, where=later)


def _softmax(scores: Array) -> None:
    """Turn each row into probabilities; a row of -inf into zeros."""
    top = np.max(scores, axis=-1, keepdims=True)
    np.maximum(top, np.finfo(scores.dtype).min, out=top)
    np.subtract(scores, top, out=scores)
    np.exp(scores, out=scores)
    total = np.sum(scores, axis=-1, keepdims=True)
    np.maximum(total, 1, out=total)  # the largest term is 1, if there is any
    np.divide(scores, total, out=scores)


class ScaledDotProductAttention(Op):
    """softmax(q k^T scale + mask) v, with probabilities dropped out on the way if ``dropout_p`` > 0.

    ``attn_mask`` broadcasts to (..., H, L, S): where a boolean one is False the key is not attended to, one of numbers
    is added to the scores; it has no derivative. ``is_causal``: query i attends to keys 0..i. ``scale`` is 1/sqrt(E)
    unless given. ``mask`` says in which form the dropout mask is kept, as for :class:`~memback.ops.random.Dropout`.

    Keeps query, key, value, the probabilities and the dropout mask: for a heads, length s and batch b in float16 and
    with a mask of bytes these last two are 3 a s^2 b bytes. (Korthikanti et al. 2022, arXiv 2205.05198, count
    5 a s^2 b: they also keep the product of the two, which is made again here in backward.) The only workspace of the
    size of scores is that of one head, two of it in backward.
    """

    name = "scaled_dot_product_attention"
    source = "Vaswani et al. 2017, arXiv 1706.03762, Eq. 1"
    residuals = ("probabilities", "kept")
    saves = {
        "query": ("key", "value", "probabilities", "kept"),
        "key": ("query", "value", "probabilities", "kept"),
        "value": ("probabilities", "kept"),
    }

    def forward(
        self,
        query: Array,
        key: Array,
        value: Array,
        attn_mask: Array | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        mask: MaskForm = "bool",
        keep: bool = True,
    ) -> tuple[Array, Array | None, Mask | None]:
        _check(query, key, value)
        check_dropout(dropout_p, mask)
        _check_masks(is_causal, attn_mask)
        shape = (*query.shape[:-1], key.shape[-2])
        form: MaskForm = mask if keep else "seed"
        kept = draw_mask(query, prod(shape[:-2]), prod(shape[-2:]), dropout_p, form) if dropout_p else None
        masks = None if attn_mask is None else np.broadcast_to(attn_mask, shape)
        out = _output(query, value.shape[-1])
        probabilities = np.empty_like(query, shape=shape, order="C") if keep else None
        scale = _default_scale(scale, query.shape[-1])
        for number, head, shared in _heads(query, query.shape, key.shape):
            p = _probabilities(query[head], key[shared], scale, is_causal, None if masks is None else masks[head])
            if probabilities is not None:
                np.copyto(probabilities[head], p, casting="same_kind")
            if kept is not None:
                apply_mask(p, kept, dropout_p, number)
            np.copyto(out[head], np.matmul(p, _dense(value[shared])), casting="same_kind")
            del p  # before the next head's
        return out, probabilities, kept if keep else None

    def vjp(
        self,
        d_out: Array,
        needs: Any,
        shapes: Any,
        query: Array | None,
        key: Array | None,
        value: Array | None,
        probabilities: Array,
        kept: Mask | None,
        dropout_p: float,
        scale: float | None,
    ) -> tuple[Array | None, ...]:
        scale = _default_scale(scale, shapes[0][-1])
        d_query, d_key, d_value = map(_gradient, [d_out] * 3, shapes[:3], needs[:3])
        for number, head, shared in _heads(d_out, shapes[0], shapes[1]):
            g, p = _dense(d_out[head]), _dense(probabilities[head])
            if d_value is not None:
                _add_d_value(g, p, kept, dropout_p, number, d_value[shared])
            if value is not None:
                d_scores = np.matmul(g, _dense(value[shared]).T)
                if kept is not None:
                    apply_mask(d_scores, kept, dropout_p, number)
                _pull_back_softmax(d_scores, p)
                if d_query is not None and key is not None:
                    np.multiply(np.matmul(d_scores, _dense(key[shared])), scale, out=d_query[head])
                if d_key is not None and query is not None:
                    np.add(d_key[shared], np.matmul(d_scores.T, _scaled(query[head], scale)), out=d_key[shared])
                del d_scores
            del p
        grads = (None if d is None else d.astype(d_out.dtype, copy=False) for d in (d_query, d_key, d_value))
        return (*grads, None)

    def flops(self, query: Array, key: Array, attn_mask: Array | None, dropout_p: float, out: Array) -> int:
        scores = prod(query.shape[:-1]) * key.shape[-2]
        each = 2 * query.shape[-1] + 2 * out.shape[-1] + 5 + (attn_mask is not None) + (2 if dropout_p else 0)
        return scores * each + query.size


def _mask_scores(scores: Array, mask: Array) -> None:
    if mask.dtype == bool:
        np.copyto(scores, -np.inf, where=np.logical_not(mask))
    else:
        np.add(scores, mask, out=scores, casting="same_kind")


def _probabilities(query: Array, key: Array, scale: float, is_causal: bool, mask: Array | None) -> Array:
    scores = np.matmul(_scaled(query, scale), _dense(key).T)
    if mask is not None:
        _mask_scores(scores, mask)
    if is_causal:
        for rows in pieces(slices(scores.shape[0], ROWS), like=scores):
            _hide_future(scores[rows, rows.start :], rows.start, rows.start)
    _softmax(scores)
    return scores


def _add_d_value(g: Array, p: Array, kept: Mask | None, dropout_p: float, number: int, d_value: Array) -> None:
    if kept is not None:
        p = p.copy()
        apply_mask(p, kept, dropout_p, number)
    np.add(d_value, np.matmul(p.T, g), out=d_value)


def _pull_back_softmax(d_p: Array, p: Array) -> None:
    """Turn dL/dp into dL/dscores = p (dL/dp - sum of dL/dp p over the row)."""
    inner = np.sum(np.multiply(d_p, p), axis=-1, keepdims=True)
    np.subtract(d_p, inner, out=d_p)
    np.multiply(d_p, p, out=d_p)


class TiledAttention(Op):
    """softmax(q k^T scale) v by blocks, with an online softmax: no array of L x S elements is ever made.

    ``is_causal``, ``scale``, ``attn_mask``: as in :class:`ScaledDotProductAttention`; a mask that broadcasts is never
    spread out. ``block``: queries, and keys, in a block; causal attention skips blocks in which every key comes after
    every query. For each block of queries, running over blocks of keys with scores s, m' = max(m, max s) and
    p = exp(s - m'):

        l' = exp(m - m') l + sum p,    a' = exp(m - m') a + p v,    in the end out = a / l.

    Keeps query, key, value, the mask, the output and one number a query, the log-sum-exp m + log l, from which backward
    makes the probabilities of a block again: p = exp(s - log-sum-exp). With D = sum of dL/dout out over a row,
    dL/ds = p (dL/dout v^T - D).
    """

    name = "tiled_attention"
    source = "Dao et al. 2022, arXiv 2205.14135, Algorithms 1 and 4; Milakov & Gimelshein 2018, arXiv 1805.02867"
    residuals = ("lse",)
    saves = {
        "query": ("query", "key", "value", "out", "lse", "attn_mask"),
        "key": ("query", "key", "value", "out", "lse", "attn_mask"),
        "value": ("query", "key", "lse", "attn_mask"),
    }

    def forward(
        self,
        query: Array,
        key: Array,
        value: Array,
        is_causal: bool = False,
        scale: float | None = None,
        block: int = 128,
        attn_mask: Array | None = None,
    ) -> tuple[Array, Array]:
        _check(query, key, value)
        _check_masks(is_causal, attn_mask)
        if block < 1:
            raise ValueError(f"`block` (={block}) must be at least 1")
        out = _output(query, value.shape[-1])
        lse = np.empty_like(query, shape=query.shape[:-1], dtype=wide(query.dtype), order="C")
        scale = _default_scale(scale, query.shape[-1])
        masks = None if attn_mask is None else np.broadcast_to(attn_mask, (*query.shape[:-1], key.shape[-2]))
        for _, head, shared in _heads(query, query.shape, key.shape):
            for rows in pieces(slices(query.shape[-2], block), like=query):
                tile = _Tile(rows, key.shape[-2], block, is_causal, None if masks is None else masks[head])
                q = _scaled(query[head][rows], scale)
                _attend(tile, q, key[shared], value[shared], out[head][rows], lse[head][rows])
                del q
        return out, lse

    def vjp(
        self,
        d_out: Array,
        needs: Any,
        shapes: Any,
        query: Array,
        key: Array,
        value: Array | None,
        out: Array | None,
        lse: Array,
        attn_mask: Array | None,
        is_causal: bool,
        scale: float | None,
        block: int,
    ) -> tuple[Array | None, ...]:
        scale = _default_scale(scale, shapes[0][-1])
        d_query, d_key, d_value = map(_gradient, [d_out] * 3, shapes[:3], needs[:3])
        masks = None if attn_mask is None else np.broadcast_to(attn_mask, (*shapes[0][:-1], shapes[1][-2]))
        for _, head, shared in _heads(d_out, shapes[0], shapes[1]):
            for rows in pieces(slices(shapes[0][-2], block), like=d_out):
                tile = _Tile(rows, shapes[1][-2], block, is_causal, None if masks is None else masks[head])
                _pull_back(
                    tile,
                    _dense(d_out[head][rows]),
                    _scaled(query[head][rows], scale),
                    key[shared],
                    None if value is None else value[shared],
                    None if out is None else out[head][rows],
                    lse[head][rows],
                    None if d_query is None else d_query[head][rows],
                    None if d_key is None else d_key[shared],
                    None if d_value is None else d_value[shared],
                )
                if d_query is not None:
                    np.multiply(d_query[head][rows], scale, out=d_query[head][rows])
        grads = (None if d is None else d.astype(d_out.dtype, copy=False) for d in (d_query, d_key, d_value))
        return (*grads, None)

    def flops(self, query: Array, key: Array, is_causal: bool, block: int, attn_mask: Array | None, out: Array) -> int:
        length, keys = query.shape[-2], key.shape[-2]
        tiles = (_Tile(rows, keys, block, is_causal) for rows in slices(length, block))
        scores = prod(query.shape[:-2]) * sum((t.rows.stop - t.rows.start) * t.end for t in tiles)
        each = 2 * query.shape[-1] + 2 * out.shape[-1] + 4 + (attn_mask is not None)
        return scores * each + query.size + out.size


class _Tile:
    """A block of queries, and the keys that it attends to; ``mask`` is that of the whole head."""

    def __init__(self, rows: slice, keys: int, block: int, causal: bool, mask: Array | None = None) -> None:
        self.rows, self.block, self.causal, self.mask = rows, block, causal, mask
        self.end = min(keys, rows.stop) if causal else keys

    def columns(self, like: Array) -> Iterator[slice]:
        return pieces(slices(self.end, self.block), like)

    def scores(self, query: Array, key: Array, columns: slice) -> Array:
        scores = np.matmul(query, _dense(key[columns]).T)
        if self.mask is not None:
            _mask_scores(scores, self.mask[self.rows, columns])
        if self.causal and columns.stop - 1 > self.rows.start:
            _hide_future(scores, self.rows.start, columns.start)
        return scores


def _attend(tile: _Tile, query: Array, key: Array, value: Array, out: Array, lse: Array) -> None:
    top = np.full_like(query, np.finfo(query.dtype).min, shape=(len(query), 1), order="C")
    total = np.zeros_like(top)
    mixed = np.zeros_like(query, shape=(len(query), value.shape[-1]), order="C")
    for columns in tile.columns(query):
        _absorb(tile.scores(query, key, columns), _dense(value[columns]), top, total, mixed)
    np.maximum(total, 1, out=total)  # the largest term is 1, if any key is seen
    np.divide(mixed, total, out=mixed)
    np.copyto(out, mixed, casting="same_kind")
    np.log(total, out=total)
    np.add(top[:, 0], total[:, 0], out=lse)


def _absorb(scores: Array, value: Array, top: Array, total: Array, mixed: Array) -> None:
    """Take a block of keys into the running maximum, sum and mixture."""
    new = np.maximum(top, np.max(scores, axis=-1, keepdims=True))
    np.subtract(scores, new, out=scores)
    np.exp(scores, out=scores)
    np.subtract(top, new, out=top)
    np.exp(top, out=top)
    np.multiply(total, top, out=total)
    np.add(total, np.sum(scores, axis=-1, keepdims=True), out=total)
    np.multiply(mixed, top, out=mixed)
    np.add(mixed, np.matmul(scores, value), out=mixed)
    np.copyto(top, new)


def _pull_back(
    tile: _Tile,
    g: Array,
    query: Array,
    key: Array,
    value: Array | None,
    out: Array | None,
    lse: Array,
    d_query: Array | None,
    d_key: Array | None,
    d_value: Array | None,
) -> None:
    """Add the share of a block of queries to the gradients of one head; ``d_query`` lacks the scale."""
    inner = None if out is None else np.sum(np.multiply(g, out), axis=-1, keepdims=True)
    for columns in tile.columns(query):
        p = tile.scores(query, key, columns)
        np.subtract(p, lse[:, None], out=p)
        np.exp(p, out=p)
        if d_value is not None:
            np.add(d_value[columns], np.matmul(p.T, g), out=d_value[columns])
        if value is not None and inner is not None:
            d_scores = np.matmul(g, _dense(value[columns]).T)
            np.subtract(d_scores, inner, out=d_scores)
            np.multiply(d_scores, p, out=d_scores)
            if d_query is not None:
                np.add(d_query, np.matmul(d_scores, _dense(key[columns])), out=d_query)
            if d_key is not None:
                np.add(d_key[columns], np.matmul(d_scores.T, query), out=d_key[columns])
            del d_scores
        del p


scaled_dot_product_attention = ScaledDotProductAttention()
tiled_attention = TiledAttention()

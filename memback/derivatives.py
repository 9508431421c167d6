"""Partial and total derivatives, told apart as section 1 of the notes tells them apart.

A *partial* derivative belongs to one function: how its output changes when one of its direct arguments does (Eq. 1). A
*total* derivative belongs to a compute graph: how a value changes with everything that leads from x to it (Eqs. 3, 6).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from memback.state import current
from memback.tape import Node, Port, TapeError, Tensor, node_of, walk

__all__ = ["UndefinedDerivativeError", "partial", "total"]


class UndefinedDerivativeError(TapeError):
    """The partial derivative by something that is no direct argument (Eq. 5)."""


def partial(f: Tensor, x: Tensor) -> Any:
    """df/dx holding the other arguments of the function that made ``f`` fixed (Eq. 1).

    The function is the op whose output ``f`` is, and ``x`` must be one of the tensors that it was called on.
    Backward can still be run afterwards.

    Args:
        f: output of an op, recorded on a tape.
        x: one of that op's inputs.

    Returns:
        an array of f's shape + x's shape: d f[i] / d x[j].

    Raises:
        UndefinedDerivativeError: ``x`` is no direct argument of that function: the derivative is undefined, not zero.
        TapeError: ``x`` was passed in two places, so that "the" argument is ambiguous; ``f`` was not recorded.
    """
    node = _recorded(f)
    edge = x if x.node is None else x.node
    places = [i for i, e in enumerate(node.edges) if e is not None and _same(e, edge)]
    if not places:
        raise UndefinedDerivativeError(_why_undefined(node, x))
    if len(places) > 1:
        raise TapeError(
            f"x is argument {' and '.join(map(str, places))} of {node.describe()}: a partial derivative changes one"
            " argument alone (Eq. 1a), so give the places different tensors, for example ops.add(x, 0.0)"
        )
    node.check()
    rows = []
    for unit in _unit_gradients(f):
        if isinstance(f.node, Port):
            node.grad[f.node.index] = unit
        else:
            node.grad = unit
        rows.append(np.array(node.pull(current(), retain=True)[places[0]]))
    return np.stack(rows).reshape(f.shape + x.shape)


def total(f: Tensor, x: Tensor) -> Any:
    """df/dx along every path of the compute graph from ``x`` to ``f`` (Eqs. 3 and 6), by running backward.

    Backward can still be run afterwards; no gradient that is there already changes.

    Args:
        f: any recorded value.
        x: a tensor that requires gradients; a leaf or a value in between.

    Returns:
        an array of f's shape + x's shape; zeros where nothing leads from x to f.

    Raises:
        TapeError: ``f`` was not recorded, or ``x`` does not require gradients.
    """
    if not x.requires_grad:
        raise TapeError("x does not require gradients, so nothing is recorded of how f depends on it")
    if f is x:
        return np.eye(x.size, dtype=x.dtype).reshape(x.shape + x.shape)
    node = _recorded(f)
    everything = node.tape.graph()
    until = everything.index(node)
    nodes = everything[: until + 1]
    rows = []
    for unit in _unit_gradients(f):
        with _Borrowed(nodes):
            seed = [unit]
            f.node.accumulate(seed, 0)  # type: ignore[union-attr]
            rows.append(_walk_to(nodes, x))
    return np.stack(rows).reshape(f.shape + x.shape)


def _walk_to(nodes: list[Node], x: Tensor) -> Any:
    inner = None if x.node is None else node_of(x.node)
    cut = len(nodes) if inner is None else nodes.index(inner) + 1 if inner in nodes else len(nodes)
    later = nodes if inner is None else nodes[cut:]
    walk(list(later), current(), retain=True)
    grad = (x if x.node is None else x.node).grad
    return np.zeros(x.shape, x.dtype) if grad is None else np.array(grad)


class _Borrowed:
    """Sets aside the gradients of leaves and calls, and puts them back."""

    def __init__(self, nodes: list[Node]) -> None:
        leaves = {id(e): e for n in nodes for e in n.edges if isinstance(e, Tensor)}
        self._leaves = list(leaves.values())
        self._nodes = nodes

    def __enter__(self) -> None:
        self._grads = [leaf.grad for leaf in self._leaves]
        for leaf in self._leaves:
            leaf.grad = None

    def __exit__(self, *_: object) -> None:
        for leaf, grad in zip(self._leaves, self._grads, strict=True):
            leaf.grad = grad
        for node in self._nodes:
            node.forget_gradients()


def _recorded(f: Tensor) -> Node:
    if f.node is None:
        raise TapeError(
            "f is the output of no recorded op: compute it, on a tape, from a tensor with requires_grad=True"
        )
    return node_of(f.node)


def _same(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, Port) and isinstance(b, Port) and a.node is b.node and a.index == b.index)


def _unit_gradients(f: Tensor) -> Any:
    for i in range(f.size):
        unit = np.zeros(f.shape, f.dtype)
        unit.reshape(-1)[i] = 1
        yield unit


def _why_undefined(node: Node, x: Tensor) -> str:
    known = "requires gradients but " if x.requires_grad else "does not require gradients, or "
    return (
        f"the partial derivative by x is undefined: x {known}is no direct argument of {node.describe()}. A partial"
        " derivative perturbs one argument of one function (Eq. 1); by anything else it is not zero but undefined"
        " (Eq. 5). For the change along the whole compute graph use mb.total(f, x) (Eq. 6)"
    )

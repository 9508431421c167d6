"""Partial and total derivatives, told apart as section 1 of the notes tells them apart.

A *partial* derivative belongs to one function: how its output changes when one of its direct arguments does (Eq. 1). A
*total* derivative belongs to a compute graph: how a value changes with everything that leads from x to it (Eqs. 3, 6).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from memback.engine.errors import TapeError
from memback.engine.node import Node, Port, node_of
from memback.engine.state import current
from memback.engine.tape import walk, walking
from memback.engine.tensor import Tensor

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
        TapeError: ``x`` was passed in two places, so that "the" argument is ambiguous; ``f`` was not recorded, or what
            it saved is gone; either is no Tensor.
    """
    _check(f, x)
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
    rows = []
    for unit in _unit_gradients(f):
        if isinstance(f.node, Port):
            node.grad[f.node.index] = unit
        else:
            node.grad = unit
        rows.append(np.array(node.pull(current(), retain=True)[places[0]]))
    return np.reshape(np.array(rows, x.dtype), f.shape + x.shape)


def total(f: Tensor, x: Tensor) -> Any:
    """df/dx along every path of the compute graph from ``x`` to ``f`` (Eqs. 3 and 6), by running backward.

    Backward can still be run afterwards; no gradient that is there already changes.

    Args:
        f: any recorded value.
        x: a tensor that requires gradients; a leaf or a value in between.

    Returns:
        an array of f's shape + x's shape; zeros where nothing leads from x to f.

    Raises:
        TapeError: ``f`` was not recorded, or what it saved is gone; ``x`` does not require gradients; either is no
            Tensor.
    """
    _check(f, x)
    if not x.requires_grad:
        raise TapeError("x does not require gradients, so nothing is recorded of how f depends on it")
    if f is x:
        return np.eye(x.size, dtype=x.dtype).reshape(x.shape + x.shape)
    rows = []
    with walking(_recorded(f)) as nodes:
        for unit in _unit_gradients(f):
            with _borrowed(nodes, x):
                seed = [unit]
                f.node.accumulate(seed, 0)  # type: ignore[union-attr]
                rows.append(_walk_to(nodes, x))
    return np.reshape(np.array(rows, x.dtype), f.shape + x.shape)


def _walk_to(nodes: list[Node], x: Tensor) -> Any:
    inner = None if x.node is None else node_of(x.node)
    cut = len(nodes) if inner is None else nodes.index(inner) + 1 if inner in nodes else len(nodes)
    later = nodes if inner is None else nodes[cut:]
    walk(list(later), current(), retain=True)
    grad = (x if x.node is None else x.node).grad
    return np.zeros(x.shape, x.dtype) if grad is None else np.array(grad)


@contextmanager
def _borrowed(nodes: list[Node], x: Tensor) -> Iterator[None]:
    """In the block the gradients of leaves are set aside, and there is no observer, so the account stays as it was."""
    state = current()
    leaves = {id(x): x, **{id(e): e for node in nodes for e in node.edges if isinstance(e, Tensor)}}
    before = [(leaf, leaf.grad) for leaf in leaves.values()]
    observer, state.observer = state.observer, None
    for leaf in leaves.values():
        leaf.grad = None
    try:
        yield
    finally:
        state.observer = observer
        for leaf, grad in before:
            leaf.grad = grad
        for node in nodes:
            node.forget_gradients()


def _check(f: Any, x: Any) -> None:
    for name, value in (("f", f), ("x", x)):
        if not isinstance(value, Tensor):
            raise TapeError(f"`{name}` must be a Tensor, not {type(value).__name__}: only those are recorded")


def _recorded(f: Tensor) -> Node:
    if f.node is None:
        raise TapeError(
            "f is the output of no recorded op: compute it, on a tape, from a tensor with requires_grad=True"
        )
    node = node_of(f.node)
    node.check()
    return node


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

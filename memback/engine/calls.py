"""Calling an op: run it forward and, where an input requires gradients and a tape is there, record the call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from memback.engine.anomaly import check_output
from memback.engine.arrays import DryArray, without_values
from memback.engine.checksums import Seal
from memback.engine.failures import failure, is_for_the_op_to_explain, out_of_memory
from memback.engine.node import Edge, Node, Port
from memback.engine.observer import Call
from memback.engine.op import Op, OpError
from memback.engine.site import call_site, describe
from memback.engine.state import current
from memback.engine.tape import Tape
from memback.engine.tensor import Tensor, make
from memback.errors import MembackError

__all__ = ["record"]


def record(op: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run ``op`` forward and, where an input requires gradients and a tape is there, record the call."""
    state = current()
    tape: Tape | None = state.tape
    observer = state.observer
    try:
        values = op.bind(args, kwargs)
        if op.variadic is None:
            edges, needs, tensors = _unwrap(values, op.array_slots)
        else:
            edges, needs, tensors = _unwrap_sequence(values, op.variadic)
    except OpError as error:
        if tape is not None:
            tape.clear()
        raise OpError(f"{describe(op.name, state.path, call_site())}: {error}") from None
    if state.dry is not None:
        _forget_values(op, values, state.dry)
    if tape is None:
        needs = 0
    keep = tape is not None and tape.keeps(op, needs)
    site = call_site() if needs or observer is not None else None
    if observer is not None:
        observer.forward_begins(op)
    try:
        out, residuals = op.run(values, keep)
        if state.anomaly:
            check_output(op.name, out, state.path, site)
        node = None
        if needs and tape is not None:
            node = tape.record(op, values, out, residuals, needs, edges, state.path, site)
        elif tape is not None and tape.replay is not None:
            tape.pass_by(op, values, out, edges, state.path, site)
        if state.packing is not None:
            state.packing.called(op, values, out, residuals, node)
        if state.anomaly and node is not None:
            node.seal = Seal(node.needed())
    except BaseException as error:
        if observer is not None:
            observer.forward_failed()
        if tape is not None:
            tape.clear()
        if isinstance(error, MemoryError) and not isinstance(error, MembackError):
            raise out_of_memory(describe(op.name, state.path, site or call_site()), error) from error
        if not is_for_the_op_to_explain(error):
            raise
        raise failure(op, values, error, state.path, site or call_site()) from error
    if observer is not None:
        observer.forward_ended(Call(op, values, out, residuals, state.path, site, node, tape))
    if tape is not None and tape.retain == "all":
        tape.variables.append(out)
    if not tensors:
        return out
    return _wrap(out, node) if op.multiple else make(out, node)


def _unwrap_sequence(values: list[Any], place: int) -> tuple[tuple[Edge | None, ...], int, bool]:
    """As :func:`_unwrap`, of an op whose inputs are the sequence at ``place``."""
    items = values[place] = list(values[place])
    return _unwrap(items, [(1 << k, k) for k in range(len(items))])


def _unwrap(values: list[Any], slots: Sequence[tuple[int, int]]) -> tuple[tuple[Edge | None, ...], int, bool]:
    """Replace Tensors among ``values`` by their arrays: (edges, mask of inputs to differentiate, any Tensor)."""
    edges: list[Edge | None] = []
    needs, tensors = 0, False
    for bit, i in slots:
        value = values[i]
        edge: Edge | None = None
        if isinstance(value, Tensor):
            values[i] = value.data
            tensors = True
            if value.requires_grad:
                needs |= bit
                edge = value if value.node is None else value.node
        elif isinstance(value, (list, np.generic)):
            values[i] = np.asarray(value)
        edges.append(edge)
    return tuple(edges), needs, tensors


def _forget_values(op: Op, values: list[Any], dry: type[DryArray]) -> None:
    """Replace real arrays by arrays without memory, because on a dry run what the caller holds is an argument."""
    if op.variadic is not None:
        values[op.variadic] = [without_values(v, dry) for v in values[op.variadic]]
    for _, i in op.array_slots:
        values[i] = without_values(values[i], dry)


def _wrap(out: tuple[Any, ...], node: Node | None) -> tuple[Tensor, ...]:
    return tuple(make(o, None if node is None else Port(node, i)) for i, o in enumerate(out))


Op.record = staticmethod(record)

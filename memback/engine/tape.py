"""The tape that records calls of ops, and the backward pass that walks it in reverse (notes, sections 3 and 4).

The mechanism names no op. A :class:`Tape` is the order in which the calls were recorded.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import TracebackType
from typing import Any, Literal

from memback.engine.anomaly import check_gradients
from memback.engine.errors import TapeError
from memback.engine.failures import out_of_memory
from memback.engine.graph import claim
from memback.engine.node import Edge, MultiNode, Node, Port, Walk, node_of
from memback.engine.op import Op, OpError
from memback.engine.site import Site
from memback.engine.state import Setting, State, current
from memback.errors import MembackError

__all__ = ["Tape", "walk", "walking"]


class Tape(Setting):
    """The record of a forward pass, in order.

    Used as a context manager it becomes the thread's current tape; each thread has one of its own from the start.

    Args:
        retain: ``"needed"``: each call keeps what its backward needs. ``"all"``: besides, every variable of the
            forward pass stays until the backward pass is over (section 4.3 of the notes, read literally).
    """

    field = "tape"
    replay: Any = None
    """The :class:`~memback.engine.replay.Replay` of the region that this tape records, if it records one."""

    def __init__(self, retain: Literal["needed", "all"] = "needed") -> None:
        super().__init__()
        self.retain = retain
        self._nodes: list[weakref.ref[Node]] = []
        self._prune_at = 1024
        self.variables: list[Any] = []

    def value(self) -> Tape:
        """The tape itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__()
        if kind is not None:
            self.clear()

    def nodes(self) -> list[Node]:
        """The recorded calls that are still alive, in order."""
        return [node for ref in self._nodes if (node := ref()) is not None]

    def __len__(self) -> int:
        return sum(node.kept is not None for node in self.nodes())

    def clear(self) -> None:
        """Drop everything that was saved. Backward from a tensor recorded before is then an error."""
        for node in self.nodes():
            node.clear()
        self._nodes.clear()
        self.variables.clear()

    def keeps(self, op: Op, needs: int) -> bool:
        """Whether a call of ``op`` is to make its residuals, where bits of ``needs`` say what is differentiated."""
        return needs != 0

    def reruns(self, node: Node | None) -> bool:
        """Whether a call that was just made (``node``, if it was recorded) is run again for backward."""
        return False

    def segment(self, keep: Collection[str]) -> AbstractContextManager[Any]:
        """The block runs a segment that a checkpoint would recompute, all but the outputs of the ops in ``keep``."""
        return nullcontext()

    def pass_by(
        self, op: Op, values: list[Any], out: Any, edges: tuple[Edge | None, ...], path: str, site: Site | None
    ) -> None:
        """Take note, in a region, of a call that needs no gradient and is not recorded."""

    def append(self, node: Node) -> None:
        """Add a call to the record. The tape does not keep it alive: its tensors do."""
        self._nodes.append(weakref.ref(node))
        if len(self._nodes) > self._prune_at:
            self._nodes = [ref for ref in self._nodes if ref() is not None]
            self._prune_at = max(1024, 2 * len(self._nodes))

    def record(
        self,
        op: Op,
        values: list[Any],
        out: Any,
        residuals: tuple[Any, ...],
        needs: int,
        edges: tuple[Edge | None, ...],
        path: str,
        site: Site | None,
    ) -> Node:
        """Record one call and what its op declares to keep."""
        saving = op.saving(needs, len(edges), values)
        kept = op.arguments(saving, values, out, residuals)
        if op.multiple:
            node: Node = MultiNode(op, self, path, site, tuple(o.dtype for o in out), edges, kept, saving)
        else:
            node = Node(op, self, path, site, out.dtype, edges, kept, saving)
        self.append(node)
        return node

    def backward(self, edge: Node | Port, seed: list[Any], retain_graph: bool) -> None:
        """Walk the graph in reverse from ``edge``, whose gradient is ``seed[0]``: it may lie on other tapes, too."""
        state = current()
        with walking(node_of(edge)) as nodes:
            tapes, mine = {node.tape for node in nodes}, node_of(edge).walk
            try:
                if state.observer is not None:
                    state.observer.backward_pass_begins()
                node_of(edge).check()
                edge.accumulate(seed, 0)
                walk(nodes, state, retain_graph)
            except BaseException:
                for claimed in (n for tape in tapes for n in tape.nodes() if n.walk is mine):
                    claimed.clear()
                self.clear()
                raise
        if not retain_graph:
            for tape in tapes:
                tape.end_walk(tape is self)
        if state.observer is not None:
            state.observer.backward_pass_ended()

    def end_walk(self, began_here: bool) -> None:
        """Forget the calls that a walk has freed; the variables with the last of them, or if the walk began here."""
        self._nodes = [ref for ref in self._nodes if (node := ref()) is not None and node.kept is not None]
        if began_here or not self._nodes:
            self.variables.clear()


@contextmanager
def walking(origin: Node) -> Iterator[list[Node]]:
    """The calls that gradients from ``origin`` can reach, in order; in the block no other thread may walk over them.

    Raises:
        TapeError: another thread does already.
    """
    mine = Walk()
    try:
        nodes = claim(origin, mine)
        if nodes is None:
            raise TapeError(
                f"backward from {origin.describe()} while another thread takes a part of its graph backward: gradients"
                " of both would mix. Let one end before the other begins, or run a forward pass in each thread"
            )
        yield nodes
    finally:
        mine.end()


def walk(nodes: list[Node], state: State, retain: bool) -> None:
    """Take ``nodes`` backward, last first; each is freed as soon as it is done (unless ``retain``)."""
    observer = state.observer
    while nodes:
        node = nodes.pop()
        if not node.has_grad():
            continue
        node.check()
        if observer is not None:
            observer.backward_begins(node)
        edges = node.edges
        if not retain:
            node.edges = ()
        try:
            grads = node.pull(state, retain)
        except MembackError:
            raise
        except MemoryError as error:
            raise out_of_memory(f"the backward of {node.describe()}", error) from error
        except Exception as error:
            raise OpError(f"the backward of {node.describe()} failed: {error}") from error
        if state.anomaly:
            check_gradients(node, grads)
        for i, edge in enumerate(edges):
            if edge is not None and grads[i] is not None:
                edge.accumulate(grads, i)
        if observer is not None:
            observer.backward_ended(node, edges)


State.new_tape.append(Tape)
current().tape = Tape()

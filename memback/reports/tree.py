"""Saved bytes as a tree: module path, then op, then buffer. Every node is the sum of those below it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from memback.profiling.report import Run

__all__ = ["Branch", "tree"]


@dataclass
class Branch:
    """A module, an op's call, or a buffer, with the saved bytes that are charged to it and all below it."""

    name: str
    kind: str
    op: str = ""
    note: str = ""
    bytes: int = 0
    children: dict[str, Branch] = field(default_factory=dict)

    def child(self, key: str, name: str, kind: str) -> Branch:
        """The node below this one, made if it is not there yet."""
        return self.children.setdefault(f"{kind} {key}", Branch(name, kind))

    def walk(self, depth: int = 0) -> Iterator[tuple[int, Branch]]:
        """This node and all below it, each with its depth, parents first."""
        yield depth, self
        for node in self.children.values():
            yield from node.walk(depth + 1)


def tree(run: Run) -> Branch:
    """The tree of what a run saves. Layers that save nothing are left out; so are buffers without a known maker.

    A module with a single part is merged with it: ``3.attention softmax``.
    """
    root = Branch(run.label, "run", bytes=run.saved_bytes)
    buffers = _made(run)
    for layer in run.layers:
        if not layer.saved_bytes:
            continue
        node = root
        for part in filter(None, layer.path.split(".")):
            node = node.child(part, part, "module")
            node.bytes += layer.saved_bytes
        node = node.child(f"{layer.op} {layer.call}", layer.op, "op")
        node.bytes += layer.saved_bytes
        node.op = layer.op
        own = buffers.get((layer.path, layer.op, layer.call), {})
        if sum(buffer.bytes for buffer in own.values()) == node.bytes:
            node.children = {f"buffer {number}": buffer for number, buffer in own.items()}
    for _, node in list(root.walk()):
        _number_alike(node)
    for child in root.children.values():
        _merge(child)
    return root


def _made(run: Run) -> dict[tuple[str, str, int], dict[int, Branch]]:
    """The distinct saved buffers, by the call that made them."""
    maker = {buffer.buffer: (buffer.path, buffer.op, buffer.call) for buffer in run.buffers}
    made: dict[tuple[str, str, int], dict[int, Branch]] = {}
    for layer in run.layers:
        for value in layer.saved:
            if value.buffer in maker:
                node = Branch(value.origin, "buffer", maker[value.buffer][1], value.source, value.bytes)
                made.setdefault(maker[value.buffer], {})[value.buffer] = node
    return made


def _number_alike(node: Branch) -> None:
    """Two calls of the same op side by side get numbers, in the order of the calls."""
    ops = [child for child in node.children.values() if child.kind == "op"]
    for name in {child.op for child in ops}:
        alike = [child for child in ops if child.op == name]
        for number, child in enumerate(alike if len(alike) > 1 else (), start=1):
            child.name = f"{name} {number}"


def _merge(node: Branch) -> None:
    for child in node.children.values():
        _merge(child)
    if len(node.children) != 1:
        return
    ((key, only),) = node.children.items()
    if only.bytes != node.bytes:
        return
    if only.kind == "buffer":
        node.note = ", ".join(filter(None, (only.name, only.note)))
    else:
        joint = "." if key.startswith("module ") else " "
        node.name, node.kind, node.op, node.note = f"{node.name}{joint}{only.name}", only.kind, only.op, only.note
    node.children = only.children

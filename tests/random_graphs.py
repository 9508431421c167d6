"""Computations that nobody designed: directed graphs of calls of every op, drawn by a seed.

Inputs lie in memory in every way that NumPy knows, values are used several times or not at all, and parts are run
under checkpoints. What an op can't be given (a kink, the logarithm of a negative number, an image of a vector) is made
of what there is, by more calls. Every call is made in float64 while the graph is drawn, so that shapes are known.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import cache
from math import prod
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

import memback as mb
from memback import nn, ops
from memback.engine.arrays import root
from memback.engine.op import REGISTRY
from memback.nn.module import Parameter

DTYPES = {name: np.dtype(name) for name in ("float64", "float32", "float16")} | {
    "bfloat16": np.dtype(ml_dtypes.bfloat16)
}
LAYOUTS = ("rows", "rows", "transposed", "strided", "reversed", "part", "repeated", "shared")
SEED = 7


class Ref(NamedTuple):
    """A value of a graph: a leaf, or an output of a call."""

    number: int
    part: int = 0


class Leaf(NamedTuple):
    """What a graph starts from: an array, and whether its gradient is asked for."""

    array: Any
    trained: bool


class Step(NamedTuple):
    """A call; arrays that other calls give are :class:`Ref`."""

    op: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Graph(NamedTuple):
    """Leaves, then calls in order; the loss is the sum of the ``ends`` by fixed weights.

    ``segments`` are ranges of calls (first, end) that a checkpoint may run.
    """

    leaves: list[Leaf]
    steps: list[Step]
    ends: list[Ref]
    segments: list[tuple[int, int]]

    def cast(self, dtype: Any) -> Graph:
        """The same graph in another type: leaves lie in their buffers, some of them in one, as they do here."""
        buffers: dict[int, Any] = {}
        leaves = [Leaf(_laid_out_alike(array, np.dtype(dtype), buffers), trained) for array, trained in self.leaves]
        steps = [step._replace(args=_cast(step.args, np.dtype(dtype))) for step in self.steps]
        return self._replace(leaves=leaves, steps=steps)


def _cast(value: Any, dtype: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.astype(dtype) if value.dtype.kind in "fV" else value
    return type(value)(_cast(v, dtype) for v in value) if type(value) in (list, tuple) else value


def _laid_out_alike(array: Any, dtype: Any, buffers: dict[int, Any]) -> Any:
    """The array in another type; ``buffers`` are those of arrays that were met before."""
    base = root(array)
    rows = base.ravel(order="K")
    buffer = buffers.setdefault(id(base), rows.astype(dtype))
    offset = (array.ctypes.data - rows.ctypes.data) // array.itemsize if array.size else 0
    strides = tuple(n // array.itemsize * dtype.itemsize for n in array.strides)
    return np.ndarray(array.shape, dtype, buffer, offset * dtype.itemsize, strides)


# -- drawing


class Draw:
    """Draws a graph: ``large`` ones have values of tens of thousands of elements, others of a few."""

    def __init__(self, seed: int, large: bool = False) -> None:
        self.of = random.Random(seed)
        self.rng = np.random.default_rng(seed)
        self.large = large
        self.leaves: list[Leaf] = []
        self.steps: list[Step] = []
        self.values: dict[Ref, Any] = {}
        self.chance_left = 1  # calls that draw at random; PyTorch's equivalents know one mask only
        self._pool: Any = None

    # what there is

    def one(self, *options: Any) -> Any:
        return self.of.choice(options)

    def shape(self, ref: Ref) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.values[ref].shape
        return shape

    def leaf(self, *shape: int) -> Ref:
        """A new leaf of random numbers."""
        ref = Ref(-1 - len(self.leaves))
        array = self._laid_out(np.asarray(self.rng.normal(size=shape)))
        self.leaves.append(Leaf(array, self.of.random() < 0.7))
        self.values[ref] = array
        return ref

    def _laid_out(self, array: Any) -> Any:
        how, shape = self.one(*LAYOUTS), array.shape
        if not shape or how == "rows":
            return array
        if how == "transposed":
            return np.ascontiguousarray(array.T).T
        if how == "reversed":
            return array[::-1]
        if how == "strided":
            room = np.zeros((*shape[:-1], 2 * shape[-1]))
            room[..., ::2] = array
            return room[..., ::2]
        if how == "part":
            room = np.zeros((*shape[:-1], shape[-1] + 3))
            room[..., 1:-2] = array
            return room[..., 1:-2]
        if how == "repeated" and shape[0]:
            return np.broadcast_to(array[:1].copy(), shape)
        if self._pool is None:  # views of one buffer
            self._pool = self.rng.normal(size=200_000 if self.large else 4_000)
        start = self.of.randrange(max(1, self._pool.size - array.size))
        return self._pool[start : start + array.size].reshape(shape)

    def value(self, *shape: int) -> Ref:
        """A value of this shape: one that is there, or a new leaf."""
        there = [ref for ref, value in self.values.items() if value.shape == shape]
        return self.of.choice(there) if there and self.of.random() < 0.5 else self.leaf(*shape)

    def partner(self, ref: Ref, number: float = 1.7) -> Any:
        """What broadcasts with a value: one of its shape, of a part of it, or a number."""
        shape = self.shape(ref)
        how = self.one("same", "same", "row", "column", "number")
        if how == "number":
            return number
        if how == "row" and shape:
            return self.value(*shape[self.of.randrange(len(shape)) :])
        if how == "column" and shape:
            return self.value(*(1 if self.of.random() < 0.5 else n for n in shape))
        return self.value(*shape)

    # calls

    def call(self, op: str, *args: Any, **kwargs: Any) -> Any:
        """Add a call: what it gives, one value or several."""
        self.steps.append(Step(op, args, kwargs))
        number = len(self.steps) - 1
        mb.manual_seed(SEED)
        out = REGISTRY[op](*filled(args, self.values.__getitem__), **kwargs)
        parts = list(out) if REGISTRY[op].multiple else [out]
        refs = [Ref(number, i) for i in range(len(parts))]
        self.values.update(zip(refs, map(np.asarray, parts), strict=True))
        return refs if REGISTRY[op].multiple else refs[0]

    def tame(self, ref: Ref) -> Ref:
        """The value, or its tanh where it is large."""
        large = np.max(np.abs(self.values[ref]), initial=0) > 4
        return self.call("tanh", ref) if large else ref

    def distinct(self, ref: Ref) -> Ref:
        """Without equal elements, and without zeros."""
        shape = self.shape(ref)
        places = (self.rng.permutation(prod(shape)).reshape(shape) + 0.5) / max(1, prod(shape))
        noise = Ref(-1 - len(self.leaves))
        self.leaves.append(Leaf(np.asarray(places - 0.47), False))
        self.values[noise] = self.leaves[-1].array
        return self.call("add", ref, noise)

    def positive(self, ref: Ref) -> Ref:
        return self.call("exp", self.call("tanh", ref))

    def folded(self, ref: Ref, *, ndim: int) -> Ref:
        """In so many dimensions, none of which is empty."""
        rest, shape = prod(self.shape(ref)), []
        for _ in range(ndim - 1):
            divisors = [n for n in range(1, 33 if self.large else 5) if rest % n == 0]
            shape.append(self.of.choice(divisors))
            rest //= shape[-1]
        shape.insert(self.of.randrange(ndim) if ndim < 4 else 3, rest)
        return ref if tuple(shape) == self.shape(ref) else self.call("reshape", ref, tuple(shape))

    def dim(self, ref: Ref) -> int:
        n = len(self.shape(ref))
        return self.of.randrange(-n, n)

    def index(self, stop: int, *shape: int) -> Any:
        return self.rng.integers(0, stop, shape).astype(self.one("int64", "int32"))


def filled(value: Any, get: Callable[[Ref], Any]) -> Any:
    """Arguments with values in the place of references."""
    if isinstance(value, Ref):
        return get(value)
    return type(value)(filled(v, get) for v in value) if type(value) in (list, tuple) else value


# -- one call of each op, on a value that is there and what else it takes

Builder = Callable[[Draw, Ref], Any]
BUILDERS: dict[str, Builder] = {}


def build(*names: str) -> Callable[[Callable[[Draw, str, Ref], Any]], None]:
    def register(function: Callable[[Draw, str, Ref], Any]) -> None:
        for name in names:
            BUILDERS[name] = lambda g, x, name=name: function(g, name, x)

    return register


@build("negative", "sigmoid", "tanh", "silu", "softplus")
def _(g: Draw, name: str, x: Ref) -> Any:
    return g.call(name, x)


@build("exp")
def _(g: Draw, name: str, x: Ref) -> Any:
    return g.positive(x)


@build("log", "sqrt")
def _(g: Draw, name: str, x: Ref) -> Any:
    return g.call(name, g.positive(x))


@build("absolute", "relu", "relu_bits")
def _(g: Draw, name: str, x: Ref) -> Any:
    return g.call(name, g.distinct(x))


@build("leaky_relu")
def _(g: Draw, name: str, x: Ref) -> Any:
    return g.call(name, g.distinct(x), g.one(0.01, 0.3))


@build("gelu")
def _(g: Draw, name: str, x: Ref) -> Any:
    return g.call(name, x, g.one("none", "tanh"))


@build("add", "subtract", "multiply")
def _(g: Draw, name: str, x: Ref) -> Any:
    return g.call(name, x, g.partner(x))


@build("divide")
def _(g: Draw, name: str, x: Ref) -> Any:
    other = g.partner(x)
    return g.call(name, x, g.positive(other) if isinstance(other, Ref) else other)


@build("power")
def _(g: Draw, name: str, x: Ref) -> Any:
    return g.call(name, g.positive(x), g.one(2, -1, 0.5, g.value(*g.shape(x))))


@build("maximum")
def _(g: Draw, name: str, x: Ref) -> Any:
    return g.call(name, g.distinct(x), g.value(*g.shape(x)))


@build("where")
def _(g: Draw, name: str, x: Ref) -> Any:
    other = g.partner(x)
    condition = np.asarray(g.rng.random(np.broadcast_shapes(g.shape(x))) < 0.6)
    return g.call(name, condition, x, other)


def _dims(g: Draw, x: Ref, several: bool) -> Any:
    """None, a dimension or several."""
    shape = g.shape(x)
    if not shape:
        return None
    d = g.of.choice(range(len(shape)))
    return g.one(None, d, d - len(shape), (d, (d + 1) % len(shape)) if several and len(shape) > 1 else d)


@build("sum", "mean")
def _(g: Draw, name: str, x: Ref) -> Any:
    return g.call(name, x, _dims(g, x, True), g.one(True, False))


@build("var")
def _(g: Draw, name: str, x: Ref) -> Any:
    folded = g.folded(x, ndim=2)
    d = int(np.argmax(g.shape(folded)))
    if g.shape(folded)[d] < 2:
        return g.call("tanh", x)
    return g.call(name, folded, d, correction=g.one(0, 1), keepdim=g.one(True, False))


@build("max")
def _(g: Draw, name: str, x: Ref) -> Any:
    x = g.distinct(x if prod(g.shape(x)) > 1 else g.call("broadcast_to", x, (3, *g.shape(x))))
    return g.call(name, x, _dims(g, x, False), g.one(True, False))


@build("reshape")
def _(g: Draw, name: str, x: Ref) -> Any:
    shape = g.shape(x)
    return g.call(name, x, g.one((-1,), shape[::-1], (*shape, 1), (1, *shape)))


@build("transpose", "swapaxes")
def _(g: Draw, name: str, x: Ref) -> Any:
    return g.call(name, x, g.dim(x), g.dim(x)) if g.shape(x) else g.call("tanh", x)


@build("permute")
def _(g: Draw, name: str, x: Ref) -> Any:
    order = list(range(len(g.shape(x))))
    g.of.shuffle(order)
    return g.call(name, x, tuple(order))


@build("broadcast_to")
def _(g: Draw, name: str, x: Ref) -> Any:
    return g.call(name, x, (g.one(1, 2, 3), *(g.one(1, 2) if n == 1 else n for n in g.shape(x))))


@build("concatenate")
def _(g: Draw, name: str, x: Ref) -> Any:
    if not g.shape(x):
        return g.call("stack", [x, x, g.leaf()], 0)
    d, shape = g.dim(x) % len(g.shape(x)), g.shape(x)
    other = g.value(*shape[:d], g.one(1, 2, shape[d]), *shape[d + 1 :])
    return g.call(name, g.one([x, other], [other, x, x]), d)


@build("stack")
def _(g: Draw, name: str, x: Ref) -> Any:
    return g.call(name, [x, g.value(*g.shape(x)), x][: g.one(2, 3)], g.of.randrange(len(g.shape(x)) + 1))


@build("split")
def _(g: Draw, name: str, x: Ref) -> Any:
    if not g.shape(x):
        return g.call("tanh", x)
    d = g.dim(x)
    n = g.shape(x)[d]
    parts = g.call(name, x, g.one(max(1, n // 2), [n // 3, n - n // 3]), d)
    return g.of.choice(parts)  # the others may stay without use


@build("getitem")
def _(g: Draw, name: str, x: Ref) -> Any:
    if not g.shape(x) or 0 in g.shape(x):
        return g.call("tanh", x)
    n, rest = g.shape(x)[0], len(g.shape(x)) - 1
    options: list[Any] = [slice(None, None, -1), slice(n // 2, None), slice(None, None, 2), (None, slice(0, n))]
    options += [g.index(n, g.one(1, 3, n)), (g.index(n, 3), None), (..., slice(0, 1)), g.index(n, 2, 2)]
    if rest:
        options += [0, (g.index(n, 4), g.index(g.shape(x)[1], 4)), (slice(None), g.index(g.shape(x)[1], 3))]
    options.append((0,) * (rest + 1))
    return g.call(name, x, g.of.choice(options))


@build("embedding")
def _(g: Draw, name: str, x: Ref) -> Any:
    weight = g.folded(x, ndim=2)
    return g.call(name, g.index(g.shape(weight)[0], g.one(2, 7), 2), weight)


@build("linear")
def _(g: Draw, name: str, x: Ref) -> Any:
    x = x if g.shape(x) else g.call("reshape", x, (1,))
    n, m = g.shape(x)[-1], g.one(1, 3, 4)
    if n > 100:
        x = g.folded(x, ndim=2)
        n = g.shape(x)[-1]
    return g.call(name, x, g.value(n, m), *g.one((), (g.value(m),)))


@build("matmul")
def _(g: Draw, name: str, x: Ref) -> Any:
    x = g.folded(x, ndim=g.one(2, 3))
    n, m, before = g.shape(x)[-1], g.one(1, 2, 4), g.shape(x)[:-2]
    return g.call(name, x, g.value(*g.one((n, m), (*before, n, m), (*(1 for _ in before), n, m), (n,))))


@build("sqerr", "mse", "binary_cross_entropy_with_logits")
def _(g: Draw, name: str, x: Ref) -> Any:
    return g.call(name, x, g.value(*g.shape(x)))


@build("cross_entropy")
def _(g: Draw, name: str, x: Ref) -> Any:
    x = g.folded(x, ndim=g.one(2, 3))
    shape = g.shape(x)
    target = g.index(shape[1], shape[0], *shape[2:])
    return g.call(name, x, target, reduction=g.one("mean", "sum"))


@build("softmax", "log_softmax")
def _(g: Draw, name: str, x: Ref) -> Any:
    return g.call(name, x, g.dim(x)) if g.shape(x) else g.call("tanh", x)


@build("attention_softmax")
def _(g: Draw, name: str, x: Ref) -> Any:
    return g.call(name, g.folded(x, ndim=g.one(2, 3)), g.one(1.0, 0.4), g.one(True, False))


@build("layer_norm", "rms_norm")
def _(g: Draw, name: str, x: Ref) -> Any:
    x = g.folded(x, ndim=2)
    features = g.shape(x)[1:]
    vectors = [g.one(None, g.value(*features)) for _ in range(2 if name == "layer_norm" else 1)]
    return g.call(name, x, features, *vectors, 0.1)


@build("group_norm")
def _(g: Draw, name: str, x: Ref) -> Any:
    x = g.folded(x, ndim=3)
    channels = g.shape(x)[1]
    if prod(g.shape(x)) == channels:  # a group of a single number, which PyTorch refuses
        return g.call("tanh", x)
    vectors = [g.one(None, g.value(channels)) for _ in range(2)]
    return g.call(name, x, g.one(1, channels), *vectors, 0.1)


@build("batch_norm")
def _(g: Draw, name: str, x: Ref) -> Any:
    x = g.folded(x, ndim=g.one(2, 3))
    channels = g.shape(x)[1]
    vectors = [g.one(None, g.value(channels)) for _ in range(2)]
    if prod(g.shape(x)) // channels > 1 and g.one(True, False):
        return g.call(name, x, None, None, *vectors, True, 0.1, 0.1)
    running = g.rng.normal(size=channels), g.rng.uniform(0.5, 2, channels)
    return g.call(name, x, *running, *vectors, False, 0.1, 0.1)


@build("conv2d")
def _(g: Draw, name: str, x: Ref) -> Any:
    x = g.folded(x, ndim=4)
    _, channels, *size = g.shape(x)
    kernel = [g.of.randint(1, min(3, n)) for n in size]
    weight = g.value(g.one(1, 2, 3), channels, *kernel)
    return g.call(name, x, weight, g.one(None, g.value(g.shape(weight)[0])), g.one(1, 2), g.one(0, 1), 1, 1)


@build("max_pool2d", "avg_pool2d")
def _(g: Draw, name: str, x: Ref) -> Any:
    x = g.folded(x, ndim=4)
    kernel = tuple(g.of.randint(1, min(4, n)) for n in g.shape(x)[2:])
    padding = tuple(k // 2 for k in kernel) if g.one(True, False) else (0, 0)
    more = (1, False) if name == "max_pool2d" else (False, g.one(True, False))
    return g.call(name, g.distinct(x) if name == "max_pool2d" else x, kernel, g.one(1, 2), padding, *more)


@build("upsample")
def _(g: Draw, name: str, x: Ref) -> Any:
    return g.call(name, g.folded(x, ndim=4), g.one(1, 2, (1, 3)), g.one("nearest", "bilinear"))


@build("rotary")
def _(g: Draw, name: str, x: Ref) -> Any:
    x = g.folded(x, ndim=2)
    return g.call(name, g.call("concatenate", [x, x], 1), g.one(10000.0, 50.0), g.one(0, 5))


@build("dropout")
def _(g: Draw, name: str, x: Ref) -> Any:
    g.chance_left -= 1
    p = 0.3 if g.chance_left >= 0 else 0.0
    return g.call(name, x, p, training=True, mask=g.one("bool", "bits", "seed"))


@build("scaled_dot_product_attention", "tiled_attention")
def _(g: Draw, name: str, x: Ref) -> Any:
    query = g.folded(x, ndim=3)
    if g.large and g.shape(query)[1] > 600:  # probabilities are made of its square
        query = g.call("getitem", query, (slice(None), slice(0, 600)))
    heads, length, width = g.shape(query)
    if width > 500:
        query, width = g.call("getitem", query, (..., slice(0, 64))), 64
    keys = g.one(2, 3, min(length, 50))
    key, value = g.value(heads, keys, width), g.value(heads, keys, g.one(1, 2, width))
    causal = g.one(True, False)
    if name == "tiled_attention":
        return g.call(name, query, key, value, causal, g.one(None, 0.3), g.one(2, 128), None)
    g.chance_left -= 1
    p = g.one(0.0, 0.3) if g.chance_left >= 0 else 0.0
    return g.call(name, query, key, value, None, p, is_causal=causal, mask=g.one("bool", "seed"))


# -- a whole graph

ANY_SIZE = ("negative", "tanh", "exp", "relu", "add", "multiply", "reshape", "permute", "concatenate", "stack")
"""Ops that take arrays without elements here."""

SHAPES = [(2, 3), (3, 4, 2), (4,), (1, 3), (3, 1), (2, 1, 4), (), (1,), (1, 1), (2, 2, 3, 2), (12,)]
EMPTY = [(0, 3), (2, 0), (0,)]
LARGE = [(300, 64), (16, 30, 40), (20_000,), (1, 25_000), (25_000, 1), (8, 4, 24, 24), (4000, 5), (5, 4000)]


def draw(seed: int, large: bool = False) -> Graph:
    """The graph of a seed; with ``large`` its peaks are worth measuring."""
    g = Draw(seed, large)
    names = sorted(BUILDERS)
    empty = not large and seed % 12 == 11
    values = [g.leaf(*g.one(*(LARGE if large else EMPTY if empty else SHAPES))) for _ in range(g.one(1, 2))]
    if not any(leaf.trained for leaf in g.leaves):
        g.leaves[0] = g.leaves[0]._replace(trained=True)
    used: set[Ref] = set()
    for i in range(g.one(3, 4, 5) if large else g.one(4, 6, 8)):
        x = g.of.choice(values[-3:])
        name = names[seed % len(names)] if i == 0 else g.of.choice(names)
        if prod(g.shape(x)) == 0:
            name = g.one(*ANY_SIZE, "sum")
        elif g.large and prod(g.shape(x)) > 400_000:
            name = "mean"
        used.add(x)
        values.append(g.tame(BUILDERS[name](g, x)))
    ends = [ref for ref in values if ref not in used or g.of.random() < 0.2]
    ends = [ref for ref in ends if g.of.random() < 0.8] or ends[-1:]  # the others are computed for nobody
    return Graph(g.leaves, g.steps, ends, list(_segments(g, len(g.steps))))


def _segments(g: Draw, count: int) -> Iterator[tuple[int, int]]:
    start = 0
    while start < count:
        end = min(count, start + g.one(1, 2, 3, 5))
        if end - start > 1 and g.of.random() < 0.7:
            yield start, end
        start = end


# -- running


def loss(graph: Graph, leaves: list[Any], checkpoints: bool = False) -> Any:
    """The loss of leaves, Tensors or arrays; with ``checkpoints``, segments are run under one each."""
    mb.manual_seed(SEED)
    values: dict[Ref, Any] = {Ref(-1 - i): leaf for i, leaf in enumerate(leaves)}
    starts = dict(graph.segments) if checkpoints else {}
    number = 0
    while number < len(graph.steps):
        end = starts.get(number)
        if end is None:
            _run(graph, number, number + 1, values)
            number += 1
        else:
            _run_segment(graph, number, end, values)
            number = end
    total: Any = None
    for ref in graph.ends:
        part = ops.sum(ops.multiply(values[ref], weights(values[ref].shape, values[ref].dtype)))
        total = part if total is None else ops.add(total, part)
    return total


@cache
def weights(shape: tuple[int, ...], dtype: Any) -> Any:
    """Numbers of both signs, exact in every type: the same array each time, for a step finds its inputs made."""
    return ((np.arange(prod(shape)) % 7 - 2.5) / 4).reshape(shape).astype(dtype)


def _run(graph: Graph, start: int, end: int, values: dict[Ref, Any]) -> None:
    for number in range(start, end):
        op, args, kwargs = graph.steps[number]
        out = REGISTRY[op](*filled(args, values.__getitem__), **kwargs)
        values.update({Ref(number, i): v for i, v in enumerate(out if REGISTRY[op].multiple else [out])})


def _refs(value: Any) -> Iterator[Ref]:
    if isinstance(value, Ref):
        yield value
    elif type(value) in (list, tuple):
        for item in value:
            yield from _refs(item)


def _run_segment(graph: Graph, start: int, end: int, values: dict[Ref, Any]) -> None:
    """Run some calls under a checkpoint: values from before go in, those that are used later come out."""
    needed = dict.fromkeys(ref for step in graph.steps[start:end] for ref in _refs(step.args))
    given = [ref for ref in needed if ref in values]
    later = {ref for step in graph.steps[end:] for ref in _refs(step.args)} | set(graph.ends)
    wanted = [ref for ref in sorted(later) if start <= ref.number < end]

    def segment(*inputs: Any) -> Any:
        inside = dict(zip(given, inputs, strict=True))
        _run(graph, start, end, inside)
        return tuple(inside[ref] for ref in wanted)

    if wanted:
        outs = mb.checkpoint(segment, *(values[ref] for ref in given))
        values.update(zip(wanted, outs, strict=True))
    else:
        segment(*(values[ref] for ref in given))


class Model(nn.Module):
    """A graph whose trained leaves are parameters."""

    def __init__(self, graph: Graph, checkpoints: bool = False) -> None:
        super().__init__()
        self.graph, self.checkpoints = graph, checkpoints
        self.names = [f"leaf{i}" if leaf.trained else None for i, leaf in enumerate(graph.leaves)]
        for name, leaf in zip(self.names, graph.leaves, strict=True):
            if name is not None:
                setattr(self, name, Parameter(leaf.array))

    def forward(self) -> Any:
        leaves = [
            mb.Tensor(leaf.array) if name is None else getattr(self, name)
            for name, leaf in zip(self.names, self.graph.leaves, strict=True)
        ]
        return loss(self.graph, leaves, self.checkpoints)

"""For every op: calls of it drawn at random, and what PyTorch calls the same.

Values lie where the op is differentiable: away from kinks, and without equal elements where the largest is chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import memback as mb
from memback.dry.array import ShapeArray
from memback.engine.arrays import Array
from memback.ops.masks import draw_mask

CASES: dict[str, Case] = {}

SEED = 7
"""The random stream's seed before each call: all of them draw the same masks."""


class Call(NamedTuple):
    """Arguments of one call; arrays of numbers are float64."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def map(self, change: Callable[[Any], Any]) -> Call:
        """The same call with every array replaced."""
        return Call(tuple(_map(change, a) for a in self.args), {n: _map(change, a) for n, a in self.kwargs.items()})

    def copy(self) -> Call:
        """A call that shares no memory with this one; the layout in memory stays."""
        return self.map(lambda a: a.copy(order="K"))

    def cast(self, dtype: Any) -> Call:
        """The same call with numbers of another floating-point type."""
        return self.map(lambda a: a.astype(dtype) if a.dtype.kind in "fV" else a.copy(order="K"))


def _map(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return change(value)
    return type(value)(_map(change, v) for v in value) if type(value) in (list, tuple) else value


class Case(NamedTuple):
    """Calls of an op, and its equivalent: ``torch(module, *args, **kwargs)`` on tensors."""

    calls: st.SearchStrategy[Call]
    torch: Callable[..., Any]


class Draw:
    """Draws what calls are made of."""

    def __init__(self, draw: Callable[..., Any]) -> None:
        self.of = draw
        self.rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def one(self, *options: Any) -> Any:
        return self.of(st.sampled_from(options))

    def size(self, least: int = 1, most: int = 4) -> int:
        return self.of(st.integers(least, most))

    def shape(self, least: int = 0, most: int = 3) -> tuple[int, ...]:
        return self.of(hnp.array_shapes(min_dims=least, max_dims=most, max_side=4))

    def shapes(self, count: int) -> tuple[tuple[int, ...], ...]:
        """Shapes that broadcast."""
        return self.of(hnp.mutually_broadcastable_shapes(num_shapes=count, max_dims=3, max_side=3)).input_shapes

    def dim(self, ndim: int) -> int:
        return self.size(-ndim, ndim - 1)

    def dims(self, ndim: int) -> Any:
        """One dimension, several or all, as reductions take them; negative ones too."""
        if self.one(True, False) or not ndim:
            return None if self.one(True, False) or not ndim else self.dim(ndim)
        chosen = self.of(st.lists(st.integers(0, ndim - 1), min_size=1, unique=True))
        return tuple(self.one(d, d - ndim) for d in chosen)

    def laid_out(self, array: Array) -> Array:
        """Row by row in memory, or as a transpose."""
        if array.ndim < 2 or self.one(True, True, False):
            return array
        return np.ascontiguousarray(array.swapaxes(0, -1)).swapaxes(0, -1)

    def normal(self, *shape: int) -> Array:
        return self.laid_out(np.asarray(self.rng.normal(size=shape)))

    def positive(self, *shape: int) -> Array:
        return self.laid_out(np.asarray(self.rng.uniform(0.4, 2.5, size=shape)))

    def nonzero(self, *shape: int) -> Array:
        """Of both signs, and no closer to zero than a difference quotient reaches."""
        sizes = self.rng.uniform(0.1, 2.5, size=shape)
        return self.laid_out(np.asarray(sizes * self.rng.choice([-1.0, 1.0], size=shape)))

    def distinct(self, *shape: int) -> Array:
        """No two elements closer to each other than 3 / size."""
        size = int(np.prod(shape))
        return self.laid_out(np.asarray(3 * (self.rng.permutation(size) / size - 0.5).reshape(shape)))

    def integers(self, stop: int, *shape: int) -> Array:
        return np.asarray(self.rng.integers(0, stop, size=shape))

    def maybe(self, array: Array) -> Array | None:
        return self.one(array, None) if self.one(True, False) else array


def case(name: str, torch: Callable[..., Any]) -> Callable[[Callable[[Draw], Call]], Callable[[Draw], Call]]:
    """Register a function that draws calls of the op ``name``."""

    def register(function: Callable[[Draw], Call]) -> Callable[[Draw], Call]:
        CASES[name] = Case(st.composite(lambda draw: function(Draw(draw)))(), torch)
        return function

    return register


def call(*args: Any, **kwargs: Any) -> Call:
    return Call(args, kwargs)


# -- elementwise


def _one_argument(name: str, kind: Callable[..., Array], torch: Callable[..., Any], **options: tuple[Any, ...]) -> None:
    @case(name, torch)
    def _(draw: Draw) -> Call:
        return Call((kind(draw, *draw.shape()),), {option: draw.one(*values) for option, values in options.items()})


_one_argument("absolute", Draw.nonzero, lambda torch, x: torch.abs(x))
_one_argument("negative", Draw.normal, lambda torch, x: -x)
_one_argument("exp", Draw.normal, lambda torch, x: torch.exp(x))
_one_argument("log", Draw.positive, lambda torch, x: torch.log(x))
_one_argument("sqrt", Draw.positive, lambda torch, x: torch.sqrt(x))
_one_argument("relu", Draw.nonzero, lambda torch, x: torch.relu(x))
_one_argument("relu_bits", Draw.nonzero, lambda torch, x: torch.relu(x))
_one_argument("sigmoid", Draw.normal, lambda torch, x: torch.sigmoid(x))
_one_argument("tanh", Draw.normal, lambda torch, x: torch.tanh(x))
_one_argument("silu", Draw.normal, lambda torch, x: torch.nn.functional.silu(x))
_one_argument("softplus", Draw.normal, lambda torch, x: torch.nn.functional.softplus(x))
_one_argument(
    "gelu",
    Draw.normal,
    lambda torch, x, approximate: torch.nn.functional.gelu(x, approximate=approximate),
    approximate=("none", "tanh"),
)
_one_argument(
    "leaky_relu",
    Draw.nonzero,
    lambda torch, x, negative_slope: torch.nn.functional.leaky_relu(x, negative_slope),
    negative_slope=(0.01, 0.3),
)


def _two_arguments(name: str, first: Callable[..., Array], second: Callable[..., Array], torch: Any) -> None:
    @case(name, torch)
    def _(draw: Draw) -> Call:
        shapes = draw.shapes(2)
        x, y = first(draw, *shapes[0]), second(draw, *shapes[1])
        return draw.one(call(x, y), call(x, y), call(x, 1.7), call(x, 2), call(0.6, y))


_two_arguments("add", Draw.normal, Draw.normal, lambda torch, x, y: x + y)
_two_arguments("subtract", Draw.normal, Draw.normal, lambda torch, x, y: x - y)
_two_arguments("multiply", Draw.normal, Draw.normal, lambda torch, x, y: x * y)
_two_arguments("divide", Draw.normal, Draw.nonzero, lambda torch, x, y: x / y)


@case("power", lambda torch, x, exponent: x**exponent)
def _(draw: Draw) -> Call:
    x, exponent = draw.shapes(2)
    if draw.one(True, False):  # a whole exponent, of any number
        return call(draw.nonzero(*x), draw.one(2, 3, -1, 0, 2.0))
    return call(draw.one(draw.positive(*x), 1.7), draw.normal(*exponent))


@case("maximum", lambda torch, x, y: torch.maximum(x, torch.as_tensor(y, dtype=x.dtype)))
def _(draw: Draw) -> Call:
    shapes = draw.shapes(2)
    x, y = draw.distinct(*shapes[0]), np.asarray(draw.distinct(*shapes[1]) + 0.01)
    return call(x, draw.one(y, y, 0.123))


@case("where", lambda torch, condition, x, y: torch.where(condition, x, y))
def _(draw: Draw) -> Call:
    condition, x, y = draw.shapes(3)
    return call(np.asarray(draw.normal(*condition) > 0), draw.normal(*x), draw.one(draw.normal(*y), 0.5))


# -- reductions


def _reduction(name: str, torch: Any) -> None:
    @case(name, torch)
    def _(draw: Draw) -> Call:
        shape = draw.shape()
        return call(draw.normal(*shape), draw.dims(len(shape)), draw.one(True, False))


_reduction("sum", lambda torch, x, dim, keepdim: torch.sum(x, dim, keepdim))
_reduction("mean", lambda torch, x, dim, keepdim: torch.mean(x, dim, keepdim))


@case("var", lambda torch, x, dim, **kwargs: torch.var(x, dim, **kwargs))
def _(draw: Draw) -> Call:
    shape = tuple(n + 1 for n in draw.shape(1))
    return call(draw.normal(*shape), draw.dims(len(shape)), correction=draw.one(0, 1), keepdim=draw.one(True, False))


@case("max", lambda torch, x, dim, keepdim: torch.amax(x, () if dim is None else dim, keepdim))
def _(draw: Draw) -> Call:
    shape = draw.shape(1)
    return call(draw.distinct(*shape), draw.one(None, draw.dim(len(shape))), draw.one(True, False))


# -- shapes


@case("reshape", lambda torch, x, shape: torch.reshape(x, shape))
def _(draw: Draw) -> Call:
    shape = draw.shape()
    return call(draw.normal(*shape), draw.one((-1,), shape[::-1], (*shape, 1), [1, *shape]))


def _exchange(name: str) -> None:
    @case(name, lambda torch, x, dim0, dim1: torch.transpose(x, dim0, dim1))
    def _(draw: Draw) -> Call:
        shape = draw.shape(1)
        return call(draw.normal(*shape), draw.dim(len(shape)), draw.dim(len(shape)))


_exchange("transpose")
_exchange("swapaxes")


@case("permute", lambda torch, x, dims: torch.permute(x, dims))
def _(draw: Draw) -> Call:
    shape = draw.shape(1)
    order = draw.of(st.permutations(range(len(shape))))
    return call(draw.normal(*shape), tuple(draw.one(d, d - len(shape)) for d in order))


@case("broadcast_to", lambda torch, x, shape: torch.broadcast_to(x, shape))
def _(draw: Draw) -> Call:
    shapes = draw.shapes(2)
    return call(draw.normal(*shapes[0]), np.broadcast_shapes(*shapes))


@case("concatenate", lambda torch, tensors, dim: torch.cat(tensors, dim))
def _(draw: Draw) -> Call:
    shape = draw.shape(1)
    dim = draw.dim(len(shape))
    sizes = [draw.size() for _ in range(draw.size(1, 3))]
    place = dim % len(shape)
    return call([draw.normal(*shape[:place], n, *shape[place + 1 :]) for n in sizes], dim)


@case("stack", lambda torch, tensors, dim: torch.stack(tensors, dim))
def _(draw: Draw) -> Call:
    shape = draw.shape()
    return call([draw.normal(*shape) for _ in range(draw.size(1, 3))], draw.dim(len(shape) + 1))


@case("split", lambda torch, x, parts, dim: torch.split(x, parts, dim))
def _(draw: Draw) -> Call:
    shape = draw.shape(1)
    dim = draw.dim(len(shape))
    first = draw.size(0, shape[dim])
    return call(draw.normal(*shape), draw.one(draw.size(), [first, shape[dim] - first]), dim)


# -- indices


@case("getitem", lambda torch, x, index: x[index])
def _(draw: Draw) -> Call:
    rows, columns = draw.size(), draw.size()
    picked = draw.integers(rows, draw.size())
    indices = (
        -1,
        slice(None, None, 2),
        slice(1, None),
        (..., 0),
        (None, slice(1, 3)),
        (0, slice(None), 0),
        picked,
        (slice(None), draw.integers(columns, 3)),
        (picked, draw.integers(columns, *picked.shape)),
        (slice(0, 1), draw.integers(columns, 2, 2)),
        (..., draw.integers(2, 3) - 2),
        [0, -1, 0],
        (picked, None, 0),
        (draw.integers(rows, 2, 1), draw.integers(columns, 3)),
        draw.normal(rows, columns) > 0,
    )
    return call(draw.normal(rows, columns, 2), draw.one(*indices))


@case("embedding", lambda torch, input, weight: torch.nn.functional.embedding(input, weight))
def _(draw: Draw) -> Call:
    n = draw.size()
    return call(draw.integers(n, *draw.shape(0, 2)), draw.normal(n, draw.size()))


# -- products


@case("linear", lambda torch, h, W, b=None: torch.nn.functional.linear(h, W.T, b))
def _(draw: Draw) -> Call:
    n, m = draw.size(), draw.size()
    return call(draw.normal(*draw.shape(0, 2), n), draw.normal(n, m), draw.maybe(draw.normal(m)))


@case("matmul", lambda torch, x, y: torch.matmul(x, y))
def _(draw: Draw) -> Call:
    first, second = draw.shapes(2)
    n, k, m = draw.size(), draw.size(), draw.size()
    x = draw.one((*first, n, k), (*first, n, k), (k,))
    y = draw.one((*second, k, m), (*second, k, m), (k,))
    return call(draw.normal(*x), draw.normal(*y))


# -- losses


def _pair(name: str, torch: Any) -> None:
    @case(name, torch)
    def _(draw: Draw) -> Call:
        shape = draw.shape()
        return call(draw.nonzero(*shape), draw.normal(*shape))


_pair("sqerr", lambda torch, f, y: torch.nn.functional.mse_loss(f, y, reduction="sum") / 2)
_pair("mse", lambda torch, input, target: torch.nn.functional.mse_loss(input, target))
_pair(
    "binary_cross_entropy_with_logits",
    lambda torch, input, target: torch.nn.functional.binary_cross_entropy_with_logits(input, target),
)


@case("cross_entropy", lambda torch, *args, **kwargs: torch.nn.functional.cross_entropy(*args, **kwargs))
def _(draw: Draw) -> Call:
    classes, shape = draw.size(), draw.shape()
    target = draw.integers(classes, *shape)
    ignored = draw.one(-100, -1, 0)
    if shape:
        target[draw.rng.random(shape) < 0.3] = ignored
        target.flat[0] = classes - 1  # one that counts
        ignored = -1 if ignored == classes - 1 else ignored
        target[target == -1] = ignored
    else:
        ignored = -100
    logits = draw.normal(*shape[:1], classes, *shape[1:])
    return call(logits, target, ignore_index=ignored, reduction=draw.one("mean", "sum"))


# -- softmax


def _over_a_dimension(name: str, torch: Any) -> None:
    @case(name, torch)
    def _(draw: Draw) -> Call:
        shape = draw.shape(1)
        return call(draw.normal(*shape), draw.dim(len(shape)))


_over_a_dimension("softmax", lambda torch, x, dim: torch.softmax(x, dim))
_over_a_dimension("log_softmax", lambda torch, x, dim: torch.log_softmax(x, dim))


def _torch_attention_softmax(torch: Any, x: Any, scale: float, is_causal: bool) -> Any:
    scores = x * scale
    if is_causal:
        scores = scores.masked_fill(torch.ones(x.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    return torch.softmax(scores, -1)


@case("attention_softmax", _torch_attention_softmax)
def _(draw: Draw) -> Call:
    return call(draw.normal(*draw.shape(2)), draw.one(1.0, 0.4), draw.one(True, False))


# -- normalisation


@case("layer_norm", lambda torch, *args: torch.nn.functional.layer_norm(*args))
def _(draw: Draw) -> Call:
    features = draw.shape(1, 2)
    x = draw.normal(*draw.shape(0, 2), *features)
    form = draw.one(list(features), features)
    return call(x, form, draw.maybe(draw.normal(*features)), draw.maybe(draw.normal(*features)), draw.one(1e-5, 0.1))


@case("rms_norm", lambda torch, *args: torch.nn.functional.rms_norm(*args))
def _(draw: Draw) -> Call:
    features = draw.shape(1, 2)
    x = draw.nonzero(*draw.shape(0, 2), *features)
    return call(x, features, draw.maybe(draw.normal(*features)), draw.one(1e-5, 0.1))


def _torch_group_norm(torch: Any, x: Any, groups: int, weight: Any, bias: Any, eps: float) -> Any:
    if weight is None and bias is not None:  # whose backward PyTorch 2.13 fails at
        weight = torch.ones_like(bias)
    return torch.nn.functional.group_norm(x, groups, weight, bias, eps)


@case("group_norm", _torch_group_norm)
def _(draw: Draw) -> Call:
    groups = draw.size(1, 2)
    channels = groups * draw.size(1, 2)
    x = draw.normal(draw.size(), channels, *draw.shape(0, 2), 2)
    weight, bias = draw.maybe(draw.normal(channels)), draw.maybe(draw.normal(channels))
    return call(x, groups, weight, bias, draw.one(1e-5, 0.1))


@case("batch_norm", lambda torch, *args: torch.nn.functional.batch_norm(*args))
def _(draw: Draw) -> Call:
    channels, training = draw.size(), draw.one(True, False)
    x = draw.normal(draw.size(2), channels, *draw.shape(0, 2))
    running = draw.normal(channels), draw.positive(channels)
    if training and draw.one(True, False):
        running = None, None
    weight, bias = draw.maybe(draw.normal(channels)), draw.maybe(draw.normal(channels))
    return call(x, *running, weight, bias, training, draw.one(0.1, 0.5), draw.one(1e-5, 0.1))


# -- images


@case("conv2d", lambda torch, *args: torch.nn.functional.conv2d(*args))
def _(draw: Draw) -> Call:
    groups = draw.size(1, 2)
    kernel, dilation = (draw.size(1, 3), draw.size(1, 2)), (draw.size(1, 2), draw.size(1, 2))
    size = [d * (k - 1) + draw.size(1, 3) for k, d in zip(kernel, dilation, strict=True)]
    stride, padding = draw.one(1, 2, (1, 3)), draw.one(0, 1, (2, 0))
    x = draw.normal(draw.size(1, 2), groups * draw.size(1, 2), *size)
    weight = draw.normal(groups * draw.size(1, 2), x.shape[1] // groups, *kernel)
    return call(x, weight, draw.maybe(draw.normal(len(weight))), stride, padding, dilation, groups)


def _pooling(draw: Draw, kind: Callable[..., Array]) -> tuple[Any, ...]:
    kernel = draw.size(1, 3), draw.size(1, 3)
    padding = draw.size(0, kernel[0] // 2), draw.size(0, kernel[1] // 2)
    size = (draw.size(3, 6), draw.size(3, 6))
    return kind(draw, draw.size(1, 2), draw.size(1, 2), *size), kernel, draw.one(None, 1, 2, (2, 3)), padding


@case("max_pool2d", lambda torch, *args: torch.nn.functional.max_pool2d(*args))
def _(draw: Draw) -> Call:
    x, kernel, stride, padding = _pooling(draw, Draw.distinct)
    fits = all(2 * (k - 1) < n for k, n in zip(kernel, x.shape[2:], strict=True))
    return call(x, kernel, stride, padding, draw.one(1, 2) if fits else 1, draw.one(True, False))


@case("avg_pool2d", lambda torch, *args: torch.nn.functional.avg_pool2d(*args))
def _(draw: Draw) -> Call:
    return call(*_pooling(draw, Draw.normal), draw.one(True, False), draw.one(True, False))


@case("upsample", lambda torch, x, scale, mode: torch.nn.functional.interpolate(x, scale_factor=scale, mode=mode))
def _(draw: Draw) -> Call:
    x = draw.normal(draw.size(1, 2), draw.size(1, 2), draw.size(1, 3), draw.size(1, 3))
    return call(x, draw.one(1, 2, 3, (2, 1), (1, 3)), draw.one("nearest", "bilinear"))


# -- positions, chance, attention


def _torch_rotary(torch: Any, x: Any, base: float, offset: int) -> Any:
    length, half = x.shape[-2], x.shape[-1] // 2
    positions = torch.arange(offset, offset + length, dtype=torch.float64)
    angles = torch.outer(positions, base ** (-torch.arange(half, dtype=torch.float64) / half))
    wide = x.double()
    turned = torch.complex(wide[..., :half], wide[..., half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], -1).to(x.dtype)


@case("rotary", _torch_rotary)
def _(draw: Draw) -> Call:
    x = draw.normal(*draw.shape(0, 2), draw.size(), 2 * draw.size())
    return call(x, draw.one(10000.0, 50.0), draw.one(0, 5))


def _same_mask(torch: Any, blocks: int, shape: tuple[int, ...], p: float) -> Any:
    """The factors that dropout multiplies with: the mask's elements over 1 - p."""
    mb.manual_seed(SEED)
    size = int(np.prod(shape)) // blocks
    mask = draw_mask(np.empty(0), blocks, size, p, "bool")
    return torch.from_numpy(np.reshape(mask, shape)).double() / (1 - p)


def _torch_dropout(torch: Any, x: Any, p: float, training: bool, mask: str) -> Any:
    return (x * _same_mask(torch, 1, x.shape, p)).to(x.dtype) if training and p else x


@case("dropout", _torch_dropout)
def _(draw: Draw) -> Call:
    form = draw.one("bool", "bits", "seed")
    return call(draw.normal(*draw.shape()), draw.one(0.0, 0.25, 0.5), training=draw.one(True, True, False), mask=form)


def _torch_attention(
    torch: Any,
    q: Any,
    k: Any,
    v: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    mask: str = "bool",
) -> Any:
    if not dropout_p:
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask, is_causal=is_causal, scale=scale, enable_gqa=q.ndim > 2
        )
    if q.ndim > 2:
        k, v = (x.repeat_interleave(q.shape[-3] // k.shape[-3], -3) for x in (k, v))
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    if is_causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    blocks = int(np.prod(scores.shape[:-2]))
    return (torch.softmax(scores, -1) * _same_mask(torch, blocks, scores.shape, dropout_p)).to(v.dtype) @ v


def _heads(draw: Draw) -> tuple[Array, Array, Array]:
    """Queries, keys and values: one head, several, or batches of them, whose keys groups of heads may share."""
    shared, group = draw.size(1, 2), draw.size(1, 2)
    length, keys, width = draw.size(), draw.size(), draw.size()
    before = draw.one((), (shared,), (draw.size(1, 2), shared), (2, draw.size(1, 2), shared))
    query = (*before[:-1], group * shared) if before else ()
    return (
        draw.normal(*query, length, width),
        draw.normal(*before, keys, width),
        draw.normal(*before, keys, draw.size()),
    )


def _attention_mask(draw: Draw, scores: tuple[int, ...]) -> Array | None:
    """None, numbers or booleans that broadcast to the scores and leave every query a key."""
    numbers = draw.normal(*draw.one(scores, scores[-2:], (*scores[-3:-2], 1, scores[-1])))
    seen = numbers > -0.5
    seen[..., 0] = True
    return draw.one(None, numbers, seen)


@case("scaled_dot_product_attention", _torch_attention)
def _(draw: Draw) -> Call:
    q, k, v = _heads(draw)
    attn_mask = _attention_mask(draw, (*q.shape[:-1], k.shape[-2]))
    return call(
        *(q, k, v, attn_mask, draw.one(0.0, 0.4)),
        is_causal=attn_mask is None and draw.one(True, False),
        scale=draw.one(None, 0.3),
        mask=draw.one("bool", "bits", "seed"),
    )


def _torch_tiled(torch: Any, q: Any, k: Any, v: Any, causal: bool, scale: Any, block: int, attn_mask: Any) -> Any:
    return _torch_attention(torch, q, k, v, attn_mask, is_causal=causal, scale=scale)


@case("tiled_attention", _torch_tiled)
def _(draw: Draw) -> Call:
    q, k, v = _heads(draw)
    attn_mask = _attention_mask(draw, (*q.shape[:-1], k.shape[-2]))
    causal = attn_mask is None and draw.one(True, False)
    return call(q, k, v, causal, draw.one(None, 0.3), draw.size(1, 5), attn_mask)


def without_memory(array: Array) -> ShapeArray:
    """An array that holds no memory, of the shape, dtype and layout of one that does."""
    return ShapeArray(array.shape, array.dtype, array.strides)

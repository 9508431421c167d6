"""Networks drawn at random: chains, residuals, branches, shared inputs and parameters, frozen parts, views, nested
checkpoints. Every part takes and gives an array of shape (ROWS, width).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

import memback as mb
from memback import nn, ops

ROWS, WIDTH = 768, 64
"""192 KiB in float32: more than what prediction and measurement may be apart."""


class Network(NamedTuple):
    """What a network is made of: nested (kind, parts) pairs between a first and a last linear layer."""

    body: Any
    stem: bool
    """Whether the first layer is trained; else parts without parameters have nothing to differentiate."""
    loss: str
    dtype: str
    optimizer: str | None


# -- parts that are made of ops alone


def _views(x: Any) -> Any:
    """Heads and back: two views and a copy."""
    heads = ops.transpose(ops.reshape(x, (ROWS, 4, x.shape[1] // 4)), 0, 1)
    return ops.reshape(ops.transpose(heads, 0, 1), (ROWS, x.shape[1]))


def _folded(x: Any) -> Any:
    """A reshape that has to copy, of a transpose, and one that need not."""
    return ops.reshape(ops.tanh(ops.reshape(ops.permute(x, (1, 0)), (ROWS * x.shape[1],))), x.shape)


def _slices(x: Any) -> Any:
    half = ROWS // 2
    return ops.concatenate([x[half:], ops.relu(x[:half])], 0)


def _backwards(x: Any) -> Any:
    return ops.sigmoid(x[::-1])


def _rows(x: Any) -> Any:
    return ops.getitem(x, np.arange(ROWS) // 2)


def _centred(x: Any) -> Any:
    return ops.subtract(x, ops.mean(x, 0, True))


def _broadcast(x: Any) -> Any:
    row = ops.broadcast_to(ops.reshape(ops.max(x, 0), (1, x.shape[1])), x.shape)
    return ops.where(np.arange(x.shape[1]) % 2 == 0, x, row)


def _transposed(x: Any) -> Any:
    """Elementwise work on a transpose, whose result is laid out as the transpose is."""
    return ops.transpose(ops.gelu(ops.add(ops.transpose(x, 0, 1), 0.5)), 0, 1)


def _attention(x: Any) -> Any:
    heads = ops.transpose(ops.reshape(x, (ROWS // 64, 64, 4, x.shape[1] // 4)), 1, 2)
    mixed = ops.matmul(ops.softmax(ops.matmul(heads, ops.transpose(heads, 2, 3))), heads)
    return ops.reshape(ops.transpose(mixed, 1, 2), x.shape)


def _fused_attention(x: Any) -> Any:
    heads = ops.transpose(ops.reshape(x, (ROWS // 256, 256, 2, x.shape[1] // 2)), 1, 2)
    mixed = ops.scaled_dot_product_attention(heads, heads, heads, dropout_p=0.1, is_causal=True)
    return ops.reshape(ops.transpose(mixed, 1, 2), x.shape)


def _pooled(x: Any) -> Any:
    images = ops.reshape(x, (ROWS // 64, x.shape[1], 8, 8))
    return ops.reshape(ops.upsample(ops.max_pool2d(images, 2), 2), x.shape)


def _detached(x: Any) -> Any:
    return ops.multiply(x, ops.sigmoid(x.detach()))


def _twice(x: Any) -> Any:
    return ops.add(ops.multiply(x, ops.sigmoid(x)), x)


FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "relu": ops.relu,
    "relu_bits": ops.relu_bits,
    "leaky_relu": ops.leaky_relu,
    "tanh": ops.tanh,
    "gelu": ops.gelu,
    "silu": ops.silu,
    "softplus": ops.softplus,
    "softmax": ops.softmax,
    "absolute": ops.absolute,
    "negative": ops.negative,
    "views": _views,
    "folded": _folded,
    "slices": _slices,
    "backwards": _backwards,
    "rows": _rows,
    "centred": _centred,
    "broadcast": _broadcast,
    "transposed": _transposed,
    "attention": _attention,
    "fused attention": _fused_attention,
    "pooled": _pooled,
    "detached": _detached,
    "twice": _twice,
}


class Function(nn.Module):
    """A part without parameters."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.function = FUNCTIONS[name]

    def forward(self, x: Any) -> Any:
        return self.function(x)


class Convolution(nn.Module):
    """The rows as images of 8 x 8 pixels."""

    def __init__(self, width: int, dtype: str) -> None:
        super().__init__()
        self.inner = nn.Conv2d(width, width, 3, padding=1, dtype=dtype)

    def forward(self, x: Any) -> Any:
        return ops.reshape(self.inner(ops.reshape(x, (ROWS // 64, x.shape[1], 8, 8))), x.shape)


LAYERS: dict[str, Callable[[int, str], nn.Module]] = {
    "linear": lambda width, dtype: nn.Linear(width, width, dtype=dtype),
    "linear without bias": lambda width, dtype: nn.Linear(width, width, bias=False, dtype=dtype),
    "layer_norm": lambda width, dtype: nn.LayerNorm(width, dtype=dtype),
    "rms_norm": lambda width, dtype: nn.RMSNorm(width, dtype=dtype),
    "batch_norm": lambda width, dtype: nn.BatchNorm1d(width, dtype=dtype),
    "dropout of bytes": lambda width, dtype: nn.Dropout(0.2),
    "dropout of bits": lambda width, dtype: nn.Dropout(0.2, "bits"),
    "dropout of seeds": lambda width, dtype: nn.Dropout(0.2, "seed"),
    "convolution": Convolution,
}


# -- parts that are made of parts


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, f: nn.Module) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Any) -> Any:
        return ops.add(x, self.f(x))


class Gated(nn.Module):
    """f(x) sigmoid(g(x)): both parts read the same input."""

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        self.f, self.g = f, g

    def forward(self, x: Any) -> Any:
        return ops.multiply(self.f(x), ops.sigmoid(self.g(x)))


class Branches(nn.Module):
    """Each half of the features goes its own way."""

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        self.f, self.g = f, g

    def forward(self, x: Any) -> Any:
        left, right = ops.split(x, x.shape[1] // 2, 1)
        return ops.concatenate([self.f(left), self.g(right)], 1)


class Stacked(nn.Module):
    """The mean of f(x) and g(x), by way of an array that holds both."""

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        self.f, self.g = f, g

    def forward(self, x: Any) -> Any:
        return ops.mean(ops.stack([self.f(x), self.g(x)]), 0)


class Reused(nn.Module):
    """f(f(x)): parameters that are used twice."""

    def __init__(self, f: nn.Module) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Any) -> Any:
        return self.f(self.f(x))


class Unused(nn.Module):
    """f(x) is computed and nobody takes it."""

    def __init__(self, f: nn.Module) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Any) -> Any:
        self.f(x)
        return ops.relu(x)


class Unrecorded(nn.Module):
    """x + f(x), whose derivative is taken to be 1."""

    def __init__(self, f: nn.Module) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Any) -> Any:
        with mb.no_grad():
            shift = self.f(x)
        return ops.add(x, shift)


class Checkpoint(nn.Module):
    """f(x), recomputed in backward; ``keep`` names ops whose outputs are kept."""

    def __init__(self, f: nn.Module, keep: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.f, self.keep = f, keep

    def forward(self, x: Any) -> Any:
        return mb.checkpoint(self.f, x, keep=self.keep)


class TwoInputs(nn.Module):
    """f(x) and x itself go into one checkpoint, which gives two outputs."""

    def __init__(self, f: nn.Module) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Any) -> Any:
        a, b = mb.checkpoint(lambda x, y: (ops.tanh(y), ops.add(x, y)), x, self.f(x))
        return ops.subtract(a, b)


def _frozen(f: nn.Module) -> nn.Module:
    for parameter in f.parameters():
        parameter.requires_grad = False
    return f


AROUND_ONE: dict[str, Callable[[nn.Module], nn.Module]] = {
    "residual": Residual,
    "reused": Reused,
    "unused": Unused,
    "unrecorded": Unrecorded,
    "frozen": _frozen,
    "checkpoint": Checkpoint,
    "checkpoint that keeps products": lambda f: Checkpoint(f, ("linear", "conv2d")),
    "checkpoint of two inputs": TwoInputs,
}
AROUND_TWO: dict[str, Callable[[nn.Module, nn.Module], nn.Module]] = {"gated": Gated, "stacked": Stacked}
CHAINS = ("none", "every:1", "every:2", "sqrt", "all", "selective")


def part(spec: Any, width: int, dtype: str) -> nn.Module:
    """The module that a (kind, parts) pair stands for."""
    kind, *parts = spec
    if kind in FUNCTIONS:
        return Function(kind)
    if kind in LAYERS:
        return LAYERS[kind](width, dtype)
    if kind == "branches":
        return Branches(*(part(p, width // 2, dtype) for p in parts))
    inner = [part(p, width, dtype) for p in parts]
    if kind in CHAINS:
        return nn.Sequential(*inner, checkpoint=kind)
    return (AROUND_ONE if len(inner) == 1 else AROUND_TWO)[kind](*inner)


class Model(nn.Module):
    """A network with its loss."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.stem = nn.Linear(WIDTH, WIDTH, dtype=network.dtype)
        if not network.stem:
            _frozen(self.stem)
        self.body = part(network.body, WIDTH, network.dtype)
        self.head = nn.Linear(WIDTH, WIDTH, dtype=network.dtype)

    def forward(self, x: Any) -> Any:
        return self.head(self.body(self.stem(x)))

    def loss(self, x: Any, y: Any) -> Any:
        out = self(x)
        if self.network.loss == "cross_entropy":
            return ops.cross_entropy(out, y)
        target = mb.Tensor(x)
        return {"mse": ops.mse, "sqerr": ops.sqerr}[self.network.loss](out, target)


# -- drawing


def _extended(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    chain = st.builds(
        lambda kind, inner: (kind, *inner), st.sampled_from(CHAINS), st.lists(parts, min_size=2, max_size=4)
    )
    one = st.tuples(st.sampled_from(sorted(AROUND_ONE)), parts)
    two = st.tuples(st.sampled_from([*sorted(AROUND_TWO), "branches"]), parts, parts)
    return chain | chain | one | two


_leaves = st.sampled_from(sorted(FUNCTIONS)) | st.sampled_from(sorted(LAYERS))
_bodies = st.lists(st.recursive(_leaves.map(lambda kind: (kind,)), _extended, max_leaves=5), min_size=1, max_size=3)
networks = st.builds(
    Network,
    st.builds(lambda kind, parts: (kind, *parts), st.sampled_from(CHAINS), _bodies),
    st.booleans(),
    st.sampled_from(["mse", "sqerr", "cross_entropy"]),
    st.sampled_from(["float32", "float32", "float64"]),
    st.sampled_from([None, "sgd", "adamw"]),
)

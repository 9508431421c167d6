"""The models of :mod:`memback.models` in plain PyTorch, over parameters of the same names, and what PyTorch keeps.

Written as users of PyTorch write them: no checkpoint, no trick. What exists before the step (running statistics, a
causal mask, the angles of rotary positions) is a buffer, as in memback.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from memback.ops.masks import draw_mask

torch.set_num_threads(1)  # the arrays are small

Dropout = Callable[..., torch.Tensor]


class Scope:
    """Parameters and buffers below a name, and how to drop out."""

    def __init__(self, tensors: dict[str, torch.Tensor], dropout: Dropout | None = None, prefix: str = "") -> None:
        self.tensors, self.dropout, self._prefix = tensors, dropout or native_dropout, prefix

    def at(self, *names: Any) -> Scope:
        """The scope below."""
        return Scope(self.tensors, self.dropout, ".".join([self._prefix, *map(str, names)]).removeprefix("."))

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[f"{self._prefix}.{name}".removeprefix(".")]

    def get(self, name: str) -> torch.Tensor | None:
        return self.tensors.get(f"{self._prefix}.{name}".removeprefix("."))

    def children(self) -> list[Scope]:
        """The members of a list, in order."""
        start = f"{self._prefix}."
        numbers = {int(key[len(start) :].split(".")[0]) for key in self.tensors if key.startswith(start)}
        return [self.at(number) for number in sorted(numbers)]

    def buffer(self, name: str, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """A constant that all layers share."""
        return self.tensors.setdefault(name, make())


def native_dropout(x: torch.Tensor, p: float, blocks: int = 1) -> torch.Tensor:
    """PyTorch's dropout of a GPU, which keeps a byte an element; that of a CPU keeps as much again as its output."""
    return torch.native_dropout(x, p, True)[0] if p else x


def memback_dropout(x: torch.Tensor, p: float, blocks: int = 1) -> torch.Tensor:
    """Dropout by the next mask of memback's random stream."""
    if not p:
        return x
    mask = draw_mask(np.empty(0), blocks, x.numel() // blocks, p, "bool")
    return x * torch.from_numpy(np.reshape(mask, x.shape)).to(x.dtype) / (1 - p)


# -- layers


def linear(p: Scope, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, p["weight"].T, p.get("bias"))


def normalise(p: Scope, x: torch.Tensor) -> torch.Tensor:
    if p.get("bias") is None:
        return F.rms_norm(x, x.shape[-1:], p["weight"], 1e-5)
    return F.layer_norm(x, x.shape[-1:], p["weight"], p["bias"])


def batch_norm(p: Scope, x: torch.Tensor) -> torch.Tensor:
    return F.batch_norm(x, p["running_mean"], p["running_var"], p["weight"], p["bias"], training=True)


def convolutions(p: Scope, x: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    """Convolution and batch norm, again and again, with relu in between."""
    layers = p.children()
    for number, (convolution, norm, stride) in enumerate(zip(layers[::2], layers[1::2], strides, strict=True)):
        x = torch.relu(x) if number else x
        weight = convolution["weight"]
        x = batch_norm(norm, F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2))
    return x


def attention(
    p: Scope,
    x: torch.Tensor,
    heads: int,
    *,
    causal: bool,
    form: str = "plain",
    dropout: float = 0.0,
    rotary: bool = False,
) -> torch.Tensor:
    n, length, width = x.shape

    def split(name: str) -> torch.Tensor:
        return linear(p.at(name), x).view(n, length, -1, width // heads).transpose(1, 2)

    q, k = split("query"), split("key")
    if rotary:
        q, k = rotate(p, q), rotate(p, k)
    mixed = CORES[form](p, q, k, split("value"), causal, dropout)
    return linear(p.at("out"), mixed.transpose(1, 2).reshape(n, length, width))


def rotate(p: Scope, x: torch.Tensor) -> torch.Tensor:
    length, half = x.shape[-2], x.shape[-1] // 2

    def angles() -> torch.Tensor:
        rates = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        return torch.outer(torch.arange(length, dtype=torch.float64), rates).repeat(1, 2)

    cos = p.buffer("cos", lambda: angles().cos().to(x.dtype))
    sin = p.buffer("sin", lambda: angles().sin().to(x.dtype))
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def plain_core(p: Scope, q: Any, k: Any, v: Any, causal: bool, dropout: float, blocks: int = 1) -> torch.Tensor:
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if causal:
        size = scores.shape[-2:]
        later = p.buffer("later", lambda: torch.ones(size, dtype=torch.bool, device=q.device).triu(1))
        scores = scores.masked_fill(later, -torch.inf)
    return p.dropout(torch.softmax(scores, -1), dropout, blocks) @ v


def fused_core(p: Scope, q: Any, k: Any, v: Any, causal: bool, dropout: float) -> torch.Tensor:
    """One call, whose dropout can't be given a mask: with memback's mask it is written out."""
    if dropout and p.dropout is not native_dropout:
        return plain_core(p, q, k, v, causal, dropout, blocks=q.shape[0] * q.shape[1])
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal)


def tiled_core(p: Scope, q: Any, k: Any, v: Any, causal: bool, dropout: float) -> torch.Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])


CORES = {"plain": plain_core, "fused": fused_core, "tiled": tiled_core}


def feed_forward(p: Scope, x: torch.Tensor, activation: Callable[..., torch.Tensor]) -> torch.Tensor:
    if p.get("gate.weight") is not None:
        return linear(p.at("outer"), F.silu(linear(p.at("gate"), x)) * linear(p.at("inner"), x))
    return linear(p.at("outer"), activation(linear(p.at("inner"), x)))


def block(p: Scope, x: torch.Tensor, activation: Any, heads: int, dropout: float, **options: Any) -> torch.Tensor:
    mixed = attention(p.at("attention"), normalise(p.at("norm1"), x), heads, dropout=dropout, **options)
    x = x + p.dropout(mixed, dropout)
    return x + p.dropout(feed_forward(p.at("mlp"), normalise(p.at("norm2"), x), activation), dropout)


# -- models: each gives the loss of a batch


def sqerr(f: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(f, y, reduction="sum") / 2


def notes_network(p: Scope, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    first, second, third = p.at("layers").children()
    h = torch.relu(linear(second, torch.relu(linear(first, x))))
    return sqerr(linear(third, h), y)


def mlp(p: Scope, x: torch.Tensor, y: torch.Tensor, activation: Any, loss: Any = F.cross_entropy) -> torch.Tensor:
    *hidden, last = p.at("layers").children()
    for unit in hidden:
        x = activation(linear(unit.at(0), x))
    return loss(linear(last, x), y)


def gpt(p: Scope, x: torch.Tensor, y: torch.Tensor, heads: int, dropout: float = 0.0, **options: Any) -> torch.Tensor:
    h = F.embedding(x, p["tokens.weight"])
    if p.get("positions.weight") is not None:
        h = h + p["positions.weight"][: x.shape[1]]
    h = p.dropout(h, dropout)
    for unit in p.at("blocks").children():
        h = block(unit, h, lambda a: F.gelu(a, approximate="tanh"), heads, dropout, causal=True, **options)
    h = normalise(p.at("norm"), h)
    head = p["tokens.weight"].T if p.get("head.weight") is None else p["head.weight"]
    return F.cross_entropy(F.linear(h, head.T).transpose(1, 2), y)


def vit(p: Scope, x: torch.Tensor, y: torch.Tensor, heads: int, dropout: float = 0.0) -> torch.Tensor:
    patch = p["patches.weight"].shape[-1]
    patches = F.conv2d(x, p["patches.weight"], p["patches.bias"], stride=patch)
    h = p.dropout(patches.flatten(2).transpose(1, 2) + p["positions"], dropout)
    for unit in p.at("blocks").children():
        h = block(unit, h, F.gelu, heads, dropout, causal=False)
    return F.cross_entropy(linear(p.at("head"), normalise(p.at("norm"), h).mean(1)), y)


def resnet(p: Scope, x: torch.Tensor, y: torch.Tensor, large: bool = False) -> torch.Tensor:
    stem, *blocks = p.at("layers").children()
    x = torch.relu(convolutions(stem, x, (2 if large else 1,)))
    if large:
        x = F.max_pool2d(x, 3, 2, 1)
    for unit in blocks:
        x = residual(unit, x)
    return F.cross_entropy(linear(p.at("head"), x.mean((2, 3))), y)


def residual(p: Scope, x: torch.Tensor) -> torch.Tensor:
    """A block that has more channels than the block before, but for the first stage's, halves height and width."""
    branch, shortcut = p.at("branch"), p.at("shortcut")
    first = branch.children()[0]["weight"]
    bottleneck = first.shape[-1] == 1
    grows = shortcut.get("0.weight") is not None
    stride = 2 if grows and x.shape[1] != first.shape[0] else 1
    strides = (1, stride, 1) if bottleneck else (stride, 1)
    return torch.relu(convolutions(branch, x, strides) + (convolutions(shortcut, x, (stride,)) if grows else x))


def unet(p: Scope, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    skips: list[torch.Tensor] = []
    for level, unit in enumerate(p.at("down").children()):
        x = torch.relu(convolutions(unit, x if level == 0 else F.max_pool2d(x, 2), (1, 1)))
        skips.append(x)
    skips.pop()
    for unit in p.at("up").children():
        x = torch.cat([skips.pop(), F.interpolate(x, scale_factor=2, mode="nearest")], 1)
        x = torch.relu(convolutions(unit, x, (1, 1)))
    return F.cross_entropy(F.conv2d(x, p["head.weight"], p["head.bias"]), y)


def lstm(p: Scope, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Step by step, as torch.nn.LSTMCell is documented."""
    steps = list(F.embedding(x, p["tokens.weight"]).unbind(1))
    for layer in p.at("lstm", "layers").children():
        h = c = layer["weight_h"].new_zeros(x.shape[0], layer["weight_h"].shape[0])
        for t, step in enumerate(steps):
            gates = F.linear(step, layer["weight_x"].T, layer["bias"]) + F.linear(h, layer["weight_h"].T)
            i, f, g, o = gates.chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            steps[t] = h
    return F.cross_entropy(linear(p.at("head"), torch.stack(steps, 1)).transpose(1, 2), y)


# -- what PyTorch keeps


def kept_bytes(run: Callable[[], Any], tensors: Mapping[str, torch.Tensor], inputs: Iterable[torch.Tensor]) -> int:
    """Bytes of the distinct storages that autograd keeps of a forward pass.

    Without those of ``inputs`` and of ``tensors``, parameters and buffers, to which ``run`` may add.
    """
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[_identity(storage)] = storage  # alive, so that no other gets its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = run()
    ours = {_identity(tensor.untyped_storage()) for tensor in (*tensors.values(), *inputs)}
    total = sum(storage.nbytes() for address, storage in kept.items() if address not in ours)
    del loss  # with it goes the graph
    return total


def _identity(storage: torch.UntypedStorage) -> int:
    """The address of the data; of the storage itself where there is no data (on the device ``meta``)."""
    return storage.data_ptr() or storage._cdata

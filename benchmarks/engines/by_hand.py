"""Backprop written by hand in plain NumPy, as one would who knows the formulas: no engine, no tape."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.workloads import GPTSize, MLPSize, Workload

VERSIONS = {"numpy": np.__version__}

Arrays = dict[str, Any]


def build(workload: Workload) -> Any:
    """The workload as two loops, one forward, one backward."""
    parameters, (x, y), size = workload.parameters(), workload.sample(), workload.size

    def step() -> tuple[Any, Arrays]:
        return mlp(parameters, x, y, size) if isinstance(size, MLPSize) else gpt(parameters, x, y, size)

    return step


# -- multilayer perceptron


def mlp(p: Arrays, x: Any, y: Any, size: MLPSize) -> tuple[Any, Arrays]:
    """Eqs. 28 to 30 of the notes."""
    names = size.layer_names()
    h, inputs, grads = x, [], {}
    for name in names:
        inputs.append(h)
        h = h @ p[f"{name}.weight"]
        h += p[f"{name}.bias"]
        if name != names[-1]:
            np.maximum(h, 0, out=h)
    d = h - y
    loss = 0.5 * np.vdot(d, d)
    for name in reversed(names):
        h = inputs.pop()
        grads[f"{name}.weight"] = h.T @ d
        grads[f"{name}.bias"] = d.sum(axis=0)
        if inputs:
            d = d @ p[f"{name}.weight"].T
            d *= h > 0
    return loss, grads


# -- GPT


def gpt(p: Arrays, x: Any, y: Any, size: GPTSize) -> tuple[Any, Arrays]:
    """A transformer's forward pass, and its mirror image."""
    grads: Arrays = {}
    h = p["tokens.weight"][x]
    h += p["positions.weight"]
    tapes = []
    for i in range(size.layers):
        h, tape = _block(p, f"blocks.{i}", h, size.heads)
        tapes.append(tape)
    z, norm = _layer_norm(p, "norm", h)
    loss, d_scores = _cross_entropy(z @ p["tokens.weight"].T, y)
    flat = d_scores.reshape(-1, size.vocabulary)
    d_tokens = flat.T @ z.reshape(-1, size.width)
    d = _layer_norm_back(p, "norm", d_scores @ p["tokens.weight"], norm, grads)
    for i in reversed(range(size.layers)):
        d = _block_back(p, f"blocks.{i}", d, tapes.pop(), size.heads, grads)
    grads["positions.weight"] = d.sum(axis=0)
    np.add.at(d_tokens, x, d)
    grads["tokens.weight"] = d_tokens
    return loss, grads


def _block(p: Arrays, name: str, x: Any, heads: int) -> tuple[Any, Any]:
    z, norm1 = _layer_norm(p, f"{name}.norm1", x)
    a, attention = _attention(p, f"{name}.attention", z, heads)
    x = x + a
    z, norm2 = _layer_norm(p, f"{name}.norm2", x)
    u = _linear(p, f"{name}.mlp.inner", z)
    t = np.tanh(_C * (u + 0.044715 * u * u * u))
    g = 0.5 * u * (1 + t)
    return x + _linear(p, f"{name}.mlp.outer", g), (norm1, attention, norm2, z, u, t, g)


def _block_back(p: Arrays, name: str, d: Any, tape: Any, heads: int, grads: Arrays) -> Any:
    norm1, attention, norm2, z, u, t, g = tape
    d_g = _linear_back(p, f"{name}.mlp.outer", d, g, grads)
    d_u = d_g * (0.5 * (1 + t) + 0.5 * u * (1 - t * t) * _C * (1 + 3 * 0.044715 * u * u))
    d_z = _linear_back(p, f"{name}.mlp.inner", d_u, z, grads)
    d = d + _layer_norm_back(p, f"{name}.norm2", d_z, norm2, grads)
    d_z = _attention_back(p, f"{name}.attention", d, attention, heads, grads)
    return d + _layer_norm_back(p, f"{name}.norm1", d_z, norm1, grads)


_C = math.sqrt(2 / math.pi)


def _linear(p: Arrays, name: str, h: Any) -> Any:
    out = h @ p[f"{name}.weight"]
    out += p[f"{name}.bias"]
    return out


def _linear_back(p: Arrays, name: str, d: Any, h: Any, grads: Arrays) -> Any:
    flat = d.reshape(-1, d.shape[-1])
    grads[f"{name}.weight"] = h.reshape(-1, h.shape[-1]).T @ flat
    grads[f"{name}.bias"] = flat.sum(axis=0)
    return d @ p[f"{name}.weight"].T


def _layer_norm(p: Arrays, name: str, x: Any) -> tuple[Any, Any]:
    z = x - x.mean(axis=-1, keepdims=True)
    rstd = 1 / np.sqrt((z * z).mean(axis=-1, keepdims=True) + 1e-5)
    z *= rstd
    return z * p[f"{name}.weight"] + p[f"{name}.bias"], (z, rstd)


def _layer_norm_back(p: Arrays, name: str, d: Any, tape: Any, grads: Arrays) -> Any:
    z, rstd = tape
    axes = tuple(range(d.ndim - 1))
    grads[f"{name}.weight"] = (d * z).sum(axis=axes)
    grads[f"{name}.bias"] = d.sum(axis=axes)
    g = d * p[f"{name}.weight"]
    return rstd * (g - g.mean(axis=-1, keepdims=True) - z * (g * z).mean(axis=-1, keepdims=True))


def _attention(p: Arrays, name: str, z: Any, heads: int) -> tuple[Any, Any]:
    n, length, width = z.shape
    parts = (_linear(p, f"{name}.{part}", z) for part in ("query", "key", "value"))
    q, k, v = (part.reshape(n, length, heads, -1).swapaxes(1, 2) for part in parts)
    scores = q @ k.swapaxes(-1, -2)
    scores *= (width // heads) ** -0.5
    scores += np.triu(np.full((length, length), -np.inf, np.float32), 1)
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    merged = (scores @ v).swapaxes(1, 2).reshape(n, length, width)
    return _linear(p, f"{name}.out", merged), (z, q, k, v, scores, merged)


def _attention_back(p: Arrays, name: str, d: Any, tape: Any, heads: int, grads: Arrays) -> Any:
    z, q, k, v, scores, merged = tape
    n, length, width = d.shape
    d_out = _linear_back(p, f"{name}.out", d, merged, grads).reshape(n, length, heads, -1).swapaxes(1, 2)
    d_v = scores.swapaxes(-1, -2) @ d_out
    d_scores = d_out @ v.swapaxes(-1, -2)
    d_scores -= (d_scores * scores).sum(axis=-1, keepdims=True)
    d_scores *= scores
    d_scores *= (width // heads) ** -0.5
    parts = {"query": d_scores @ k, "key": d_scores.swapaxes(-1, -2) @ q, "value": d_v}
    d_z = 0
    for part, d_part in parts.items():
        d_z = d_z + _linear_back(p, f"{name}.{part}", d_part.swapaxes(1, 2).reshape(n, length, width), z, grads)
    return d_z


def _cross_entropy(scores: Any, y: Any) -> tuple[Any, Any]:
    scores -= scores.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(scores, y[..., None], -1)
    np.exp(scores, out=scores)
    total = scores.sum(axis=-1, keepdims=True)
    loss = (np.log(total) - chosen).mean()
    scores /= total
    np.put_along_axis(scores, y[..., None], np.take_along_axis(scores, y[..., None], -1) - 1, -1)
    scores /= y.size
    return loss, scores

"""The workloads as functions of arrays, for engines whose arrays answer to NumPy's names."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.workloads import GPTSize, MLPSize, Workload

Arrays = dict[str, Any]


def loss_of(workload: Workload, xp: Any) -> Any:
    """``loss(parameters, x, y)`` written in ``xp``, a namespace like NumPy's.

    Besides NumPy's it has ``relu``, ``softmax`` over the last dimension, and ``cross_entropy`` of (rows, classes).
    """
    size = workload.size
    if isinstance(size, MLPSize):
        names = size.layer_names()
        return lambda p, x, y: _mlp(xp, names, p, x, y)
    return lambda p, x, y: _gpt(xp, size, p, x, y)


def _mlp(xp: Any, names: list[str], p: Arrays, x: Any, y: Any) -> Any:
    h = x
    for name in names[:-1]:
        h = xp.relu(_linear(xp, p, name, h))
    difference = _linear(xp, p, names[-1], h) - y
    return 0.5 * xp.sum(difference * difference)


def _linear(xp: Any, p: Arrays, name: str, h: Any) -> Any:
    return xp.matmul(h, p[f"{name}.weight"]) + p[f"{name}.bias"]


def _gpt(xp: Any, size: GPTSize, p: Arrays, x: Any, y: Any) -> Any:
    h = p["tokens.weight"][x] + p["positions.weight"]
    barrier = np.triu(np.full((size.length, size.length), -np.inf, np.float32), 1)
    for i in range(size.layers):
        name = f"blocks.{i}"
        h = h + _attention(xp, size, p, f"{name}.attention", _layer_norm(xp, p, f"{name}.norm1", h), barrier)
        z = _linear(xp, p, f"{name}.mlp.inner", _layer_norm(xp, p, f"{name}.norm2", h))
        h = h + _linear(xp, p, f"{name}.mlp.outer", _gelu(xp, z))
    h = _layer_norm(xp, p, "norm", h)
    scores = xp.matmul(h, xp.transpose(p["tokens.weight"]))
    return xp.cross_entropy(xp.reshape(scores, (-1, size.vocabulary)), y.reshape(-1))


def _layer_norm(xp: Any, p: Arrays, name: str, x: Any) -> Any:
    z = x - xp.mean(x, axis=-1, keepdims=True)
    variance = xp.mean(z * z, axis=-1, keepdims=True)
    return z / xp.sqrt(variance + np.float32(1e-5)) * p[f"{name}.weight"] + p[f"{name}.bias"]


def _gelu(xp: Any, x: Any) -> Any:
    inner = np.float32((2 / np.pi) ** 0.5) * (x + np.float32(0.044715) * x * x * x)
    return np.float32(0.5) * x * (1 + xp.tanh(inner))


def _attention(xp: Any, size: GPTSize, p: Arrays, name: str, z: Any, barrier: Any) -> Any:
    n, length, width = z.shape
    shape, order = (n, length, size.heads, width // size.heads), (0, 2, 1, 3)
    parts = (xp.reshape(_linear(xp, p, f"{name}.{part}", z), shape) for part in ("query", "key", "value"))
    q, k, v = (xp.transpose(part, order) for part in parts)
    scale = np.float32((width // size.heads) ** -0.5)
    probabilities = xp.softmax(xp.matmul(q, xp.transpose(k, (0, 1, 3, 2))) * scale + barrier)
    merged = xp.reshape(xp.transpose(xp.matmul(probabilities, v), order), (n, length, width))
    return _linear(xp, p, f"{name}.out", merged)

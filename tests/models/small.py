"""Every kind of model at a size at which all of its parts are there and nothing takes time."""

from __future__ import annotations

import numpy as np

from memback import models


def images(n, channels, size, classes, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, channels, size, size)), rng.integers(0, classes, n)


def tokens(n=3, length=6, vocabulary=7, seed=0):
    text = np.random.default_rng(seed).integers(0, vocabulary, (n, length + 1))
    return text[:, :-1], text[:, 1:]


def features(n, inputs, seed=0):
    return np.random.default_rng(seed).standard_normal((n, inputs))


LLAMA = {
    "attention": "tiled",
    "norm": "rms",
    "kv_heads": 2,
    "rotary": True,
    "activation": "swiglu",
    "tied": False,
    "bias": False,
}

MODELS = {
    "notes_network": lambda dtype: models.NotesNetwork(4, 5, 3, dtype=dtype),
    "mlp": lambda dtype: models.MLP(4, 3, width=5, depth=5, activation="tanh", dtype=dtype),
    "gpt": lambda dtype: models.GPT(3, 8, 2, 7, 6, dropout=0.2, dtype=dtype),
    "gpt-fused-bits": lambda dtype: models.GPT(3, 8, 2, 7, 6, dropout=0.2, mask="bits", attention="fused", dtype=dtype),
    "llama": lambda dtype: models.GPT(3, 8, 4, 7, 6, **LLAMA, dtype=dtype),
    "resnet18": lambda dtype: models.ResNet(18, classes=3, channels=2, width=2, dtype=dtype),
    "resnet50": lambda dtype: models.ResNet(50, classes=3, channels=2, width=1, stem="large", dtype=dtype),
    "unet": lambda dtype: models.UNet(2, 3, width=2, depth=2, dtype=dtype),
    "lstm": lambda dtype: models.LSTMModel(7, 5, 2, dtype=dtype),
    "vit": lambda dtype: models.ViT(8, 4, 2, 3, 3, 8, 2, dropout=0.1, dtype=dtype),
}
"""By name: makes the model in a dtype."""

DATA = {
    "notes_network": lambda: (features(6, 4), features(6, 3, seed=1)),
    "mlp": lambda: (features(6, 4), np.arange(6) % 3),
    "gpt": tokens,
    "gpt-fused-bits": tokens,
    "llama": tokens,
    "resnet18": lambda: images(2, 2, 8, 3),
    "resnet50": lambda: images(2, 2, 64, 3),
    "unet": lambda: (images(2, 2, 8, 3)[0], np.random.default_rng(1).integers(0, 3, (2, 8, 8))),
    "lstm": tokens,
    "vit": lambda: images(2, 2, 8, 3),
}
"""By the same names: a batch."""


def batch(name, dtype):
    """Inputs and targets for a model, floating ones in ``dtype``."""
    return tuple(a.astype(dtype) if a.dtype.kind == "f" else a for a in DATA[name]())

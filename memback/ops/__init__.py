"""Every op by its name; each is declared in one class (see :mod:`memback.op`)."""

from __future__ import annotations

from memback.ops.convolution import avg_pool2d, conv2d, max_pool2d, upsample
from memback.ops.elementwise import add, multiply, relu
from memback.ops.linear_algebra import linear
from memback.ops.loss import sqerr
from memback.ops.normalisation import batch_norm, group_norm, layer_norm, rms_norm
from memback.ops.random import dropout

__all__ = [
    "add",
    "avg_pool2d",
    "batch_norm",
    "conv2d",
    "dropout",
    "group_norm",
    "layer_norm",
    "linear",
    "max_pool2d",
    "multiply",
    "relu",
    "rms_norm",
    "sqerr",
    "upsample",
]

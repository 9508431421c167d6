"""Every op by its name; each is declared in one class (see :mod:`memback.engine.op`)."""

from __future__ import annotations

from memback.engine import calls as _calls  # noqa: F401 - has calls of ops recorded
from memback.ops import operators as _operators  # noqa: F401 - puts the operators on Tensor
from memback.ops.activations import gelu, leaky_relu, relu, relu_bits, sigmoid, silu, softplus, tanh
from memback.ops.attention import scaled_dot_product_attention, tiled_attention
from memback.ops.convolution import avg_pool2d, conv2d, max_pool2d, upsample
from memback.ops.elementwise import (
    absolute,
    add,
    divide,
    exp,
    log,
    maximum,
    multiply,
    negative,
    power,
    sqrt,
    subtract,
    where,
)
from memback.ops.indexing import embedding, getitem
from memback.ops.linear_algebra import linear, matmul
from memback.ops.loss import binary_cross_entropy_with_logits, cross_entropy, mse, sqerr
from memback.ops.normalisation import batch_norm, group_norm, layer_norm, rms_norm
from memback.ops.random import dropout
from memback.ops.reductions import max, mean, sum, var
from memback.ops.rotary import rotary
from memback.ops.shape import broadcast_to, concatenate, permute, reshape, split, stack, swapaxes, transpose
from memback.ops.softmax import attention_softmax, log_softmax, softmax

__all__ = [
    "absolute",
    "add",
    "attention_softmax",
    "avg_pool2d",
    "batch_norm",
    "binary_cross_entropy_with_logits",
    "broadcast_to",
    "concatenate",
    "conv2d",
    "cross_entropy",
    "divide",
    "dropout",
    "embedding",
    "exp",
    "gelu",
    "getitem",
    "group_norm",
    "layer_norm",
    "leaky_relu",
    "linear",
    "log",
    "log_softmax",
    "matmul",
    "max",
    "max_pool2d",
    "maximum",
    "mean",
    "mse",
    "multiply",
    "negative",
    "permute",
    "power",
    "relu",
    "relu_bits",
    "reshape",
    "rms_norm",
    "rotary",
    "scaled_dot_product_attention",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "split",
    "sqerr",
    "sqrt",
    "stack",
    "subtract",
    "sum",
    "swapaxes",
    "tanh",
    "tiled_attention",
    "transpose",
    "upsample",
    "var",
    "where",
]

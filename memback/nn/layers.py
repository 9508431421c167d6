"""Layers that are one op with its parameters. Arguments are PyTorch's; ``dtype`` is that of the parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from memback import ops
from memback.engine.tensor import Tensor
from memback.nn import init
from memback.nn.module import Module

__all__ = [
    "GELU",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv2d",
    "Dropout",
    "Embedding",
    "Flatten",
    "GroupNorm",
    "LayerNorm",
    "LeakyReLU",
    "Linear",
    "MaxPool2d",
    "RMSNorm",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
    "Upsample",
]


class _Layer(Module):
    renamed = {"x": "input"}


class Linear(_Layer):
    """h W + b (Eq. 10a): (..., in_features) to (..., out_features). The weight has shape (in, out), as in the notes.

    With a ``fill`` of :mod:`memback.nn.init` the weight begins with its values, and the bias with zeros.
    """

    renamed = {"h": "input"}

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        dtype: Any = "float32",
        fill: init.Fill | None = None,
    ) -> None:
        super().__init__()
        uniform = init.uniform(in_features)
        self.weight = init.parameter((in_features, out_features), dtype, fill or uniform)
        self.bias = init.parameter((out_features,), dtype, init.constant(0) if fill else uniform) if bias else None

    def forward(self, input: Any) -> Tensor:
        return ops.linear(input, self.weight, self.bias)


class Conv2d(_Layer):
    """Convolution of (n, in_channels, height, width)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        dtype: Any = "float32",
    ) -> None:
        super().__init__()
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"`in_channels` (={in_channels}) and `out_channels` (={out_channels}) must be divisible by `groups`"
                f" (={groups})"
            )
        height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        shape = (out_channels, in_channels // groups, height, width)
        fill = init.uniform(shape[1] * height * width)
        self.weight = init.parameter(shape, dtype, fill)
        self.bias = init.parameter((out_channels,), dtype, fill) if bias else None
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def forward(self, input: Any) -> Tensor:
        return ops.conv2d(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Embedding(_Layer):
    """A row of ``embedding_dim`` numbers for each of ``num_embeddings`` integers."""

    renamed = {"indices": "input"}

    def __init__(
        self, num_embeddings: int, embedding_dim: int, *, dtype: Any = "float32", deviation: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = init.parameter((num_embeddings, embedding_dim), dtype, init.normal(deviation))

    def forward(self, input: Any) -> Tensor:
        return ops.embedding(input, self.weight)


class LayerNorm(_Layer):
    """Normalisation over the last dimensions (Ba et al. 2016, arXiv 1607.06450)."""

    def __init__(self, normalized_shape: int | Sequence[int], eps: float = 1e-5, *, dtype: Any = "float32") -> None:
        super().__init__()
        self.shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.eps = eps
        self.weight = init.parameter(self.shape, dtype, init.constant(1))
        self.bias = init.parameter(self.shape, dtype, init.constant(0))

    def forward(self, input: Any) -> Tensor:
        return ops.layer_norm(input, self.shape, self.weight, self.bias, self.eps)


class RMSNorm(_Layer):
    """Division by the root mean square over the last dimensions (Zhang & Sennrich 2019, arXiv 1910.07467)."""

    def __init__(self, normalized_shape: int | Sequence[int], eps: float = 1e-5, *, dtype: Any = "float32") -> None:
        super().__init__()
        self.shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        self.eps = eps
        self.weight = init.parameter(self.shape, dtype, init.constant(1))

    def forward(self, input: Any) -> Tensor:
        return ops.rms_norm(input, self.shape, self.weight, self.eps)


class GroupNorm(_Layer):
    """Normalisation over groups of channels (Wu & He 2018, arXiv 1803.08494)."""

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, *, dtype: Any = "float32") -> None:
        super().__init__()
        if num_channels % num_groups:
            raise ValueError(f"`num_channels` (={num_channels}) must be divisible by `num_groups` (={num_groups})")
        self.groups, self.eps = num_groups, eps
        self.weight = init.parameter((num_channels,), dtype, init.constant(1))
        self.bias = init.parameter((num_channels,), dtype, init.constant(0))

    def forward(self, input: Any) -> Tensor:
        return ops.group_norm(input, self.groups, self.weight, self.bias, self.eps)


class BatchNorm2d(_Layer):
    """Normalisation over the batch (Ioffe & Szegedy 2015, arXiv 1502.03167), with running statistics for evaluation."""

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, *, dtype: Any = "float32") -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = init.parameter((num_features,), dtype, init.constant(1))
        self.bias = init.parameter((num_features,), dtype, init.constant(0))
        self.register_buffer("running_mean", init.buffer((num_features,), dtype, 0))
        self.register_buffer("running_var", init.buffer((num_features,), dtype, 1))
        self.running_mean: Any
        self.running_var: Any

    def forward(self, input: Any) -> Tensor:
        return ops.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )


class BatchNorm1d(BatchNorm2d):
    """The same for (n, features) and (n, features, length)."""


class Dropout(_Layer):
    """Zeroes elements with probability ``p`` in training; ``mask`` says how it remembers which: bool, bits or seed."""

    def __init__(self, p: float = 0.5, mask: Literal["bool", "bits", "seed"] = "bool") -> None:
        super().__init__()
        self.p, self.mask = p, mask

    def forward(self, input: Any) -> Tensor:
        return ops.dropout(input, self.p, self.training, self.mask)


class ReLU(_Layer):
    """max(x, 0)."""

    def forward(self, input: Any) -> Tensor:
        return ops.relu(input)


class LeakyReLU(_Layer):
    """x where it is positive, else a fraction of it."""

    def __init__(self, negative_slope: float = 0.01) -> None:
        super().__init__()
        self.negative_slope = negative_slope

    def forward(self, input: Any) -> Tensor:
        return ops.leaky_relu(input, self.negative_slope)


class GELU(_Layer):
    """x Phi(x)."""

    def __init__(self, approximate: Literal["none", "tanh"] = "none") -> None:
        super().__init__()
        self.approximate = approximate

    def forward(self, input: Any) -> Tensor:
        return ops.gelu(input, self.approximate)


class SiLU(_Layer):
    """x sigma(x)."""

    def forward(self, input: Any) -> Tensor:
        return ops.silu(input)


class Sigmoid(_Layer):
    """1 / (1 + e^-x)."""

    def forward(self, input: Any) -> Tensor:
        return ops.sigmoid(input)


class Tanh(_Layer):
    """Hyperbolic tangent."""

    def forward(self, input: Any) -> Tensor:
        return ops.tanh(input)


class Softplus(_Layer):
    """log(1 + e^x)."""

    def forward(self, input: Any) -> Tensor:
        return ops.softplus(input)


class Softmax(_Layer):
    """Softmax over ``dim``."""

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, input: Any) -> Tensor:
        return ops.softmax(input, self.dim)


class MaxPool2d(_Layer):
    """The maximum of each window."""

    def __init__(self, kernel_size: int, stride: int | None = None, padding: int = 0) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, input: Any) -> Tensor:
        return ops.max_pool2d(input, self.kernel_size, self.stride, self.padding)


class AvgPool2d(_Layer):
    """The mean of each window."""

    def __init__(self, kernel_size: int, stride: int | None = None, padding: int = 0) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding

    def forward(self, input: Any) -> Tensor:
        return ops.avg_pool2d(input, self.kernel_size, self.stride, self.padding)


class Upsample(_Layer):
    """A larger image."""

    def __init__(self, scale_factor: int, mode: Literal["nearest", "bilinear"] = "nearest") -> None:
        super().__init__()
        self.scale_factor, self.mode = scale_factor, mode

    def forward(self, input: Any) -> Tensor:
        return ops.upsample(input, self.scale_factor, self.mode)


class Flatten(_Layer):
    """(n, ...) to (n, the rest): a view."""

    def forward(self, input: Any) -> Tensor:
        return ops.reshape(input, (input.shape[0], -1))

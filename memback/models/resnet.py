"""Residual networks."""

from __future__ import annotations

from typing import Any, Literal

from memback import nn, ops
from memback.engine.tensor import Tensor
from memback.models.classifier import Classifier

__all__ = ["ResNet"]

_BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


class _Residual(nn.Module):
    """relu(shortcut(x) + branch(x)); the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut

    def forward(self, input: Any) -> Tensor:
        return ops.relu(ops.add(self.branch(input), input if self.shortcut is None else self.shortcut(input)))


def _convolution(inputs: int, outputs: int, size: int, stride: int, dtype: str) -> list[nn.Module]:
    convolution = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False, dtype=dtype)
    return [convolution, nn.BatchNorm2d(outputs, dtype=dtype)]


def _branch(inputs: int, width: int, stride: int, bottleneck: bool, dtype: str) -> list[nn.Module]:
    if not bottleneck:
        first, second = _convolution(inputs, width, 3, stride, dtype), _convolution(width, width, 3, 1, dtype)
        return [*first, nn.ReLU(), *second]
    first, second = _convolution(inputs, width, 1, 1, dtype), _convolution(width, width, 3, stride, dtype)
    return [*first, nn.ReLU(), *second, nn.ReLU(), *_convolution(width, 4 * width, 1, 1, dtype)]


def _block(inputs: int, width: int, stride: int, bottleneck: bool, dtype: str) -> _Residual:
    outputs = 4 * width if bottleneck else width
    branch = nn.Sequential(*_branch(inputs, width, stride, bottleneck, dtype))
    same = stride == 1 and inputs == outputs
    return _Residual(branch, None if same else nn.Sequential(*_convolution(inputs, outputs, 1, stride, dtype)))


class ResNet(Classifier):
    """ResNet-18, -34 or -50 (He et al. 2015, arXiv 1512.03385); stem, blocks and head are one chain.

    Args:
        depth: 18, 34 or 50.
        classes: number of classes.
        channels: of the images.
        width: channels of the first stage; 64 in the paper.
        stem: ``large`` for images of 224 pixels as in the paper, ``small`` (3x3, no pooling) for images of about 32.
        dtype: of the parameters.

    Raises:
        ValueError: another depth.
    """

    def __init__(
        self,
        depth: Literal[18, 34, 50] = 18,
        classes: int = 10,
        channels: int = 3,
        width: int = 64,
        stem: Literal["small", "large"] = "small",
        *,
        dtype: str = "float32",
    ) -> None:
        super().__init__()
        if depth not in _BLOCKS:
            raise ValueError(f"`depth` (={depth}) must be 18, 34 or 50")
        bottleneck = depth == 50
        large = stem == "large"
        first = _convolution(channels, width, 7 if large else 3, 2 if large else 1, dtype)
        pooling = [nn.MaxPool2d(3, 2, 1)] if large else []
        units: list[nn.Module] = [nn.Sequential(*first, nn.ReLU(), *pooling)]
        features = width
        for stage, count in enumerate(_BLOCKS[depth]):
            for number in range(count):
                stride = 2 if stage and not number else 1
                units.append(_block(features, width * 2**stage, stride, bottleneck, dtype))
                features = width * 2**stage * (4 if bottleneck else 1)
        self.layers = nn.Sequential(*units)
        self.head = nn.Linear(features, classes, dtype=dtype)

    def forward(self, input: Any) -> Tensor:
        """Scores (n, classes) for images (n, channels, height, width)."""
        return self.head(ops.mean(self.layers(input), (2, 3)))

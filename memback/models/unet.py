"""U-Net."""

from __future__ import annotations

from typing import Any

from memback import nn, ops
from memback.engine.tensor import Tensor
from memback.models.classifier import Classifier, Depth

__all__ = ["UNet"]


def _double(inputs: int, outputs: int, dtype: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a in (inputs, outputs):
        layers += [nn.Conv2d(a, outputs, 3, padding=1, bias=False, dtype=dtype)]
        layers += [nn.BatchNorm2d(outputs, dtype=dtype), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(Classifier):
    """U-Net (Ronneberger et al. 2015, arXiv 1505.04597): skip connections from the way down to the way up.

    Its levels are units that a policy checkpoints one by one: it is no chain.

    Args:
        channels: of the images.
        classes: of each pixel.
        width: channels of the top level; each level down has twice as many.
        depth: number of halvings; height and width must be divisible by 2^depth.
        dtype: of the parameters.
    """

    class_dim = 1

    def __init__(
        self, channels: int, classes: int, width: int = 64, depth: Depth = 4, *, dtype: str = "float32"
    ) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList([_double(a, b, dtype) for a, b in zip([channels, *widths], widths, strict=False)])
        self.up = nn.ModuleList([_double(3 * w, w, dtype) for w in reversed(widths[:-1])])
        self.head = nn.Conv2d(width, classes, 1, dtype=dtype)

    def forward(self, input: Any) -> Tensor:
        """Scores (n, classes, height, width) for images (n, channels, height, width)."""
        divisor = 2 ** len(self.up)
        if input.shape[2] % divisor or input.shape[3] % divisor:
            raise ValueError(
                f"images of {input.shape[2]} x {input.shape[3]} pixels: both must be divisible by {divisor}"
            )
        skips: list[Any] = []
        for level, block in enumerate(self.down):
            input = block(input if level == 0 else ops.max_pool2d(input, 2))
            skips.append(input)
        skips.pop()
        for block in self.up:
            input = ops.concatenate([skips.pop(), ops.upsample(input, 2)], dim=1)
            input = block(input)
        return self.head(input)

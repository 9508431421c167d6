"""Models as users of PyTorch write them, after torchvision's ResNet-50, GPT-2 and the U-Net paper."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint


class Bottleneck(nn.Module):
    """A residual block of three convolutions."""

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    """ResNet-50 by default."""

    def __init__(self, layers: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 1000) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        channels, stages = width, []
        for number, length in enumerate(layers):
            blocks = []
            for place in range(length):
                blocks.append(Bottleneck(channels, width * 2**number, 2 if number and not place else 1))
                channels = 4 * width * 2**number
            stages.append(nn.Sequential(*blocks))
        self.layers = nn.Sequential(*stages)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layers(x)), 1))


class Attention(nn.Module):
    """Causal self-attention in one call."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.p = heads, dropout
        self.c_attn, self.c_proj, self.drop = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part.view(batch, length, self.heads, -1).transpose(1, 2) for part in self.c_attn(x).split(width, dim=2)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.p if self.training else 0.0, is_causal=True)
        return self.drop(self.c_proj(mixed.transpose(1, 2).contiguous().view(batch, length, width)))


class Block(nn.Module):
    """A transformer's block."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), Attention(width, heads, dropout)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width), nn.Dropout(dropout)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """GPT-2 small by default; its head is tied to its embedding. ``reentrant`` puts every block under a checkpoint."""

    def __init__(
        self,
        layers: int = 12,
        width: int = 768,
        heads: int = 12,
        vocabulary: int = 50257,
        context: int = 1024,
        dropout: float = 0.1,
        reentrant: bool | None = None,
    ) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.wte, self.wpe, self.drop = (
            nn.Embedding(vocabulary, width),
            nn.Embedding(context, width),
            nn.Dropout(dropout),
        )
        self.h = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device)))
        for block in self.h:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant)
        return self.lm_head(self.ln_f(x))


def double(channels: int, out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for start in (channels, out):
        layers += [nn.Conv2d(start, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """A U-Net with transposed convolutions."""

    def __init__(self, width: int = 64, depth: int = 4, channels: int = 3, classes: int = 2) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(double(a, b) for a, b in zip([channels, *widths[:-1]], widths, strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * a, a, 2, 2) for a in widths[:-1])
        self.merge = nn.ModuleList(double(2 * a, a) for a in widths[:-1])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips = []
        for level, unit in enumerate(self.down):
            x = unit(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(reversed(self.up), reversed(self.merge), strict=True):
            x = merge(torch.cat([skips.pop(), up(x)], 1))
        return self.head(x)


def cross_entropy(output: torch.Tensor) -> torch.Tensor:
    """Against class 0 everywhere; a language model's classes are in the last dimension."""
    output = output.flatten(0, 1) if output.dim() == 3 else output
    return F.cross_entropy(output, output.new_zeros((output.shape[0], *output.shape[2:]), dtype=torch.int64))


# -- what the command line is shown


def small_gpt() -> GPT:
    return GPT(layers=2, width=16, heads=2, vocabulary=20, context=8, dropout=0.0)


class Masked(nn.Module):
    """An embedding under linear layers, and a mask by name."""

    def __init__(self, layers: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids) * mask[..., None]
        for layer in self.layers:
            x = layer(x).relu()
        return x / mask.sum()


def with_arguments(
    layers: int, width: int = 8, *, dtype: torch.dtype | None = None, name: str = "", scale: float = 1.0, frozen=False
) -> nn.Module:
    """Says in its module's name what it was called with."""
    module = Masked(layers, width).to(dtype).requires_grad_(not frozen)
    type(module).__name__ = f"Masked {layers} {width} {name!r} {scale!r} {frozen}"
    return module


def with_args_and_kwargs(rows: int = 2) -> tuple[nn.Module, list[torch.Tensor], dict[str, torch.Tensor]]:
    return Masked(1, 8), [torch.zeros(rows, 4, dtype=torch.int64)], {"mask": torch.ones(rows, 4)}


def with_inputs() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    return nn.Bilinear(4, 5, 3), {"input1": torch.ones(2, 4), "input2": torch.ones(2, 5)}


class OnValues(nn.Linear):
    """Takes a decision on a value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * x.sum().item()


def on_values() -> nn.Module:
    return OnValues(4, 4)


class Wrong(nn.Linear):
    """Fails."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x[:, :1])


def wrong() -> nn.Module:
    return Wrong(4, 4)


def fails() -> nn.Module:
    raise ValueError("no such weights")


def no_module() -> int:
    return 3


ready = nn.Linear(4, 4)


class Calls(nn.Module):
    """Calls a function with itself and whatever it is given; ``first`` and ``second`` are linear layers."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)

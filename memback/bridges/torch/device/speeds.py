"""How fast cards compute and move bytes, by their data sheets: enough to tell which calls are dear, and for estimates.

TFLOP/s (a multiply-add is 2) are dense ones: in float32 without tensor cores, which is PyTorch's default for products,
and in bfloat16 or float16 with them, adding up in float32; GB/s are those of the card's memory.
"""

from __future__ import annotations

from typing import NamedTuple

from memback.bridges.torch.device.cards import Card

__all__ = ["Rates", "rates"]


class Rates(NamedTuple):
    """FLOPs a second in float32, and in half precision; bytes a second from and to memory."""

    single: float
    half: float
    bytes: float


_TABLE = {
    "v100-16gb": (15.7, 125, 900),
    "v100-32gb": (15.7, 125, 900),
    "t4": (8.1, 65, 320),
    "rtx2080ti": (13.4, 53.8, 616),
    "a100-40gb": (19.5, 312, 1555),
    "a100-80gb": (19.5, 312, 2039),
    "a10g": (31.2, 125, 600),
    "a40": (37.4, 149.7, 696),
    "a6000": (38.7, 154.8, 768),
    "rtx3090": (35.6, 71, 936),
    "l4": (30.3, 121, 300),
    "l40s": (91.6, 362, 864),
    "rtx4090": (82.6, 165.2, 1008),
    "h100": (67, 989, 3350),
    "h200": (67, 989, 4800),
    "b200": (75, 2250, 8000),
    "rtx5090": (104.8, 209.5, 1792),
}


def rates(card: Card) -> Rates:
    """A card's rates."""
    single, half, moved = _TABLE[card.name]
    return Rates(single * 1e12, half * 1e12, moved * 1e9)

"""What cuBLAS is given: a workspace for each thread that calls it."""

from __future__ import annotations

from typing import Any

import torch

from memback.bridges.torch.device.cards import Card

__all__ = ["workspace_bytes", "uses_cublas"]

_aten = torch.ops.aten
_PRODUCTS = (_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm, _aten.addmv, _aten.dot, _aten.vdot)


def uses_cublas(func: Any) -> bool:
    """Whether an op's kernel calls cuBLAS."""
    return func._overloadpacket in _PRODUCTS


def workspace_bytes(card: Card) -> int:
    """A workspace's bytes, by default."""
    return 32 * 2**20 if card.capability[0] in (9, 10) else 8519680

"""What cuBLAS is given: a workspace for each thread that calls it."""

from __future__ import annotations

import os
from typing import Any

import torch

from memback.bridges.torch.device.cards import Card
from memback.bridges.torch.device.workspaces import cublas_workspace_bytes

__all__ = ["uses_cublas", "workspace_bytes"]

_aten = torch.ops.aten
_PRODUCTS = (_aten.mm, _aten.addmm, _aten.bmm, _aten.baddbmm, _aten.addmv, _aten.dot, _aten.vdot)


def uses_cublas(func: Any) -> bool:
    """Whether an op's kernel calls cuBLAS."""
    return func._overloadpacket in _PRODUCTS


def workspace_bytes(card: Card) -> int:
    """A workspace's bytes, as the environment of this process sets them."""
    return cublas_workspace_bytes(card.capability, os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""))

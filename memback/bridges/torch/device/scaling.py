"""Scaled gradients (``torch.amp.GradScaler``): all of them are finite, so that no update is left out."""

from __future__ import annotations

from typing import Any

import torch

from memback.bridges.torch.device.mode import DeviceMode
from memback.bridges.torch.device.registry import kernel

_aten = torch.ops.aten


@kernel(_aten._amp_foreach_non_finite_check_and_unscale_.default)
def unscale(mode: DeviceMode, func: Any, gradients: Any, found_inf: Any, inv_scale: Any) -> None:
    """Divide gradients in place; ``found_inf`` keeps the 0 that it was made with."""


@kernel(_aten._amp_update_scale_.default)
def update_scale(mode: DeviceMode, func: Any, scale: Any, *how: Any) -> Any:
    """Change the scale in place."""
    return scale

"""Ops of which it is said, not known, what they take on CUDA besides what they give."""

from __future__ import annotations

from typing import Any

import torch

from memback.bridges.torch.device.mode import DeviceMode
from memback.bridges.torch.device.registry import kernel

_aten = torch.ops.aten


@kernel(
    _aten.sort.default,
    _aten.sort.stable,
    _aten.topk.default,
    _aten._unique2.default,
    _aten.unique_dim.default,
    _aten.cumprod.default,
    _aten.linalg_cholesky_ex.default,
    _aten._linalg_svd.default,
    _aten._linalg_eigh.default,
    _aten.linalg_qr.default,
    _aten.linalg_lu_factor_ex.default,
    _aten._fft_r2c.default,
    _aten._fft_c2r.default,
    _aten._fft_c2c.default,
    _aten._ctc_loss.default,
)
def _with_scratch(mode: DeviceMode, func: Any, *args: Any, **kwargs: Any) -> Any:
    """What it gives, without the scratch memory of its library."""
    mode.unmodelled.setdefault(func._overloadpacket.__name__, "its scratch memory")
    return func(*args, **kwargs)

"""Ops of which it is said, not known, what they take on CUDA besides what they give."""

from __future__ import annotations

from typing import Any

import torch

from memback.bridges.torch.device.current import note_unmodelled
from memback.bridges.torch.device.mode import DeviceMode
from memback.bridges.torch.device.registry import composite, kernel

_aten = torch.ops.aten
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


def _by_cells(op: Any) -> Any:
    """A recurrent layer, step by step, in the place of cuDNN's kernel for all of it."""

    def run(*args: Any, **kwargs: Any) -> Any:
        note_unmodelled(op._overloadpacket.__name__, "cuDNN's recurrent layer, which is taken to run cell by cell")
        return op._op_dk(_COMPOSITE, *args, **kwargs)

    return run


for _op in (_aten.lstm, _aten.gru, _aten.rnn_tanh, _aten.rnn_relu):
    for _overload in ("input", "data"):
        composite(f"{_op.__name__}.{_overload}")(_by_cells(getattr(_op, _overload)))


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

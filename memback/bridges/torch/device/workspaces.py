"""The workspaces that PyTorch gives to cuBLAS, out of its caching allocator.

Source: ``parseChosenWorkspaceSize``, ``parseCUDABlasLtWorkspaceSize`` and ``getCurrentCUDABlasHandle`` in
``aten/src/ATen/cuda/CublasHandlePool.cpp`` of PyTorch 2.14.1; the sizes are those that its host code asks for on each
capability from 7.0 to 12.0.

A workspace belongs to a handle and a stream. Each thread has a handle of its own: the one that runs forward takes a
workspace at its first matrix product, autograd's thread for the device at the first one of backward. Both are taken
after the memory of that product's result, and stay until the process ends (``torch._C._cuda_clearCublasWorkspaces``).
"""

from __future__ import annotations

import re

from memback.units import KIB, MIB

__all__ = ["cublas_workspace_bytes", "cublaslt_workspace_bytes"]

OF_HOPPER = 32 * MIB
BEFORE_HOPPER = 2 * 4096 * KIB + 8 * 16 * KIB
OF_LT_ALONE = MIB


def cublas_workspace_bytes(capability: tuple[int, int], config: str = "") -> int:
    """Return the bytes of the workspace that a thread takes at its first matrix product; 0 where it takes none.

    Args:
        capability: The device's compute capability.
        config: The value of ``CUBLAS_WORKSPACE_CONFIG``, pairs of ``:KiB:count``; without a pair it counts as not set,
            as for PyTorch.
    """
    if pairs := re.findall(r":(\d+):(\d+)", config, re.ASCII):
        return sum(int(size) * KIB * int(count) for size, count in pairs)
    return OF_HOPPER if capability >= (9, 0) else BEFORE_HOPPER


def cublaslt_workspace_bytes(unified: bool = True, size: str = "") -> int:
    """Return what a thread takes for products with a fused bias or activation, in bytes, beside what cuBLAS takes.

    Args:
        unified: Whether both share one workspace, as they do unless ``TORCH_CUBLASLT_UNIFIED_WORKSPACE=0``.
        size: The value of ``CUBLASLT_WORKSPACE_SIZE``, in KiB, of a workspace that is not shared.
    """
    if unified:
        return 0
    return int(size) * KIB if re.fullmatch(r"\d+", size, re.ASCII) else OF_LT_ALONE

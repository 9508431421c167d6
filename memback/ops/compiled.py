"""Compiled kernels (extra ``fast``) in place of NumPy's passes, if they are turned on.

NumPy takes an activation or a normalisation one operation at a time, each a pass over the data. A kernel of
:mod:`memback.ops.kernels` does the whole of it in one or two. Results differ in the last few bits, so this is off by
default: compare gradients only between runs with the same setting.

A kernel writes into arrays that the op has made, and makes none itself. So a dry run, which only skips the kernel,
still predicts every byte: less than without, since NumPy's passes need workspace and a kernel has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from memback.engine.arrays import DryArray
from memback.errors import MembackError
from memback.extras import how_to_install

if TYPE_CHECKING:
    from memback.ops.kernels import Kernel

__all__ = ["in_use", "run", "use_compiled_kernels"]

_kernels: Mapping[str, Kernel] = {}


def use_compiled_kernels(use: bool = True) -> None:
    """Have compiled kernels compute GELU, SiLU, layer and RMS norm, softmax and the gradient of embeddings in float32.

    In all threads of this process, from the next op on; ``use=False`` goes back to NumPy. Arrays of other types, or not
    dense (transposed, say), and norms without all of their parameters always use NumPy. Loading the
    kernels takes about a second; the first time on a machine they are compiled, which takes some more.

    Raises:
        MembackError: Numba is not installed.
    """
    global _kernels
    if not use:
        _kernels = {}
        return
    try:
        from memback.ops.kernels import KERNELS
    except ModuleNotFoundError as error:
        if error.name != "numba":
            raise
        raise MembackError(f"compiled kernels need Numba: {how_to_install('numba')}") from None
    _kernels = KERNELS


def in_use() -> bool:
    """Whether kernels are in use."""
    return bool(_kernels)


def run(name: str, *arguments: Any) -> bool:
    """Run a kernel on arrays and numbers, if kernels are in use and the arrays fit. Return whether it has run.

    An array for which the kernel has one dimension is passed flat, others as a matrix whose rows are its last
    dimension. On a dry run nothing is run, and the result is the same.
    """
    kernel = _kernels.get(name)
    if kernel is None:
        return False
    seen = list(arguments)
    for place, dtype, dimensions in kernel.arrays:
        array = arguments[place]
        if array is None or array.dtype != dtype or array.size == 0 or not _is_dense(array):
            return False
        seen[place] = array.reshape(-1) if dimensions == 1 else array.reshape(-1, array.shape[-1])
    if not isinstance(seen[0], DryArray):
        kernel.function(*seen)
    return True


def _is_dense(array: Any) -> bool:
    if isinstance(array, DryArray):
        return array.contiguous
    return bool(array.flags.c_contiguous and array.flags.aligned)

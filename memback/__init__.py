"""memback: a tape-based backprop engine on NumPy that knows every byte it keeps.

>>> import numpy as np
>>> import memback as mb
>>> from memback import nn, ops
>>> model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10), checkpoint="sqrt")
>>> with mb.Tape() as tape:
...     loss = ops.sqerr(model(mb.Tensor(np.ones((32, 64), np.float32))), np.zeros((32, 10), np.float32))
>>> tape.saved_bytes
17664
>>> loss.backward()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memback import _moved, nn, ops
from memback._version import __version__
from memback.dry.array import NoValuesError, ShapeArray
from memback.dry.mode import dry_run
from memback.engine.checkpoint import CheckpointWarning, checkpoint
from memback.engine.derivatives import UndefinedDerivativeError, partial, total
from memback.engine.errors import AnomalyError, TapeError
from memback.engine.hooks import saved_tensors_hooks
from memback.engine.micro_batches import accumulate_gradients
from memback.engine.modes import detect_anomaly, no_grad
from memback.engine.op import OpError
from memback.engine.state import is_recomputing, manual_seed
from memback.engine.tensor import Tensor
from memback.errors import MembackError, OutOfMemoryError, UsageError

if TYPE_CHECKING:
    from memback import models, optim, plans
    from memback.engine.allocator import keep_freed_memory
    from memback.engine.offload import OffloadWarning, save_on_disk
    from memback.ops.compiled import use_compiled_kernels
    from memback.plans.model.planning import plan
    from memback.profiling.precision import PrecisionWarning
    from memback.profiling.run import profile
    from memback.profiling.tape import Tape

__all__ = [
    "AnomalyError",
    "CheckpointWarning",
    "MembackError",
    "NoValuesError",
    "OffloadWarning",
    "OpError",
    "OutOfMemoryError",
    "PrecisionWarning",
    "ShapeArray",
    "Tape",
    "TapeError",
    "Tensor",
    "UndefinedDerivativeError",
    "UsageError",
    "__version__",
    "accumulate_gradients",
    "checkpoint",
    "detect_anomaly",
    "dry_run",
    "is_recomputing",
    "keep_freed_memory",
    "manual_seed",
    "models",
    "nn",
    "no_grad",
    "ops",
    "optim",
    "partial",
    "plan",
    "plans",
    "profile",
    "save_on_disk",
    "saved_tensors_hooks",
    "total",
    "use_compiled_kernels",
]

_LAZY = {
    "OffloadWarning": "memback.engine.offload",
    "PrecisionWarning": "memback.profiling.precision",
    "Tape": "memback.profiling.tape",
    "keep_freed_memory": "memback.engine.allocator",
    "models": "memback.models",
    "optim": "memback.optim",
    "plan": "memback.plans.model.planning",
    "plans": "memback.plans",
    "profile": "memback.profiling.run",
    "save_on_disk": "memback.engine.offload",
    "use_compiled_kernels": "memback.ops.compiled",
}

_moved.install()


def __getattr__(name: str) -> Any:
    """Load what few programs need when it is first used, so that ``import memback`` stays light."""
    if name not in _LAZY:
        raise AttributeError(f"module 'memback' has no attribute {name!r}")
    from importlib import import_module

    module = import_module(_LAZY[name])
    value = module if module.__name__ == f"memback.{name}" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

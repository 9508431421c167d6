"""Import paths of version 0.1: each still leads to the module, or the modules, that have what it had."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["MOVED", "install"]

MOVED: dict[str, tuple[str, ...]] = {
    "memback.allocator": ("memback.engine.allocator",),
    "memback.arrays": ("memback.engine.arrays", "memback.dry.array"),
    "memback.checkpoint": ("memback.engine.checkpoint",),
    "memback.checksums": ("memback.engine.checksums",),
    "memback.compiled": ("memback.ops.compiled",),
    "memback.derivatives": ("memback.engine.derivatives",),
    "memback.ledger": ("memback.profiling.accounts", "memback.profiling.ledger", "memback.profiling.tape"),
    "memback.micro_batches": ("memback.engine.micro_batches",),
    "memback.offload": ("memback.engine.offload",),
    "memback.op": ("memback.engine.op",),
    "memback.packing": ("memback.engine.hooks", "memback.engine.packed"),
    "memback.plans.exact": ("memback.plans.chain.exact",),
    "memback.plans.fit": ("memback.fitting.fit",),
    "memback.plans.largest": ("memback.fitting.largest",),
    "memback.plans.revolve": ("memback.plans.chain.revolve",),
    "memback.plans.uniform": ("memback.plans.chain.uniform",),
    "memback.policy": ("memback.nn.policy",),
    "memback.profiling.passes": (
        "memback.profiling.ledger",
        "memback.profiling.measuring",
        "memback.profiling.mode",
        "memback.profiling.step",
    ),
    "memback.shape_array": ("memback.dry.array", "memback.dry.memory"),
    "memback.state": ("memback.engine.state",),
    "memback.tape": (
        "memback.engine.errors",
        "memback.engine.modes",
        "memback.engine.node",
        "memback.engine.observer",
        "memback.engine.site",
        "memback.engine.tape",
        "memback.engine.tensor",
    ),
}
"""By the path of version 0.1, the modules that have its public names now."""


class _Loader:
    """Makes a module that takes its names from others. (The base class in importlib.abc takes milliseconds to load.)"""

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        there = MOVED[module.__name__]

        def find(name: str) -> Any:
            for home in map(import_module, there):
                if name in home.__all__:
                    warnings.warn(f"{module.__name__}.{name} is in {home.__name__} now", DeprecationWarning, 2)
                    return getattr(home, name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__getattr__ = find  # type: ignore[method-assign]


class _Finder:
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, _Loader()) if fullname in MOVED else None  # type: ignore[arg-type]


def install() -> None:
    """Have old import paths lead where the names are now, with a DeprecationWarning."""
    sys.meta_path.append(_Finder())
    # made now, because an import later would put the module in place of the function of that name
    checkpoint = sys.modules["memback.checkpoint"] = ModuleType("memback.checkpoint")
    _Loader().exec_module(checkpoint)

"""The modules of memback.bridges.torch.device that need no PyTorch, imported where there is none."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import memback.bridges

PARENT = "memback.bridges.torch"


def pure(name: str) -> ModuleType:
    """Import ``memback.bridges.torch.device.<name>`` without what its parent imports; that is left as it was."""
    full = f"{PARENT}.device.{name}"
    if PARENT in sys.modules or full in sys.modules:
        return importlib.import_module(full)
    stand_in = ModuleType(PARENT)
    stand_in.__path__ = [str(Path(memback.bridges.__file__).parent / "torch")]
    sys.modules[PARENT] = stand_in
    try:
        return importlib.import_module(full)
    finally:
        del sys.modules[PARENT]

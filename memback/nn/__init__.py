"""Layers."""

from __future__ import annotations

from memback.nn.container import ModuleList, Sequential
from memback.nn.module import Module, Parameter

__all__ = ["Module", "ModuleList", "Parameter", "Sequential"]

"""Data sets by name.

A loader is a function from the dtype of floating arrays and keyword arguments of its own to a
:class:`Dataset`. Its arguments are those of a profile's ``[data]`` section, and their annotations are what
that section is checked against. To add one, write it in a file of its own (the shortest is ``digits.py``) and
name it in the registry.
"""

from __future__ import annotations

from collections.abc import Callable

from memback.data.archive import load_npz
from memback.data.dataset import Dataset, floating
from memback.data.digits import load_digits
from memback.data.noise import load_random
from memback.data.source import load_python_source

__all__ = ["REGISTRY", "Dataset", "floating"]

REGISTRY: dict[str, Callable[..., Dataset]] = {
    "digits": load_digits,
    "python-source": load_python_source,
    "random": load_random,
    "npz": load_npz,
}
"""Every loader by the name that a profile gives."""

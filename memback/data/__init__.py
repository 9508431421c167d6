"""Data sets by name.

A loader is a function from the dtype of floating arrays and keyword arguments of its own to a
:class:`Dataset`. Its arguments are those of a profile's ``[data]`` section, and their annotations are what
that section is checked against. A second function of the same arguments describes a sample without reading any data,
which is all that a dry run needs. To add one, write both in a file of their own (the shortest
is ``digits.py``) and name them in the registries.
"""

from __future__ import annotations

from collections.abc import Callable

from memback.data.archive import layout_of_npz, load_npz
from memback.data.dataset import Dataset, Layout, floating
from memback.data.digits import layout_of_digits, load_digits
from memback.data.noise import layout_of_random, load_random
from memback.data.source import layout_of_python_source, load_python_source

__all__ = ["LAYOUTS", "REGISTRY", "Dataset", "Layout", "floating"]

REGISTRY: dict[str, Callable[..., Dataset]] = {
    "digits": load_digits,
    "python-source": load_python_source,
    "random": load_random,
    "npz": load_npz,
}
"""Every loader by the name that a profile gives."""

LAYOUTS: dict[str, Callable[..., Layout]] = {
    "digits": layout_of_digits,
    "python-source": layout_of_python_source,
    "random": layout_of_random,
    "npz": layout_of_npz,
}
"""By the same names: what a sample will look like."""

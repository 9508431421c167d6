"""Libraries that only a part of memback needs: what to install where one is missing."""

from __future__ import annotations

__all__ = ["REQUIREMENTS", "how_to_install"]

REQUIREMENTS: dict[str, str] = {
    "dask": "dask>=2026.1",
    "distributed": "distributed>=2026.1",
    "numba": "numba>=0.63",
    "peft": "peft>=0.15",
    "pillow": "pillow>=11",
    "pyarrow": "pyarrow>=22",
    "torch": "torch>=2.6",
    "transformers": "transformers>=4.50",
}
"""Libraries with the versions that pyproject.toml's extras ask for."""


def how_to_install(*libraries: str) -> str:
    """The command that installs them, by their own names because it is the same wherever memback came from."""
    return "pip install " + " ".join(f"'{REQUIREMENTS[library]}'" for library in libraries)

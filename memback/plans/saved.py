"""The base of all plans, which are plain data in JSON files."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import msgspec

from memback.errors import UsageError, shorten
from memback.files import read_regular, write_atomically

__all__ = ["SavedPlan", "check_parameters"]


class SavedPlan(ABC):
    """A plan that can be written to a file and read again."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The plan as plain data."""

    @classmethod
    @abstractmethod
    def from_dict(cls, data: Any) -> Self:
        """Read what :meth:`to_dict` wrote.

        Raises:
            UsageError: it is no plan; the message names what is wrong.
        """

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the plan as JSON, whole or not at all.

        Raises:
            UsageError: the file exists and ``overwrite`` is false, or there is no such folder.
            MembackError: the system does not let it be written.
        """
        write_atomically(path, msgspec.json.format(msgspec.json.encode(self.to_dict()), indent=1), overwrite)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a plan that :meth:`save` wrote.

        Raises:
            UsageError: there is no such file, or it is no plan.
        """
        try:
            text = read_regular(path)
        except OSError as error:
            raise UsageError(f"{shorten(path)} can't be read: {error.strerror}") from None
        try:
            return cls.from_dict(msgspec.json.decode(text))
        except (msgspec.DecodeError, UnicodeError) as error:
            raise UsageError(f"{shorten(path)} is no JSON: {shorten(error)}") from None
        except RecursionError:
            raise UsageError(
                f"{shorten(path)} is no plan of memback's: lists or tables in it are nested too deep"
            ) from None
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None


def check_parameters(mine: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]], model: str) -> None:
    """Raise unless ``theirs``, the parameters' shapes of a ``model``, are those that a plan was made for.

    Raises:
        UsageError: they are not; the message names the first difference.
    """
    for name in [*mine, *theirs]:
        if mine.get(name) != theirs.get(name):
            raise UsageError(
                f"this plan was made for another model: {name} has shape {mine.get(name, 'none')} in it, in this"
                f" {model} {theirs.get(name, 'none')}. Make a plan for this one"
            )

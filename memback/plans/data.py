"""Frozen structures that are at once the form of plans in files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

from memback.errors import UsageError, shorten

__all__ = ["Data", "always", "read"]

_T = TypeVar("_T")


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A structure that is a JSON object under the names of its fields.

    A field with a default is left out of a file where it has that, unless the default is :func:`always`.
    """


def always(default: Any) -> Any:
    """The default, in Python alone, of a field that every file has."""
    return msgspec.field(default_factory=lambda: default)


def read(data: Any, kind: type[_T]) -> _T:
    """Convert plain data, which has every field that would be written.

    Raises:
        UsageError: it says no such thing; the message names the first place that is wrong.
    """
    try:
        made = msgspec.convert(data, kind, str_keys=True)
    except msgspec.ValidationError as error:
        raise UsageError(f"this plan is malformed: {shorten(error)}") from None
    for missing in _left_out(data, msgspec.to_builtins(made, str_keys=True), "$"):
        raise UsageError(f"this plan is malformed: Object missing required field {shorten(missing)}")
    return made


def _left_out(given: Any, written: Any, place: str) -> Iterator[str]:
    """The fields that are written and were not given, in the words of msgspec."""
    if isinstance(written, dict):
        for name, value in written.items():
            if name in given:
                yield from _left_out(given[name], value, f"{place}.{name}")
            else:
                yield f"`{name}` - at `{place}`"
    elif isinstance(written, (list, tuple)):
        for index, (one, other) in enumerate(zip(given, written, strict=False)):
            yield from _left_out(one, other, f"{place}[{index}]")

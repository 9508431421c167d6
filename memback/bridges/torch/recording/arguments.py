"""What a factory is called with, from text: ``n_layer=4``, ``dropout=0.1``, ``dtype=bfloat16``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_args

import torch
from msgspec.structs import fields

from memback.bridges.torch.recording.inputs import dtype_named
from memback.errors import UsageError
from memback.profiling.schema import arguments_schema, check, read_value

__all__ = ["parse_arguments", "typed"]

_PYTHON = {"True": "true", "False": "false"}


def parse_arguments(texts: Iterable[str]) -> dict[str, str]:
    """Read several of ``NAME=VALUE``, of which no two may have the same name.

    Raises:
        UsageError: one is no such thing, or a name is given twice.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not (equals and name.isidentifier()):
            raise UsageError(f"--arg {text!r:.80} is no NAME=VALUE; write it as --arg n_layer=4")
        if name in found:
            raise UsageError(f"--arg {name} is given twice")
        found[name] = value.strip()
    return found


def typed(reference: str, factory: Callable[..., Any], given: Mapping[str, str]) -> dict[str, Any]:
    """The arguments as the factory's annotations want them; without an annotation as TOML has values, or as text.

    Raises:
        UsageError: an argument is missing, unknown, or of another type; the message names ``reference``.
    """
    taken: Mapping[str, inspect.Parameter] = {}
    try:
        taken, schema = inspect.signature(factory).parameters, arguments_schema(factory)
    except (TypeError, ValueError, AttributeError):  # a function written in C need not tell
        schema = arguments_schema(lambda **named: None)
    needed = [
        name
        for name, parameter in taken.items()
        if parameter.default is parameter.empty and parameter.kind not in (_MANY, _NAMED) and name not in given
    ]
    if needed:
        raise UsageError(
            f"{reference} can't be called without arguments: give {' '.join(f'--arg {name}=VALUE' for name in needed)}"
        )
    kinds = {field.name: field.type for field in fields(schema)}
    values = {name: _read(text, name, kinds.get(name), schema) for name, text in given.items()}
    check(values, schema, f"--arg, for {reference}")
    return values


_MANY, _NAMED = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD


def _read(text: str, name: str, kind: Any, schema: Any) -> Any:
    wants_dtype = kind is torch.dtype or torch.dtype in get_args(kind)
    if text != "None" and (wants_dtype or (kind in (None, Any) and text.startswith("torch."))):
        return dtype_named(text.removeprefix("torch."))
    if text == "None":
        return None
    return read_value(_PYTHON.get(text, text), schema, name)

"""Checking data against types, with messages that name the file, the key, the value and what is allowed.

Arguments of models and loaders are checked against the annotations of the function that takes them, so there
is no second list of them.
"""

from __future__ import annotations

import difflib
import inspect
import re
import tomllib
from collections.abc import Callable, Collection, Sequence
from typing import Any, get_type_hints

import msgspec
from msgspec import inspect as types

from memback.errors import UsageError, shorten

__all__ = ["arguments_schema", "check", "choose", "read_value"]

_LONGEST_NAME = 200
"""Characters of a name for which one is looked for that looks like it: that takes the square of their number."""

_PROBLEM = re.compile(r"(?P<what>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)
_STEP = re.compile(r"[^.\[\]]+|\[\d+\]")
_FIELD = re.compile(r"Object (?P<problem>contains unknown|missing required) field `(?P<name>.*)`", re.DOTALL)


def check(value: Any, schema: type[Any], file: str, section: str = "", own: Sequence[str] = ()) -> Any:
    """``value`` as an instance of the Struct ``schema``.

    ``section`` is where in ``file`` it stands; ``own`` are other keys that may stand there.

    Raises:
        UsageError: a key is unknown or missing, or its value is of another type or out of range.
    """
    try:
        return msgspec.convert(value, schema)
    except msgspec.ValidationError as error:
        raise UsageError(f"{file}: {_explain(str(error), value, schema, section, own)}") from None


def choose(kind: str, name: str, known: Collection[str]) -> str:
    """The message for a name that is not among the known ones."""
    return f"there is no {kind} {shorten(repr(name))}{_nearest(name, known)}; there are {', '.join(known)}"


def arguments_schema(function: Callable[..., Any], without: Collection[str] = ()) -> type[msgspec.Struct]:
    """A Struct with a field for each argument of ``function`` but those in ``without``."""
    annotated: Any = function
    if isinstance(function, type):
        annotated = inspect.getattr_static(function, "__init__")
    try:
        hints = get_type_hints(annotated, include_extras=True)
    except NameError:
        hints = {}
    fields: list[tuple[str, Any, Any]] = []
    anything = False
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            anything = anything or parameter.kind is parameter.VAR_KEYWORD
        elif name not in without:
            default = msgspec.NODEFAULT if parameter.default is parameter.empty else None
            fields.append((name, _supported(hints.get(name, Any)), default))
    return msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=not anything)


def read_value(text: str, schema: type[msgspec.Struct], name: str) -> Any:
    """A value from text, as the field ``name`` of ``schema`` wants it: as it is, or as TOML has values.

    What TOML can't read, a number of thousands of digits say, is left as text, which the field then refuses.
    """
    if name in schema.__struct_fields__ and _wants_text(_walk(schema, [name])):
        return text
    try:
        read = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return read["value"] if len(read) == 1 else text


def _explain(problem: str, value: Any, schema: type[Any], section: str, own: Sequence[str]) -> str:
    match = _PROBLEM.fullmatch(problem)
    assert match is not None
    steps = _STEP.findall(match["path"] or "")
    field = _FIELD.fullmatch(match["what"])
    if field is not None:
        return _explain_field(field["problem"], [*steps, field["name"]], schema, section, own)
    for step in steps:
        value = value[int(step[1:-1]) if step.startswith("[") else step]
    where = _join(section, steps) or "the definition"
    return f"{where} (={shorten(repr(value))}) must be {_describe(_walk(schema, steps))}"


def _join(section: str, steps: Sequence[str]) -> str:
    return ".".join([section, *steps] if section else steps).replace(".[", "[")


def _explain_field(problem: str, steps: Sequence[str], schema: type[Any], section: str, own: Sequence[str]) -> str:
    *above, name = steps
    full = _join(section, steps)
    parent = _walk(schema, above)
    fields = {field.encode_name: field.type for field in parent.fields}
    if problem == "missing required":
        kind = f"section [{full}]" if isinstance(fields[name], types.StructType) else full
        return f"{kind} is missing; it must be {_describe(fields[name])}"
    allowed = [key for key in (*own, *fields) if key != "arguments"]
    return f"unknown key {shorten(full)}{_nearest(name, allowed)}; allowed are {', '.join(allowed) or 'none'}"


def _nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1) if len(name) <= _LONGEST_NAME else []
    return f" (did you mean {near[0]!r}?)" if near else ""


def _supported(hint: Any) -> Any:
    try:
        msgspec.convert(None, hint)
    except TypeError:
        return Any
    except msgspec.ValidationError:
        pass
    return hint


def _walk(schema: type[Any], steps: Sequence[str]) -> Any:
    """What msgspec knows of the type at a path of keys below ``schema``."""
    node: Any = types.type_info(schema)
    for step in steps:
        if step.startswith("["):
            node = _collection(node).item_type
        else:
            node = next(field.type for field in node.fields if field.encode_name == step)
        if isinstance(node, types.Metadata):
            node = node.type
    return node


def _collection(node: Any) -> Any:
    members = node.types if isinstance(node, types.UnionType) else (node,)
    return next(member for member in members if isinstance(member, types.CollectionType))


def _wants_text(node: Any) -> bool:
    if isinstance(node, types.UnionType):
        return all(_wants_text(member) for member in node.types if not isinstance(member, types.NoneType))
    if isinstance(node, types.LiteralType):
        return all(isinstance(value, str) for value in node.values)
    return isinstance(node, types.StrType)


def _describe(node: Any) -> str:
    match node:
        case types.Metadata():
            return _describe(node.type)
        case types.IntType() | types.FloatType():
            bounds = {">=": node.ge, ">": node.gt, "<=": node.le, "<": node.lt}
            limits = " and ".join(f"{sign} {limit}" for sign, limit in bounds.items() if limit is not None)
            return f"a {'whole ' if isinstance(node, types.IntType) else ''}number {limits}".rstrip()
        case types.BoolType():
            return "true or false"
        case types.StrType():
            return "text" if node.max_length is None else f"text of at most {node.max_length} characters"
        case types.LiteralType():
            return "one of " + ", ".join(repr(value) for value in node.values)
        case types.UnionType():
            members = (member for member in node.types if not isinstance(member, types.NoneType))
            return " or ".join(_describe(member) for member in members)
        case types.CollectionType():
            return f"a list of which each is {_describe(node.item_type)}"
        case types.StructType() | types.DictType():
            return "a table"
        case _:
            return "a value"

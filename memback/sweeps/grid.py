"""Which points a sweep has: every combination of the values that are given for keys of a profile."""

from __future__ import annotations

import hashlib
import inspect
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgspec

from memback._version import __version__
from memback.errors import UsageError, shorten
from memback.fitting.largest import DIMENSIONS
from memback.plans.registry import WHOLE, planner
from memback.profiling.definition import Profile, Train
from memback.profiling.schema import choose
from memback.units import format_bytes_short, parse_bytes, parse_count

__all__ = ["PLANNER", "POLICY", "Axis", "Grid", "Point", "Value", "check_planner", "parse_axis", "settings_text"]

PLANNER = "chain"
"""The default planner for points: it is deterministic."""

POLICY = "checkpoint.policy"
"""The key of the profile that ``policy`` is short for."""

_SHORT = {"batch": "data.batch", "policy": POLICY}
_GROWING = ("depth", "sequence")
_MOST = 1_000_000


@dataclass(frozen=True)
class Value:
    """A value of an axis: as rows have it, and what it changes: keys of the profile, the budget, or the planner."""

    shown: int | float | str | bool
    overrides: tuple[tuple[str, str], ...] = ()
    budget: int | None = None
    planner: str | None = None


@dataclass(frozen=True)
class Axis:
    """A key with the values that it takes."""

    key: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Point:
    """A combination of values. ``id`` identifies it, wherever its row is kept.

    ``overrides`` are the keys of the profile that it changes but for the policy, which is None where it is the
    profile's own; ``budget`` (bytes) is None where no plan is asked for.
    """

    number: int
    id: str
    settings: dict[str, Any]
    overrides: tuple[tuple[str, str], ...]
    policy: str | None
    budget: int | None
    planner: str


@dataclass(frozen=True)
class Grid:
    """All combinations of the axes' values, the last axis changing fastest.

    Args:
        profile: what the axes change.
        axes: keys with their values, in the order in which they were given.
        budget: in bytes, for points whose axes say none.
        planner: for points whose axes say none.
    """

    profile: Profile
    axes: tuple[Axis, ...]
    budget: int | None = None
    planner: str = PLANNER

    def __post_init__(self) -> None:
        owners: dict[str, str] = {}
        for axis in self.axes:
            for target in _targets(axis):
                if target in owners:
                    raise UsageError(
                        f"--grid {axis.key} and --grid {owners[target]} both set {target}: give one of them"
                    )
                owners[target] = axis.key
        if self.planner != PLANNER and not self.has_plans:
            raise UsageError("--planner needs a budget: give --budget BYTES or --grid budget=…")
        if "planner" in owners and not self.has_plans:
            raise UsageError("--grid planner=… needs a budget: give --budget BYTES or --grid budget=…")
        if len(self) > _MOST:
            raise UsageError(f"the grid has {len(self):,} points, at most {_MOST:,} can be run: give fewer values")

    def __len__(self) -> int:
        return math.prod(len(axis.values) for axis in self.axes)

    @property
    def has_plans(self) -> bool:
        """Whether any point has a budget."""
        return self.budget is not None or any(axis.key == "budget" for axis in self.axes)

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """Every point, numbered from 0."""
        combinations = itertools.product(*(axis.values for axis in self.axes))
        return tuple(itertools.starmap(self._point, enumerate(combinations)))

    def _point(self, number: int, values: Sequence[Value]) -> Point:
        settings = {axis.key: value.shown for axis, value in zip(self.axes, values, strict=True)}
        changed = dict(pair for value in values for pair in value.overrides)
        policy = changed.pop(POLICY, None)
        budget = next((v.budget for v in values if v.budget is not None), self.budget)
        planner = next((v.planner for v in values if v.planner is not None), self.planner)
        content = [__version__, self._sha256, changed, policy, budget, planner if budget is not None else None]
        digest = hashlib.sha256(msgspec.json.encode(content, order="sorted")).hexdigest()
        return Point(number, digest[:20], settings, tuple(changed.items()), policy, budget, planner)

    @cached_property
    def _sha256(self) -> str:
        return self.profile.sha256


def _targets(axis: Axis) -> Iterator[str]:
    if axis.key in ("budget", "planner"):
        yield axis.key
    yield from {key for value in axis.values for key, _ in value.overrides}


def settings_text(settings: dict[str, Any]) -> str:
    """A point's settings for people: ``batch=8, dtype=float16, budget=8.00GiB``."""
    shown = (
        (key, format_bytes_short(value).replace(" ", "") if key == "budget" and isinstance(value, int) else value)
        for key, value in settings.items()
    )
    return ", ".join(f"{key}={value}" for key, value in shown)


def check_planner(name: str) -> None:
    """Refuse a planner that there is not.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in WHOLE:
        planner(name)


# -- reading an axis


def parse_axis(text: str, profile: Profile, others: Sequence[str] = ()) -> Axis:
    """Read ``key=a,b,c``. ``others`` are all axes as text: where one changes the model, keys of others may be its own.

    A key is one of the profile (``model.width``, ``dtype``), a short name (``batch``, ``policy``; ``sequence`` and
    ``depth`` as ``memback fit`` finds them; any name that only one section has), ``budget`` or ``planner``. A comma
    inside of brackets or quotes belongs to a value.

    Raises:
        UsageError: it is not written like this, there is no such key, or it can't have one of the values.
    """
    key, equals, rest = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise UsageError(f"--grid {shorten(repr(text))} is no KEY=VALUE,VALUE,…; write it as --grid batch=1,2,4")
    texts = [part.strip() for part in _split(rest)]
    if not all(texts):
        what = "has no values" if texts == [""] else "has an empty value"
        raise UsageError(f"--grid {shorten(repr(text))} {what}; write it as --grid {shorten(key)}=1,2,4")
    changing = any(other.partition("=")[0].strip() in ("model.name", "data.name") for other in others)
    values = tuple(_value(key, one, profile, changing) for one in texts)
    seen: set[Value] = set()
    for value in values:
        if value in seen:
            raise UsageError(f"--grid {key} has the value {value.shown} twice")
        seen.add(value)
    return Axis(key, values)


def _split(text: str) -> list[str]:
    """Parts between commas that are in no bracket and no quotes."""
    parts: list[list[str]] = [[]]
    depth, quote = 0, ""
    for c in text:
        if quote:
            quote = "" if c == quote else quote
        elif c in "\"'":
            quote = c
        depth += (c in "[{(") - (c in "]})") if not quote else 0
        if c == "," and depth == 0 and not quote:
            parts.append([])
        else:
            parts[-1].append(c)
    return ["".join(part) for part in parts]


def _value(key: str, text: str, profile: Profile, changing: bool) -> Value:
    if key == "budget":
        size = parse_bytes(text)
        return Value(size, budget=size)
    if key == "planner":
        check_planner(text)
        return Value(text, planner=text)
    overrides = _overrides(key, text, profile)
    try:
        checked = profile.with_overrides(overrides, "--grid")
    except UsageError:
        if not changing:
            raise
        return Value(text, tuple(overrides.items()))  # for the model of another axis; a point says whether it can be
    if key in _GROWING:
        return Value(_number(key, text), tuple(overrides.items()))
    (target,) = overrides
    found: Any = checked.to_dict()
    for step in target.split("."):
        found = found[step]
    if target == "data.path":
        overrides = {target: found}  # from this folder, wherever a point is run
    shown = found if isinstance(found, (int, float, str)) else msgspec.json.encode(found).decode()
    return Value(shown, tuple(overrides.items()))


def _overrides(key: str, text: str, profile: Profile) -> dict[str, str]:
    """The profile's keys that a value sets."""
    if key in _GROWING:
        return dict(DIMENSIONS[key](profile).settings(_number(key, text)))
    if "." in key or key in ("dtype", "dry"):
        return {key: text}
    known = _known(profile)
    if key not in known:
        raise UsageError(
            f"--grid {shorten(key)}: {choose('key', key, (*known, 'budget', 'planner'))}; or write it as model.width"
        )
    if len(known[key]) > 1:
        raise UsageError(f"--grid {key} could be {' or '.join(known[key])}: write one of them")
    return {known[key][0]: text}


def _known(profile: Profile) -> dict[str, list[str]]:
    """Every short name with the keys that it can stand for."""
    from memback.data import REGISTRY as DATA
    from memback.models import REGISTRY as MODELS

    known = {"dtype": ["dtype"], **{name: [key] for name, key in _SHORT.items()}}
    known |= {name: [name] for name in _GROWING}
    sections = {
        "model": inspect.signature(MODELS[profile.model.name]).parameters,
        "data": inspect.signature(DATA[profile.data.name]).parameters,
        "train": Train.__struct_fields__,
    }
    for section, names in sections.items():
        for name in names:
            if name not in ("dtype", "batch", *_GROWING):
                known.setdefault(name, []).append(f"{section}.{name}")
    return known


def _number(key: str, text: str) -> int:
    number = parse_count(text)
    if number is None:
        raise UsageError(f"--grid {key} (={shorten(repr(text))}) must be a whole number from 1 up")
    return number

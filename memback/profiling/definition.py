"""Profile definitions: what to run, written in TOML, checked in full before anything runs.

```
description = "one line"
dtype = "float32"          # of parameters and floating inputs
dry = false                # whether it is too large to be run: predicted only

[model]
name = "mlp"               # one of memback.models.REGISTRY; every other key is an argument of that model
hidden = [128, 128]

[data]
name = "digits"            # one of memback.data.REGISTRY; or path = "data.npz", from the profile's own folder
batch = 64                 # every other key is an argument of that loader

[train]                    # see Train
steps = 200

[checkpoint]
policy = "sqrt"            # one of memback.nn.policy.POLICIES, for the checkpoint mode
```

A definition is data: reading one runs no code of it.
"""

from __future__ import annotations

import hashlib
import math
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from memback.data import LAYOUTS, Dataset, Layout
from memback.data import REGISTRY as DATA
from memback.errors import UsageError, shorten
from memback.files import PACKAGE, read_regular
from memback.profiling.schema import arguments_schema, check, choose, read_value

__all__ = [
    "Checkpoint",
    "Data",
    "Model",
    "Profile",
    "Train",
    "load",
    "load_data",
    "load_layout",
    "make_model",
    "shipped",
]

_MOST_BYTES = 2**20
"""Of a profile's file."""

_LARGEST = 2**31 - 1
"""Of what is counted in a profile: features, layers, samples, steps."""

_COMMON = ("dtype",)
"""Arguments of models and loaders that the profile gives for all of them."""


class Model(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which model, and the arguments of its constructor."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


class Data(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which data, the samples of a batch, and the arguments of the loader."""

    name: str
    batch: Annotated[int, Meta(ge=1, le=_LARGEST)]
    arguments: Mapping[str, Any] = field(default_factory=dict)


class Train(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to train: ``warmup`` steps of a linear rise to ``learning_rate``, then the schedule."""

    steps: Annotated[int, Meta(ge=1, le=_LARGEST)] = 100
    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: Annotated[float, Meta(gt=0, le=1e6)] = 1e-3
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    weight_decay: Annotated[float, Meta(ge=0, le=1e6)] = 0.0
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: Annotated[int, Meta(ge=0, le=_LARGEST)] = 0
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0; a cosine reaches 0 just after the last one."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / (self.warmup + 1)
        if self.schedule == "constant":
            return self.learning_rate
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.learning_rate * (1 + math.cos(math.pi * done)) / 2


class Checkpoint(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The policy of the checkpoint mode."""

    policy: str = "sqrt"


class _Content(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(max_length=200)]
    description: Annotated[str, Meta(max_length=1000)] = ""
    dtype: Literal["float16", "bfloat16", "float32", "float64"] = "float32"
    dry: bool = False
    model: Model
    data: Data
    train: Train = Train()
    checkpoint: Checkpoint = Checkpoint()


class Profile(_Content, frozen=True, kw_only=True):
    """A checked profile definition. ``folder`` is where its relative paths start."""

    folder: Path = Path()

    def to_dict(self) -> dict[str, Any]:
        """The definition in full, defaults included, in the form of the file."""
        content = {name: msgspec.to_builtins(getattr(self, name)) for name in _Content.__struct_fields__}
        for section in ("model", "data"):
            content[section].update(content[section].pop("arguments"))
        return content

    @property
    def sha256(self) -> str:
        """SHA-256 of the definition in full, whatever the order and the layout of the file."""
        return hashlib.sha256(msgspec.json.encode(self.to_dict(), order="sorted")).hexdigest()

    def with_overrides(self, overrides: Mapping[str, str], source: str = "--set") -> Profile:
        """This profile with some keys set from text, as in ``model.width=128``.

        The text is read as the type of its key wants it. A new ``model.name`` or ``data.name`` starts without
        the arguments of the old one; a ``data.path`` starts from the current folder. ``source`` is what messages name.

        Raises:
            UsageError: there is no such key, or it can't have this value.
        """
        content = self.to_dict()
        for key in sorted(overrides, key=lambda key: not key.endswith(".name")):
            _set(content, key, overrides[key], source)
        return _check(content, source, self.folder)


def load(name_or_path: str | Path) -> Profile:
    """Read a profile: a shipped one by name, or a TOML file by path.

    Raises:
        UsageError: there is no such profile, or it is not a valid one.
    """
    path = Path(name_or_path)
    known = shipped()
    if str(name_or_path) in known:
        path = known[str(name_or_path)]
    elif path.parent == Path() and path.suffix != ".toml" and not os.path.exists(path):
        raise UsageError(choose("profile", str(name_or_path), known) + "; or give the path of a .toml file")
    try:
        text = read_regular(path, _MOST_BYTES).decode()
    except FileNotFoundError:
        raise UsageError(
            f"There is no profile file {shorten(path)}; `memback list` shows the shipped profiles"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UsageError(f"{shorten(path)} can't be read as a profile in TOML: {why}") from error
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits, too
        raise UsageError(f"{path} is not valid TOML: {shorten(error)}") from error
    return _check({"name": path.stem, **content}, str(path), path.parent)


def shipped() -> dict[str, Path]:
    """The files of the profiles that come with memback, by name."""
    folder = PACKAGE / "profiles"
    if not folder.is_dir():
        folder = PACKAGE.parent / "profiles"
    return {path.stem: path for path in sorted(folder.glob("*.toml"), key=lambda path: path.stem)}


def load_data(profile: Profile) -> Dataset:
    """The profile's data, in its dtype.

    Raises:
        UsageError: the loader refuses its arguments, or the file that they name.
    """
    return DATA[profile.data.name](profile.dtype, **_data_arguments(profile))


def load_layout(profile: Profile) -> Layout:
    """What a sample of the profile's data looks like; no data is read for it.

    Raises:
        UsageError: the arguments are refused, or a file has not the arrays that it should have.
    """
    return LAYOUTS[profile.data.name](profile.dtype, **_data_arguments(profile))


def _data_arguments(profile: Profile) -> dict[str, Any]:
    arguments = dict(profile.data.arguments)
    if profile.data.name == "npz":
        arguments["path"] = str(profile.folder / arguments["path"])
    return arguments


def make_model(profile: Profile) -> Any:
    """A new model as the profile describes it, in its dtype; its first parameters follow the thread's seed.

    Raises:
        UsageError: there is no such model, or it refuses its arguments.
    """
    return _models()[profile.model.name](**profile.model.arguments, dtype=profile.dtype)


def _check(content: dict[str, Any], file: str, folder: Path) -> Profile:
    """Check a definition in the form of the file, part by part; ``file`` is named in messages."""
    content = dict(content)
    for section, struct in (("model", Model), ("data", Data)):
        if isinstance(content.get(section), dict):
            content[section] = _split(content[section], struct)
    checked = check(content, _Content, file)
    _check_choice(checked.model, "model", _models(), file)
    _check_choice(checked.data, "data", DATA, file)
    _check_sizes(checked, file)
    _check_policy(checked.checkpoint.policy, file)
    return Profile(**{name: getattr(checked, name) for name in _Content.__struct_fields__}, folder=folder)


def _split(section: dict[str, Any], struct: type[Struct]) -> dict[str, Any]:
    """Separate a section's own keys from the arguments of the model or loader that it names."""
    own = set(struct.__struct_fields__) - {"arguments"}
    split = {key: value for key, value in section.items() if key in own}
    split["arguments"] = {key: value for key, value in section.items() if key not in own}
    if "path" in section and "name" not in section and "batch" in own:
        split["name"] = "npz"
    return split


def _check_choice(chosen: Model | Data, section: str, registry: Mapping[str, Any], file: str) -> None:
    if chosen.name not in registry:
        raise UsageError(f"{file}: {section}.name: {choose(section, chosen.name, registry)}")
    own = tuple(name for name in type(chosen).__struct_fields__ if name != "arguments")
    check(chosen.arguments, arguments_schema(registry[chosen.name], without=_COMMON), file, section, own)


def _check_sizes(content: _Content, file: str) -> None:
    """Refuse numbers too large to be sizes, before they are multiplied with each other."""
    for section in ("model", "data"):
        for key, number in _numbers(getattr(content, section).arguments, section):
            if abs(number) > _LARGEST and not key.endswith(".seed"):
                raise UsageError(
                    f"{file}: {key} (={shorten(number)}) is beyond {_LARGEST:,}, which no size in a model or its data"
                    " may be"
                )


def _numbers(value: Any, key: str) -> Iterator[tuple[str, int]]:
    """The whole numbers in a value, nested as it may be, each with its key."""
    if isinstance(value, int):
        yield key, value
    elif isinstance(value, Mapping):
        for name, member in value.items():
            yield from _numbers(member, f"{key}.{name}")
    elif isinstance(value, list):
        for number, member in enumerate(value):
            yield from _numbers(member, f"{key}[{number}]")


def _check_policy(policy: str, file: str) -> None:
    from memback.nn.policy import Policy

    try:
        Policy.parse(policy)
    except UsageError as error:
        raise UsageError(f"{file}: checkpoint.policy: {error}") from None


def _models() -> Mapping[str, Any]:
    from memback import models

    registry: Mapping[str, Any] = models.REGISTRY
    return registry


def _set(content: dict[str, Any], key: str, text: str, source: str) -> None:
    """Set one key of a definition in the form of the file, from text."""
    section, _, name = key.rpartition(".")
    schema: type[Any] = _Content
    if section:
        if not isinstance(content.get(section), dict):
            raise UsageError(
                f"{source} {shorten(key)}: there is no section {shorten(section)}; write it as train.steps=10 or"
                " dtype=float64"
            )
        schema = {"model": Model, "data": Data, "train": Train, "checkpoint": Checkpoint}[section]
        if name not in schema.__struct_fields__:
            registry = {"model": _models(), "data": DATA}.get(section, {})
            chosen = registry.get(content[section].get("name"))
            schema = schema if chosen is None else arguments_schema(chosen, without=_COMMON)
    target = content[section] if section else content
    value = read_value(text, schema, name)
    if name == "name" and section in ("model", "data") and value != target["name"]:
        for argument in set(target) - {"name", "batch"}:
            del target[argument]
    target[name] = str(Path(text).absolute()) if key == "data.path" else value

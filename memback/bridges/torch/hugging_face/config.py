"""A config of Hugging Face's transformers: from a file, a folder, or the local cache. Nothing is downloaded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memback.bridges.torch.recording.paths import described
from memback.errors import UsageError, shorten
from memback.extras import how_to_install
from memback.files import read_regular
from memback.profiling.schema import choose

__all__ = ["PREFIX", "config_of", "is_config", "transformers"]

PREFIX = "hf:"
"""What a reference to a config begins with."""

_FILE = "config.json"
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_PYTHON = {"True": True, "False": False, "None": None}


def is_config(reference: str) -> bool:
    """Whether a reference is to a config, as in ``hf:gpt2``."""
    return reference.startswith(PREFIX)


def transformers() -> Any:
    """The library.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import transformers as library
    except ImportError as error:
        raise UsageError(
            f"{PREFIX}CONFIG needs transformers ({error}): {how_to_install('transformers')}, or give MODULE:FACTORY"
        ) from error
    return library


def config_of(reference: str, changes: Mapping[str, str]) -> Any:
    """The config that ``hf:CONFIG`` names, with some of its settings changed.

    Args:
        reference: ``hf:`` and a config.json, a folder with one, or the name of a repository in the local cache.
        changes: settings by name, as text: JSON, or words.

    Raises:
        UsageError: it is not there, is no config, is of a model that transformers does not have, or has no such
            setting.
    """
    library = transformers()
    file = _file(reference)
    data = _read(file)
    data = {key: value for key, value in data.items() if key != "auto_map"}
    known = library.models.auto.configuration_auto.CONFIG_MAPPING
    kind = data.get("model_type")
    if not isinstance(kind, str) or kind not in known:
        own = "it has code of its own, which is never run, or " if "auto_map" in _read(file) else ""
        found = "it has no model_type" if kind is None else f"its model_type is {shorten(repr(kind))}"
        raise UsageError(
            f"{file} is of no model that transformers {library.__version__} has: {found}; {own}it needs another"
            " version. Write a factory for it: MODULE:FACTORY"
        )
    config = _made(known[kind], data, file)
    given = {name: _value(text) for name, text in changes.items()}
    for name in given:
        if not hasattr(config, name):
            raise UsageError(f"{file}: {choose('setting', name, sorted(config.to_dict()))}")
    return _made(known[kind], {**data, **given}, file) if given else config


def _made(kind: Any, data: Mapping[str, Any], file: Path) -> Any:
    try:
        return kind.from_dict(dict(data))
    except Exception as error:
        raise UsageError(f"{file} is no {kind.__name__}: {' '.join(described(error).split())}") from error


def _value(text: str) -> Any:
    if text in _PYTHON:
        return _PYTHON[text]
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _file(reference: str) -> Path:
    """Where the config is.

    Raises:
        UsageError: nowhere.
    """
    name = reference.removeprefix(PREFIX)
    path = Path(name).expanduser()
    if name and (path / _FILE).is_file():
        return path / _FILE
    if name and path.is_file():
        return path
    if path.is_dir() and name:
        raise UsageError(f"the folder {shorten(name)} has no {_FILE}: name a config of Hugging Face's, or its folder")
    from huggingface_hub import constants, try_to_load_from_cache

    if _REPOSITORY.fullmatch(name):
        try:
            found = try_to_load_from_cache(name, _FILE)
        except ValueError:  # it can be no name of a repository
            found = None
        if isinstance(found, str):
            return Path(found)
    raise UsageError(
        f"{shorten(repr(name))} is no file, no folder, and not in the cache of Hugging Face"
        f" ({constants.HF_HUB_CACHE}), and nothing is downloaded. Fetch it with `hf download NAME {_FILE}`, or"
        f" write {PREFIX} and the path of a {_FILE}"
    )


def _read(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(read_regular(file))
    except OSError as error:
        raise UsageError(f"{file} can't be read: {(error.strerror or str(error)).lower()}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is no JSON: {error}") from None
    if not isinstance(data, dict):
        raise UsageError(f"{file} is no config of Hugging Face's: it has no settings by name")
    return data

"""PYTORCH_CUDA_ALLOC_CONF: what it may say, read as PyTorch reads it.

Source: ``c10/core/AllocatorConfig.{h,cpp}`` and ``c10/cuda/CUDAAllocatorConfig.{h,cpp}`` of PyTorch 2.14.1; where
PyTorch has a message of its own, it is used.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from memback.errors import UsageError, shorten
from memback.units import MIB

__all__ = ["AllocatorConf", "parse_conf"]

LARGE_SEGMENT = 20 * MIB
LEAST_LARGE = 10 * MIB
INTERVALS = 16
"""Sizes are rounded by intervals, from 1 MiB to 64 GiB: each a power of two."""
WITHOUT_EFFECT = frozenset(
    (
        "expandable_segments_handle_type",
        "graph_capture_record_stream_reuse",
        "pinned_free_catch_all",
        "pinned_max_cached_size_mb",
        "pinned_max_round_threshold_mb",
        "pinned_num_register_threads",
        "pinned_reserve_segment_size_mb",
        "pinned_use_background_threads",
        "pinned_use_cuda_host_register",
        "pinned_use_hip_host_register",
        "release_lock_on_cudamalloc",
        "release_lock_on_hipmalloc",
        "throw_on_cudamalloc_oom",
    )
)
"""Keys that change nothing about which device memory is taken for one stream."""


@dataclass(frozen=True)
class AllocatorConf:
    """The settings that decide what the allocator takes; sizes in bytes."""

    expandable_segments: bool = False
    max_split_size: int | None = None
    """Blocks of this size and larger are not split; None: all may be."""
    max_non_split_rounding: int = LARGE_SEGMENT
    """How much larger than a request a block that isn't split may be."""
    large_segment: int = LARGE_SEGMENT
    """The segment that is taken for a request of more than 1 and less than 10 MiB."""
    garbage_collection_threshold: float = 0.0
    """The part of the memory that is allowed, above which blocks long unused are given back; 0: never."""
    memory_fraction: float = 1.0
    """The part of the device's memory that is allowed."""
    roundup_divisions: tuple[int, ...] = (0,) * INTERVALS
    """Into how many steps each interval between powers of two is divided; 0 and 1: sizes are rounded to 512 B."""

    def divisions(self, size: int) -> int:
        """Return the divisions of the interval that ``size`` bytes lie in."""
        return self.roundup_divisions[min(max(size.bit_length() - 21, 0), INTERVALS - 1)]


def parse_conf(text: str) -> AllocatorConf:
    """Read the value of PYTORCH_CUDA_ALLOC_CONF: ``key:value,key:[value,value]``; the empty text is PyTorch's default.

    Raises:
        UsageError: a key that PyTorch doesn't know, a value that it doesn't take, or ``backend:cudaMallocAsync``, whose
            memory the driver manages.
    """
    try:
        return _settings(_Tokens(text))
    except _WrongConfError as error:
        raise UsageError(
            f"allocator setting {shorten(repr(text))}: {error};"
            " write it as PYTORCH_CUDA_ALLOC_CONF, key:value,key:value, such as expandable_segments:True"
        ) from None


class _WrongConfError(Exception):
    """What is wrong with a setting."""


class _Tokens:
    """The text in words and signs, read from the left."""

    def __init__(self, text: str) -> None:
        self.words = re.findall(r"[,:\[\]]|[^,:\[\]]+", re.sub(r"\s", "", text))
        self.at = 0

    def more(self) -> bool:
        return self.at < len(self.words)

    def next(self, after: str) -> str:
        if not self.more():
            raise _WrongConfError(f"it ends after {shorten(repr(after))}, where a value is expected")
        self.at += 1
        return self.words[self.at - 1]

    def sign(self, sign: str, after: str) -> None:
        found = self.next(after)
        if found != sign:
            raise _WrongConfError(f"expected {sign!r} after {shorten(repr(after))}, not {shorten(repr(found))}")

    def value(self, key: str) -> str:
        self.sign(":", key)
        return self.next(key)


def _settings(tokens: _Tokens) -> AllocatorConf:
    values: dict[str, float] = {}
    rounding = (0,) * INTERVALS
    while tokens.more():
        key = tokens.next("")
        if key == "roundup_power2_divisions":
            rounding = _divisions(tokens)
        elif key in _READERS:
            name, read = _READERS[key]
            values[name] = read(key, tokens.value(key))
        elif key == "backend":
            _check_backend(tokens.value(key))
        elif key in WITHOUT_EFFECT:
            tokens.value(key)
        else:
            raise _WrongConfError(f"Unrecognized key {shorten(repr(key))} in Accelerator allocator config.")
        if tokens.more():
            tokens.sign(",", key)
    return _conf(values, rounding)


def _check_backend(name: str) -> None:
    if name == "cudaMallocAsync":
        raise _WrongConfError("the driver manages the memory of backend:cudaMallocAsync, which is not modelled")
    if name != "native":
        raise _WrongConfError("Unknown allocator backend, options are native and cudaMallocAsync")


def _conf(values: dict[str, float], rounding: tuple[int, ...]) -> AllocatorConf:
    large = int(values.get("large_segment", LARGE_SEGMENT))
    if large <= LEAST_LARGE:
        raise _WrongConfError(f"CachingAllocator option large_segment_size_mb must be > {LEAST_LARGE // MIB} MB")
    for name, key in (("max_split_size", "max_split_size_mb"), ("max_non_split_rounding", "max_non_split_rounding_mb")):
        if name in values and values[name] < large:
            raise _WrongConfError(f"CachingAllocator option {key} too small, must be >= {large // MIB}")
    return AllocatorConf(
        expandable_segments=bool(values.get("expandable_segments", False)),
        max_split_size=int(values["max_split_size"]) if "max_split_size" in values else None,
        max_non_split_rounding=int(values.get("max_non_split_rounding", large)),
        large_segment=large,
        garbage_collection_threshold=values.get("garbage_collection_threshold", 0.0),
        memory_fraction=values.get("memory_fraction", 1.0),
        roundup_divisions=rounding,
    )


def _divisions(tokens: _Tokens) -> tuple[int, ...]:
    """Read one number for all intervals, or a list of ``MiB:number``, whose ``>`` stands for all that are larger."""
    first = tokens.value("roundup_power2_divisions")
    if first != "[":
        number = _whole("roundup_power2_divisions", first)
        if not _power_of_two(number):
            raise _WrongConfError("For roundups, the divisions has to be power of 2")
        return (number,) * INTERVALS
    result, last, is_first = [0] * INTERVALS, 0, True
    while (word := tokens.next("[")) != "]":
        number = _whole("roundup_power2_divisions", tokens.value(word))
        if number and not _power_of_two(number):
            raise _WrongConfError("For roundups, the divisions has to be power of 2 or 0 to disable roundup")
        if word == ">":
            result[last + 1 :] = [number] * (INTERVALS - last - 1)
        else:
            interval = _whole("roundup_power2_divisions", word)
            if not _power_of_two(interval):
                raise _WrongConfError("For roundups, the intervals have to be power of 2")
            last = min(interval.bit_length() - 1, INTERVALS - 1)
            if is_first:
                result[:last], is_first = [number] * last, False
            result[last] = number
        if tokens.more() and tokens.words[tokens.at] != "]":
            tokens.sign(",", word)
    return tuple(result)


def _power_of_two(number: int) -> bool:
    return number > 0 and number & (number - 1) == 0


def _whole(key: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
        raise _WrongConfError(f"{key} {shorten(repr(text))} is no whole number")
    return int(text)


def _mebibytes(key: str, text: str) -> float:
    return _whole(key, text) * MIB


def _flag(key: str, text: str) -> float:
    if text not in ("True", "False"):
        raise _WrongConfError(f"Expected 'True' or 'False' for {key} but got {shorten(repr(text))}")
    return text == "True"


def _part(key: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise _WrongConfError(f"{key} {shorten(repr(text))} is no number") from None
    if key == "garbage_collection_threshold" and not 0 < number < 1:
        raise _WrongConfError("garbage_collect_threshold is invalid, set it in (0.0, 1.0)")
    if not 0 <= number <= 1:
        raise _WrongConfError("per_process_memory_fraction is invalid, set it in [0.0, 1.0]")
    return number


_READERS = {
    "expandable_segments": ("expandable_segments", _flag),
    "max_split_size_mb": ("max_split_size", _mebibytes),
    "max_non_split_rounding_mb": ("max_non_split_rounding", _mebibytes),
    "large_segment_size_mb": ("large_segment", _mebibytes),
    "garbage_collection_threshold": ("garbage_collection_threshold", _part),
    "per_process_memory_fraction": ("memory_fraction", _part),
}

"""Bytes, seconds and FLOPs: reading them from text, writing them for people."""

from __future__ import annotations

import re

from memback.errors import UsageError, shorten

__all__ = [
    "KIB",
    "MIB",
    "format_bytes",
    "format_bytes_short",
    "format_flops",
    "format_seconds",
    "parse_bytes",
    "parse_count",
]

KIB = 2**10
MIB = 2**20

_UNITS = {"b": 1} | {
    f"{prefix.lower()}{suffix}": base**power
    for power, prefix in enumerate("KMGTP", start=1)
    for suffix, base in (("ib", 1024), ("b", 1000))
}
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[a-z]*)", re.IGNORECASE | re.ASCII)
_MOST = 2**63 - 1
_DIGITS = 60
"""Digits before and after the point: more make no difference to a size within the limit."""


def parse_bytes(text: str) -> int:
    """Read a byte size: ``512MiB``, ``2GiB``, ``1.5GB``, ``1000000``.

    KiB, MiB, GiB, TiB and PiB are powers of 1024, KB, MB, GB, TB and PB powers of 1000, in upper or lower
    case; no unit, or B, means bytes. A fraction of a byte is dropped, so that a budget never grows.

    Raises:
        UsageError: not a number with a unit, or larger than 2**63 - 1 bytes.
    """
    shown = shorten(repr(text))
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"byte size {shown} is not a number with a unit; write it as 512MiB, 2GiB, 1.5GB or 1000000")
    unit = match["unit"].lower() or "b"
    if unit not in _UNITS:
        raise UsageError(
            f"byte size {shown} has the unknown unit {shorten(repr(match['unit']))};"
            " use B, KiB, MiB, GiB, TiB (powers of 1024) or KB, MB, GB, TB (powers of 1000)"
        )
    from fractions import Fraction  # with decimal behind it: too much to load for the few who parse sizes

    whole, _, decimals = match["number"].partition(".")
    whole = whole.lstrip("0")
    size = _MOST + 1
    if len(whole) <= _DIGITS:  # more than a number of thousands of digits is not read by Python either
        size = int(Fraction(f"0{whole}.{decimals[:_DIGITS] or 0}") * _UNITS[unit])
    if size > _MOST:
        raise UsageError(f"byte size {shown} is larger than any memory; at most {_MOST} bytes can be given")
    return size


def parse_count(text: str) -> int | None:
    """A whole number from 1 up, written in up to 18 ASCII digits; None where ``text`` is no such number."""
    if not (text.isascii() and text.isdecimal()) or len(text) > 18:
        return None
    return int(text) or None


def format_bytes(size: int) -> str:
    """Exact bytes, with MiB in brackets: ``34,273,280 B (32.69 MiB)``."""
    mebibytes = size / MIB
    places = 2 if size == 0 or abs(mebibytes) >= 0.1 else 4 if abs(mebibytes) >= 0.001 else 6
    return f"{size:,} B ({mebibytes:,.{places}f} MiB)"


def format_bytes_short(size: int) -> str:
    """Bytes in the unit that suits them, rounded: ``512 B``, ``1.50 KiB``, ``32.69 MiB``."""
    value = float(abs(size))
    sign = "-" if size < 0 else ""
    if value < KIB:
        return f"{size} B"
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= KIB
        if round(value, 2) < KIB:
            return f"{sign}{value:.2f} {unit}"
    return f"{sign}{value / KIB:,.2f} PiB"


def format_seconds(seconds: float) -> str:
    """A duration to three digits: ``1.25 s``, ``93.1 ms``, ``4.20 µs``; then ``2 min 05 s``."""
    if round(seconds) >= 120:
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
    return _scaled(seconds, (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9)))


def format_flops(flops: int) -> str:
    """Floating-point operations (a multiply-add is 2) to three digits: ``512 FLOP``, ``1.50 GFLOP``."""
    if abs(flops) < 1000:
        return f"{flops} FLOP"
    prefixes = (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
    return _scaled(flops, tuple((f"{prefix}FLOP", scale) for prefix, scale in prefixes))


def _scaled(value: float, units: tuple[tuple[str, float], ...]) -> str:
    """``value`` to three digits in the first of the descending units in which it rounds to 1 or more."""
    if value == 0:
        return f"0 {units[0][0]}"
    unit, scale = next(((unit, s) for unit, s in units if abs(value / s) >= 0.9995), units[-1])
    scaled = value / scale
    digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
    return f"{scaled:,.{digits}f} {unit}"

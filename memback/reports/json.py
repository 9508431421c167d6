"""JSON: the report itself, which :meth:`Report.from_json` reads back."""

from __future__ import annotations

import re

import msgspec

from memback.profiling.report import Report

__all__ = ["render"]

_LIST_OF_SCALARS = re.compile(rb"\[\n\s*+((?:(?![\]}\s])[^\n]*[^\n\[{]\n\s*+)+)\]")
_LINE_BREAK = re.compile(rb"\n\s*+")


def render(report: Report) -> bytes:
    """The report as indented JSON, keys in the schema's order, a list of plain values on one line."""
    text = msgspec.json.format(msgspec.json.encode(report), indent=2)
    return _LIST_OF_SCALARS.sub(_join, text) + b"\n"


def _join(match: re.Match[bytes]) -> bytes:
    return b"[" + _LINE_BREAK.sub(b" ", match[1].rstrip()) + b"]"

"""Formats of a report: each is a module with ``render(report)`` and one line here; csv.py is the shortest."""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path

from memback.errors import UsageError
from memback.files import check_target, write_atomically
from memback.profiling.report import Report

__all__ = ["WRITERS", "check", "renderer", "write"]

WRITERS = {
    ".json": "memback.reports.json:render",
    ".md": "memback.reports.markdown:render",
    ".csv": "memback.reports.csv:render",
    ".txt": "memback.reports.text:render",
    ".html": "memback.reports.html:render",
    ".svg": "memback.reports.svg:render",
    ".png": "memback.reports.png:render",
    ".trace.json": "memback.reports.trace:render",
    ".speedscope.json": "memback.reports.speedscope:render",
}
"""By suffix: the renderer of a file's content, imported when needed."""


def renderer(path: str | os.PathLike[str]) -> Callable[[Report], str | bytes]:
    """The renderer for this file; of two suffixes that fit, that of the longer one.

    Raises:
        UsageError: no format has this suffix.
    """
    name = Path(path).name.lower()
    suffix = max((suffix for suffix in WRITERS if name.endswith(suffix)), key=len, default=None)
    if suffix is None:
        raise UsageError(f"No report format for {path}; let its name end in one of {', '.join(WRITERS)}")
    render: Callable[[Report], str | bytes] = pkgutil.resolve_name(WRITERS[suffix])
    return render


def check(path: str | os.PathLike[str], force: bool = False) -> None:
    """Refuse a file that :func:`write` would refuse, before the work that makes the report.

    Raises:
        UsageError: no format has this suffix, what it needs is not installed, the file exists (without ``force``), or
            its folder does not.
    """
    module = sys.modules[renderer(path).__module__]
    require: Callable[[], None] = getattr(module, "require", lambda: None)
    require()
    check_target(path, force)


def write(report: Report, path: str | os.PathLike[str], force: bool = False) -> None:
    """Write a report to a file, whole or not at all.

    Raises:
        UsageError: as :func:`check`.
        MembackError: the system does not let it be written.
    """
    render = renderer(path)
    check_target(path, force)
    write_atomically(path, render(report), overwrite=force)

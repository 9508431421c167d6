"""What HTML pages are made of: one file each that works offline, with its style, its script, its data and Plotly in it.

Templates escape whatever comes from a report. Data and Plotly's code travel compressed, as text; a content security
policy forbids the page every request.
"""

from __future__ import annotations

import base64
import gzip
import re
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec

from memback import glossary
from memback.reports import tables
from memback.units import format_bytes, format_bytes_short

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

__all__ = ["environment", "parts"]

_MARKS = re.compile(r"`([^`]+)`|\*([^*]+)\*")


def parts(script: str, data: Any) -> dict[str, Any]:
    """What ``base.html.jinja`` needs: ``script`` is the page's own (after ``common.js``), ``data`` what it draws."""
    return {
        "style": _read("style.css"),
        "script": _read("common.js") + _read(script),
        "plotly": _plotly(),
        "data": _packed(msgspec.json.encode(data)),
        "glossary": glossary,
    }


@cache
def environment() -> Environment:
    """The templates, with the filters ``size``, ``short`` and ``marked``."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_read),
        autoescape=True,
        finalize=_finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(size=format_bytes, short=format_bytes_short, marked=_marked)
    environment.globals["cells"] = _cells
    return environment


def _cells(row: tables.Row, table: tables.Table) -> list[tables.Cell]:
    """A row's cells but for the bars."""
    return [cell for cell, column in zip(row.cells, table.columns, strict=True) if column.kind != "bar"]


def _finalize(value: Any) -> Any:
    """What the template is about to show: text that is not known to be HTML has its control characters escaped."""
    return tables.printable(value) if type(value) is str else value


def _marked(text: str) -> Markup:
    """A glossary text with its code and emphasis as HTML."""
    from markupsafe import Markup, escape

    html = _MARKS.sub(
        lambda match: f"<code>{match[1]}</code>" if match[1] else f"<em>{match[2]}</em>", str(escape(text))
    )
    return Markup(html)  # escaped above


def _read(name: str) -> str:
    return files("memback.reports").joinpath("page", name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    import plotly

    return _packed(files(plotly).joinpath("package_data", "plotly.min.js").read_bytes())


def _packed(content: bytes) -> str:
    """Compressed, as text that can stand anywhere in a page; the same content gives the same text."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()

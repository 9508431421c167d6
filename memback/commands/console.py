"""The console of all subcommands: text from any source is shown literally.

Nothing that is printed is read as Rich's markup, as an emoji's name or as a command to the terminal.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console as _Console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from memback.printable import printable, printable_lines

__all__ = ["Console", "make_console", "plain", "say"]


class Console(_Console):
    """A console that escapes what files, models and exceptions have in their names and messages."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable_lines(segment.text))


def make_console(quiet: bool = False, stderr: bool = False) -> Console:
    """A console on standard output, or standard error, that takes all text literally."""
    return Console(quiet=quiet, stderr=stderr, markup=False, emoji=False, highlight=False)


def plain(content: str, style: str = "") -> Text:
    """Text for part of a line or a cell of a table, control characters escaped."""
    return Text(printable(content), style)


def say(console: Console, *parts: str | Text, style: str = "", wrap: bool = True) -> None:
    """Print a sentence; where it is not to ``wrap``, on one line, so that paths and commands in it can be copied."""
    from memback.reports.text import to_ascii

    content = Text(style=style)
    for part in parts:
        content.append_text(plain(part) if isinstance(part, str) else part)
    if console.options.ascii_only:
        content = Text(to_ascii(content.plain), style)
    options: dict[str, Any] = {} if wrap else {"soft_wrap": True}
    console.print(content, **options)

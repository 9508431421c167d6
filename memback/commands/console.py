"""The console of all subcommands: whatever is printed, no control character of it reaches the terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console as _Console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from memback.printable import printable_lines

__all__ = ["Console"]


class Console(_Console):
    """A console that escapes what files, models and exceptions have in their names and messages."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable_lines(segment.text))

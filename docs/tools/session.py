"""Records the README's terminal session: ``python docs/tools/session.py`` runs its commands and writes the picture.

What stands in the picture is what the commands have printed, colours included; where lines are left out, dots say so.
The picture has a background of its own, so that it is legible on light and dark pages, and asks for nothing.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

IMAGE = Path(__file__).parents[1] / "images" / "session.svg"
WIDTH = 90
SESSION = (
    ("memback profile deep-mlp --dry", "^deep-mlp", "^inference"),
    ("memback plan deep-mlp --budget 32MiB", "^deep-mlp", "^Proof"),
    ("memback train deep-mlp --steps 3 --budget 32MiB", "^step", "saved activations .* MiB$"),
)
"""Commands, and which of the lines that each prints are shown: from the first to the last of these."""

_HUES = [
    (48, 58, 74),
    (255, 138, 128),
    (127, 214, 164),
    (240, 190, 110),
    (110, 152, 255),
    (242, 130, 190),
    (69, 208, 188),
]
THEME = TerminalTheme((22, 32, 46), (226, 232, 243), [*_HUES, (226, 232, 243)], [*_HUES, (255, 255, 255)])

FORMAT = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img">
<title>memback in a terminal: a profile, a plan within a budget, and training under it</title>
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; white-space: pre; }}
.{unique_id}-title {{ font: bold 18px system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
"""Rich's own, without the fonts that it would ask for."""


def printed(command: str) -> list[Text]:
    """The lines that a command prints into a terminal with colours."""
    colour = {"FORCE_COLOR": "1"} if " train " not in command else {"NO_COLOR": "1"}  # which is live in a terminal
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        env={**os.environ, **colour, "COLUMNS": str(WIDTH)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=True,
    )
    return [Text.from_ansi(line) for line in done.stdout.splitlines()]


def excerpt(lines: list[Text], first: str, last: str) -> list[Text]:
    """From the first line that matches ``first`` to the next that matches ``last``, with dots for what follows."""
    start = next(i for i, line in enumerate(lines) if re.search(first, line.plain))
    stop = next(i for i, line in enumerate(lines[start:], start) if re.search(last, line.plain)) + 1
    while stop < len(lines) and re.match(r"\S", lines[stop].plain) and not lines[stop - 1].plain.endswith((".", "×")):
        stop += 1  # the rest of a sentence
    return [*lines[start:stop], *([Text("…", "dim")] if stop < len(lines) else [])]


def main() -> None:
    """Run the session and write the picture."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    for number, (command, first, last) in enumerate(SESSION):
        console.print(*([Text()] if number else []), Text(f"$ {command}", "bold green"), sep="\n")
        for line in excerpt(printed(command), first, last):
            console.print(line, highlight=False)
    IMAGE.parent.mkdir(exist_ok=True)
    console.save_svg(str(IMAGE), title="memback", theme=THEME, code_format=FORMAT, unique_id="session")
    print(f"Wrote {IMAGE}")


if __name__ == "__main__":
    main()

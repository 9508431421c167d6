"""Options that subcommands share: where output goes."""

from __future__ import annotations

import functools
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import rich_click as click

from memback.commands import traceback_option
from memback.commands.console import Console, make_console, say
from memback.errors import MembackError
from memback.files import check_target, write_atomically

if TYPE_CHECKING:
    from rich.text import Text

    from memback.profiling.report import Report

__all__ = ["Output", "output_options", "report_options", "show_report", "shown", "shown_report_options"]

_CONTROL = re.compile("[\x7f-\x9f]")
"""Control characters that JSON leaves as they are."""


@dataclass(frozen=True)
class Output:
    """Where a subcommand's output goes."""

    json: str | None
    quiet: bool
    force: bool

    @property
    def to_stdout(self) -> bool:
        """Whether the JSON goes to standard output, which then gets nothing else."""
        return self.json == "-"

    @functools.cached_property
    def console(self) -> Console:
        """For tables and text; silent where ``--quiet`` or ``--json -`` ask for it."""
        return make_console(quiet=self.quiet or self.to_stdout)

    def say(self, *parts: str | Text, style: str = "", wrap: bool = True) -> None:
        """Print a sentence, as :func:`memback.commands.console.say`."""
        say(self.console, *parts, style=style, wrap=wrap)

    def say_written(self, file: str, done: str = "Wrote") -> None:
        """Say that a file has been written."""
        self.say(f"{done} {file}", wrap=False)

    def check(self, *files: str) -> None:
        """Refuse files that could not be written, before the work begins.

        Raises:
            UsageError: as :func:`memback.files.check_target`.
        """
        for file in files:
            check_target(file, self.force)

    def write(self, file: str, content: bytes | str) -> None:
        """Write a file, whole or not at all.

        Raises:
            MembackError: as :func:`memback.files.write_atomically`.
        """
        write_atomically(file, content, self.force)

    def write_json(self, data: Any) -> None:
        """Write ``data`` to where ``--json`` says, if it does.

        Raises:
            MembackError: as :func:`memback.files.write_atomically`.
        """
        if self.json is None:
            return
        text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        text = _CONTROL.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
        if self.to_stdout:
            click.echo(text, nl=False)
        else:
            self.write(self.json, text)


@contextmanager
def shown(category: type[Warning], output: Output, label: str = "Warning") -> Iterator[None]:
    """Show warnings of a category in the block as lines on standard error, in place of Python's own form."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", category)
        others = warnings.showwarning

        def show(message: Any, kind: Any, *rest: Any, **named: Any) -> None:
            if issubclass(kind, category):
                say(make_console(quiet=output.quiet, stderr=True), f"{label}: {message}")
            else:
                others(message, kind, *rest, **named)

        warnings.showwarning = cast(Any, show)
        yield


def output_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a subcommand ``--json``, ``--quiet`` and ``--force``, which it gets as ``output``."""

    @click.option("--json", "json_file", metavar="FILE", help="Write the result as JSON; - is standard output.")
    @click.option("--quiet", is_flag=True, help="Print nothing but errors.")
    @click.option("--force", is_flag=True, help="Overwrite files that exist.")
    @traceback_option
    @functools.wraps(function)
    def wrapper(*args: Any, json_file: str | None, quiet: bool, force: bool, **kwargs: Any) -> Any:
        output = Output(json_file, quiet, force)
        if json_file is not None and not output.to_stdout:
            output.check(json_file)
        return function(*args, output=output, **kwargs)

    return wrapper


def shown_report_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a subcommand ``--layers`` and ``-o`` (as ``files``) besides the options of :func:`output_options`."""
    help_text = "Write the report in the format of FILE's suffix."
    function = output_options(function)
    function = click.option("-o", "--output", "files", multiple=True, metavar="FILE", help=help_text)(function)
    return click.option("--layers", is_flag=True, help="Show the per-layer table of every mode, no rows folded.")(
        function
    )


def report_options(function: Callable[..., Report | None]) -> Callable[..., Any]:
    """Give a subcommand that returns a report ``--layers``, ``-o`` and the options of :func:`output_options`.

    The report is shown, and written to where these say. A command that returns none has shown something else, or leaves
    that to another process. If the report lacks ranks, the command fails afterwards.
    """

    @shown_report_options
    @functools.wraps(function)
    def wrapper(*args: Any, layers: bool, files: tuple[str, ...], output: Output, **kwargs: Any) -> None:
        from memback import reports
        from memback.reports import tables

        for file in files:
            reports.check(file, output.force)
        report = function(*args, output=output, **kwargs)
        if report is None:
            return
        show_report(report, True, layers, files, output)
        if report.distributed is not None and (warnings := tables.warnings(report)):
            raise MembackError("\n  ".join(["there are not all reports of all ranks", *warnings]))

    return wrapper


def show_report(report: Report, whole: bool, layers: bool, files: Iterable[str], output: Output) -> None:
    """Print a report, if it is to be shown as a ``whole``, and its layers; and write it."""
    from memback.reports import text

    if whole:
        output.console.print(report)
    for run in report.runs if layers else ():
        output.console.print(text.layers(run, fold=False))
    for file in files:
        report.save(file, output.force)
        output.say_written(file)
    output.write_json(report.to_dict())

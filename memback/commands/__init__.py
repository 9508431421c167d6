"""The command line: one file a subcommand, imported only when it runs.

To add a subcommand, write ``memback/commands/NAME.py`` with a function ``command`` (the shortest is
``list.py``) and name it in the registry below. Its docstring is its help.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import rich_click as click

from memback._version import __version__
from memback.errors import MembackError, UsageError, shorten

__all__ = ["main", "traceback_option"]

TRACEBACK = "MEMBACK_TRACEBACK"
"""The environment variable that stands for ``--traceback`` where it is not empty."""

REGISTRY = {
    "profile": "One training step in every mode: what each keeps in memory, layer by layer.",
    "train": "Train for real, with loss, accuracy, throughput and live memory.",
    "plan": "The cheapest way to fit a training step into a budget of memory: what to keep, what to recompute.",
    "fit": "What to change so that a training step fits into a budget of memory, the fastest first.",
    "sweep": "Many variants at once: a grid over any keys, every point predicted, on all cores or on a cluster.",
    "notes": "The lecture notes on a real network: every step with its bytes, every claim checked.",
    "report": "A stored report, shown or written in any other format.",
    "torch": "The same report for a PyTorch module: what it keeps, layer by layer, measured or predicted.",
    "diff": "What changed between two reports, layer by layer; with a limit, a guard for CI.",
    "list": "What there is to run: shipped profiles, models, data, ops and policies.",
}
"""Every subcommand, which is the name of its module too, and its line in the help."""


_LONGEST = 10_000
"""Characters of a message."""


def traceback_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--traceback``, which :func:`main` looks for itself because what fails may be any part of it."""
    text = f"Show where an error arose, for a bug report; {TRACEBACK}=1 does the same."
    option: Callable[..., Any] = click.option("--traceback", is_flag=True, expose_value=False, help=text)(function)
    return option


class _Lazy(click.RichCommand):
    """Stands for a subcommand until it is run."""

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **extra: Any) -> click.Context:
        module = import_module(f"memback.commands.{self.name}")
        command: click.RichCommand = module.command
        return command.make_context(info_name, args, *rest, **extra)


@click.group(
    commands=[_Lazy(name=name, help=line) for name, line in REGISTRY.items()],
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Try: memback list",
)
@click.version_option(__version__, prog_name="memback")
@traceback_option
def group() -> None:
    """Know every byte that backprop keeps, who keeps it, until when, and what not keeping it would cost."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and give its exit code: 0 done, 1 failed, 2 wrong request, 130 interrupted."""
    if _reopen_streams():
        _complain("Standard output is closed: send it to a file, or to /dev/null if nothing is to be shown")
        return 1
    if arguments is None:
        arguments = sys.argv[1:]
    traced = "--traceback" in arguments or bool(os.environ.get(TRACEBACK))
    try:
        result = group.main(arguments or ["--help"], prog_name="memback", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        _complain(error.format_message(), context=getattr(error, "ctx", None))
        return error.exit_code
    except MembackError as error:
        _complain(str(error), error if traced else None)
        return 2 if isinstance(error, UsageError) else 1
    except MemoryError as error:
        _complain(f"Out of memory ({str(error) or 'no memory left'}); use a smaller batch, or a dry run")
        return 1
    except (click.Abort, KeyboardInterrupt):
        _complain("Interrupted")
        return 130
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            _complain(f"{error.filename or 'Standard output'}: {error.strerror or error}", error if traced else None)
        # What is left in the buffer can't be written; without this the interpreter would retry at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        _complain(_bug(error), error if traced else None)
        return 1
    return result if isinstance(result, int) else 0


def _bug(error: Exception) -> str:
    """The message for an unexpected exception."""
    import traceback

    what = " ".join("".join(traceback.format_exception_only(error)).split())[:300]
    frames = traceback.extract_tb(error.__traceback__)
    mine = os.path.join(os.path.dirname(os.path.dirname(__file__)), "")
    last = next((frame for frame in reversed(frames) if frame.filename.startswith(mine)), frames[-1])
    return (
        f"This is a bug in memback {__version__}: {what} (in {last.filename.removeprefix(mine)}, line {last.lineno})."
        " Please report it where you got memback, with the command and the traceback that it prints with"
        " --traceback"
    )


def _reopen_streams() -> bool:
    """Whether standard output was closed. Closed streams lead nowhere then, not into the next file that is opened."""
    closed = sys.stdout is None
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - it stays open
    return closed


def _complain(message: str, shown: BaseException | None = None, context: click.Context | None = None) -> None:
    """Print the error, after its traceback if that is wanted."""
    import traceback

    from memback.commands.console import make_console
    from memback.printable import printable_lines

    console = make_console(stderr=True)
    if shown is not None:
        console.print("".join(traceback.format_exception(shown)), end="", soft_wrap=True)
    text = printable_lines(shorten(message, _LONGEST))
    console.print(f"Error: {text}", style="red", soft_wrap=True)
    if context is not None:
        console.print(f"Try: {context.command_path} --help", markup=False)

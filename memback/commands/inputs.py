"""What subcommands that run a profile have in common: which profile, with which changes, and a progress bar."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import rich_click as click

from memback.commands.options import Output
from memback.errors import UsageError

__all__ = ["profile_argument", "progress_bar"]


def profile_argument(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a subcommand PROFILE, ``--batch``, ``--dtype`` and ``--set``: it gets the definition as ``profile``."""

    @click.argument("profile", metavar="PROFILE")
    @click.option("--batch", metavar="N", help="Samples of a batch (data.batch).")
    @click.option("--dtype", metavar="DTYPE", help="float32, float64, float16 or bfloat16.")
    @click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a key, as in model.width=128.")
    @functools.wraps(function)
    def wrapper(
        *args: Any, profile: str, batch: str | None, dtype: str | None, settings: tuple[str, ...], **kwargs: Any
    ) -> Any:
        from memback.profiling import definition

        overrides = dict(_split(setting) for setting in settings)
        if batch is not None:
            overrides["data.batch"] = batch
        if dtype is not None:
            overrides["dtype"] = dtype
        loaded = definition.load(profile)
        return function(*args, profile=loaded.with_overrides(overrides) if overrides else loaded, **kwargs)

    return wrapper


def _split(setting: str) -> tuple[str, str]:
    key, equals, value = setting.partition("=")
    if not equals or not key:
        raise UsageError(f"--set {setting!r} is no KEY=VALUE; write it as --set model.width=128")
    return key.strip(), value.strip()


@contextmanager
def progress_bar(output: Output) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for work that takes longer than a second; the block calls it with (what is done now, done, in all)."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, quiet=output.quiet)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal or output.quiet)
    task = bar.add_task("", total=None)
    began = time.monotonic()

    def tell(what: str, done: int, total: int) -> None:
        bar.update(task, description=what, completed=done, total=total)
        if time.monotonic() - began > 1 and not bar.live.is_started:
            bar.start()

    try:
        yield tell
    finally:
        bar.stop()

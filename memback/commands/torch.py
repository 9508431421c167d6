"""``memback torch``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import rich_click as click

from memback.commands.inputs import progress_bar
from memback.commands.options import Output, report_options
from memback.errors import MembackError

if TYPE_CHECKING:
    from memback.profiling.report import Report

__all__ = ["command"]


@click.command("torch", epilog="Example: memback torch torch.nn:Flatten --input 8x3x224x224 --mode inference --dry")
@click.argument("factory", metavar="MODULE:FACTORY")
@click.option(
    "--input", "inputs", multiple=True, metavar="SHAPE", help="[NAME=]SHAPE[:DTYPE], as in 8x3x224x224 or 8x1024:int64."
)
@click.option("--loss", metavar="MODULE:FUNCTION", help="Gives the loss from the output. Default: the output's sum.")
@click.option("--mode", "modes", multiple=True, metavar="MODE", help="retain-all, full or inference. Default: all.")
@click.option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, ... Default: where the factory makes the module.")
@click.option("--autocast", metavar="DTYPE", help="Automatic mixed precision in the forward pass: bfloat16 or float16.")
@click.option("--eval", "evaluate", is_flag=True, help="Call module.eval() first.")
@click.option("--dry", is_flag=True, help="Predict only: nothing is allocated or run.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Timed runs of each mode.")
@report_options
def command(
    factory: str,
    inputs: tuple[str, ...],
    loss: str | None,
    modes: tuple[str, ...],
    device: str | None,
    autocast: str | None,
    evaluate: bool,
    dry: bool,
    rounds: int,
    output: Output,
) -> Report:
    """Run one training step of a PyTorch module in every mode, and show what each one keeps in memory.

    MODULE:FACTORY is called without arguments and gives a torch.nn.Module, or a pair of one and its inputs: a tensor, a
    tuple of arguments, or a dict of arguments by name. Otherwise give --input once for each argument: floating-point
    inputs are random, all others zeros. Nothing of the module is changed; checkpoints that it has are seen at work. A
    mode whose predicted peak does not fit into the free memory is refused before anything is run, unless --force.
    """
    from memback.bridges import torch as bridge
    from memback.bridges.torch.guard import check_fits
    from memback.bridges.torch.inputs import dtype_named, parse_inputs
    from memback.bridges.torch.loading import device_named, find, load
    from memback.bridges.torch.paths import described
    from memback.bridges.torch.profile import MODES
    from memback.bridges.torch.step import Step, sum_of_outputs
    from memback.profiling.run import modes_of

    given = parse_inputs(inputs)
    chosen = modes_of(modes or MODES, None)
    kind = None if autocast is None else dtype_named(autocast)
    of_output = sum_of_outputs if loss is None else find(loss)
    loaded = load(factory, given, None if device is None else device_named(device), dry)
    if evaluate:
        loaded.module.eval()
    options: dict[str, Any] = {"kwargs": loaded.kwargs, "loss": of_output, "autocast": kind}
    about = {"name": factory, "data": {"inputs": list(map(str, given))}}
    with progress_bar(output) as progress, _notes(output):
        try:
            if not (dry or output.force):
                check_fits(Step(loaded.module, loaded.args, loaded.kwargs, of_output, kind), chosen)
            return bridge.profile(
                loaded.module,
                *loaded.args,
                **options,
                modes=[mode.name for mode in chosen],
                dry=dry,
                rounds=rounds,
                about=about,
                progress=progress,
            )
        except MembackError:
            raise
        except Exception as error:
            raise MembackError(f"{factory} can't be run: {described(error)}") from error


@contextmanager
def _notes(output: Output) -> Iterator[None]:
    """Show warnings of dry runs in the block as notes, on standard error."""
    from rich.console import Console

    from memback.bridges.torch import DryRunWarning

    with warnings.catch_warnings():
        warnings.simplefilter("always", DryRunWarning)
        others = warnings.showwarning

        def show(message: Any, category: Any, *rest: Any, **named: Any) -> None:
            if issubclass(category, DryRunWarning):
                Console(stderr=True, quiet=output.quiet, highlight=False).print(f"Note: {message}", markup=False)
            else:
                others(message, category, *rest, **named)

        warnings.showwarning = show
        yield

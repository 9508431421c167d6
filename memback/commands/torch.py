"""``memback torch``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import rich_click as click

from memback.commands import torch_largest
from memback.commands.inputs import progress_bar
from memback.commands.options import Output, report_options, shown
from memback.commands.torch_plans import Again, again_options
from memback.errors import MembackError, UsageError

if TYPE_CHECKING:
    from memback.bridges.torch.loading import Loaded
    from memback.bridges.torch.recording.inputs import Input
    from memback.bridges.torch.source import Source
    from memback.profiling.report import Report

__all__ = ["command"]


@click.command("torch", epilog="Example: memback torch torch.nn:Transformer --input 32x8x512 --input 32x8x512 --dry")
@click.argument("factory", metavar="MODULE:FACTORY|hf:CONFIG")
@click.option(
    "--arg",
    "arguments",
    multiple=True,
    metavar="NAME=VALUE",
    help="An argument of the factory, or a setting of the config, as in n_layer=4.",
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="SHAPE",
    help="[NAME=]SHAPE[:DTYPE][=VALUE]: 8x3x224x224, 8x1024:int64, mask=8x1024:int64=1.",
)
@click.option("--loss", metavar="MODULE:FUNCTION", help="Computes the loss from the output. Default: the output's sum.")
@click.option("--mode", "modes", multiple=True, metavar="MODE", help="retain-all, full, checkpoint or inference.")
@click.option(
    "--device",
    metavar="DEVICE",
    help="cpu, cuda, cuda:1, ... Default: where the factory makes the module. With --dry also a card that is not here:"
    " cuda:h100, cuda:a100-80gb, cuda:t4, ...",
)
@click.option(
    "--optimizer",
    metavar="NAME",
    help="With --dry: whose update ends the training step: adamw, sgd, ... or MODULE:FUNCTION of the parameters.",
)
@click.option(
    "--accumulate",
    type=click.IntRange(1),
    default=1,
    metavar="N",
    help="Forward and backward N times before the update.",
)
@click.option(
    "--clip",
    type=click.FloatRange(0, min_open=True),
    metavar="NORM",
    help="Clip gradients to this norm before the update.",
)
@click.option(
    "--amp",
    "--autocast",
    "autocast",
    metavar="DTYPE",
    help="Automatic mixed precision in the forward pass: bf16 or fp16.",
)
@click.option("--dtype", metavar="DTYPE", help="Of parameters and floating-point inputs: fp32, bf16 or fp16.")
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Samples of hf:CONFIG's inputs, or of --input.")
@click.option("--sequence", type=click.IntRange(1), metavar="N", help="Tokens of each sample of hf:CONFIG's inputs.")
@click.option(
    "--lora",
    metavar="SETTINGS",
    help="Train adapters of peft's in the place of the parameters: r=16,target=q_proj,v_proj.",
)
@click.option(
    "--find",
    type=click.Choice(["batch", "sequence"]),
    help="With a card: find the largest whose training step fits on it.",
)
@click.option("--eval", "evaluate", is_flag=True, help="Call module.eval() first.")
@again_options
@click.option("--distributed", metavar="STRATEGY", help="Train it on several ranks: ddp or fsdp2.")
@click.option("--ranks", type=click.IntRange(1), metavar="N", help="With --distributed and --dry: the number of ranks.")
@click.option(
    "--shard", multiple=True, metavar="PATTERN", help="With fsdp2: submodules to gather separately, as in blocks.*"
)
@click.option("--dry", is_flag=True, help="Predict only: nothing is allocated or run.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Timed runs of each mode.")
@report_options
def command(
    factory: str,
    arguments: tuple[str, ...],
    inputs: tuple[str, ...],
    loss: str | None,
    modes: tuple[str, ...],
    device: str | None,
    optimizer: str | None,
    accumulate: int,
    clip: float | None,
    autocast: str | None,
    dtype: str | None,
    batch: int | None,
    sequence: int | None,
    lora: str | None,
    find: str | None,
    evaluate: bool,
    again: Again,
    distributed: str | None,
    ranks: int | None,
    shard: tuple[str, ...],
    dry: bool,
    rounds: int,
    output: Output,
) -> Report | None:
    """Run one training step of a PyTorch module in every mode, and show what each one keeps in memory.

    MODULE:FACTORY is called with the arguments of --arg and returns a torch.nn.Module; or (module, inputs), with a
    tensor, a tuple of arguments or a dict of arguments by name; or (module, args, kwargs). Otherwise give --input once
    for each argument: floating-point inputs are random, all others zeros, unless a value is given. The module is not
    changed; its own checkpoints are taken into account. A mode whose predicted peak does not fit into the free memory
    is refused before anything is run, unless --force.

    hf:CONFIG is a model of Hugging Face's transformers: a config.json, its folder, or a name in the local cache;
    nothing is downloaded. Its inputs and labels are made as the config says, --batch of them with --sequence tokens
    each, and --input NAME=SHAPE takes the place of one.

    Mode checkpoint recomputes in backward: by --budget, the cheapest plan that fits, which keeps or recomputes each
    tensor that autograd saves; by a saved plan; or by --policy (sqrt, every:4, all), whole blocks: the members of the
    module's Sequential and ModuleList containers, or --blocks.

    With --dry and --device cuda:CARD the step is predicted as CUDA would run it on that card, and with --optimizer what
    whole training steps take there, by PyTorch's allocator, and whether that fits. --find batch and --find sequence
    look for the largest that does.

    With --distributed, --input is one rank's share of the batch. --dry --ranks N predicts for N ranks in this process;
    under torchrun each rank writes its own report next to the first -o FILE, and rank 0 merges them, the worst first.
    """
    from memback.bridges import torch as bridge
    from memback.bridges.torch.device.names import card_named, optimizer_named
    from memback.bridges.torch.hugging_face.adapters import Lora
    from memback.bridges.torch.loading import device_named
    from memback.bridges.torch.loading import find as referred
    from memback.bridges.torch.profile import MODES
    from memback.bridges.torch.recording.arguments import parse_arguments
    from memback.bridges.torch.recording.guard import check_fits
    from memback.bridges.torch.recording.inputs import dtype_named, parse_inputs
    from memback.bridges.torch.recording.step import Step, sum_of_outputs
    from memback.bridges.torch.source import Source
    from memback.profiling.run import modes_of

    again.check(output, dry)
    given, named = parse_inputs(inputs), parse_arguments(arguments)
    modes_of(modes, None)
    kind = None if autocast is None else dtype_named(autocast)
    of_output = sum_of_outputs if loss is None else referred(loss)
    card = None if device is None else card_named(device, dry)
    where = None if device is None or card is not None else device_named(device)
    update = None if optimizer is None else optimizer_named(optimizer)
    training: dict[str, Any] = {"optimizer": update, "accumulate": accumulate, "clip": clip}
    if not dry and training != {"optimizer": None, "accumulate": 1, "clip": None}:
        raise UsageError("--optimizer, --accumulate and --clip belong to a dry run: add --dry")
    if find is not None and card is None:
        raise UsageError(f"--find {find} is for a card: give --dry and --device cuda:h100, ...")
    if card is not None and distributed is not None:
        raise UsageError("a card is predicted for one process: leave out --device, or --distributed")
    if card is not None and again.over_blocks:
        raise UsageError("on a card plans are over calls: leave out --policy, --blocks, --time and --how checkpoint")
    sizes = {name: n for name, n in (("batch", batch), ("sequence", sequence)) if n is not None}
    source = Source(
        factory,
        given,
        named,
        where,
        dry,
        sizes,
        None if dtype is None else dtype_named(dtype),
        None if lora is None else Lora.parse(lora),
        evaluate,
    )
    options: dict[str, Any] = {"loss": of_output, "autocast": kind}
    if find is not None and card is not None:
        with _notes(output), _explained(factory, given):
            torch_largest.find(source, find, card, update, options, output)
            return None
    options["about"] = _about(source, loss)
    if distributed is not None:
        if again.asked:
            raise UsageError(
                "plans are made for one process: leave out --distributed, or --budget, --policy and --plan"
            )
        options["modes"] = [mode.name for mode in modes_of(modes or MODES, None)]
        with _explained(factory, given):
            on_ranks = {**options, **(training if dry else {}), "rounds": rounds}
            return _on_ranks(source.load, distributed, ranks, shard, dry, output, on_ranks)
    if ranks is not None or shard:
        raise UsageError("--ranks and --shard belong to --distributed ddp or fsdp2")
    loaded = source.load()
    options["about"]["data"] |= loaded.data
    if source.lora is not None:
        base = cast(Any, loaded.module).get_base_model()
        options["about"]["model"]["name"] = f"{type(base).__name__} with LoRA"
    step = Step(loaded.module, loaded.args, loaded.kwargs, of_output, kind)
    with _notes(output), _explained(factory, given):
        plan = again.plan(step, output, card)
        if again.instead:
            return None
        chosen = modes_of(modes or MODES, cast(Any, plan))
        options["modes"] = [mode.name for mode in chosen]
        with progress_bar(output) as progress:
            if not (dry or output.force):
                check_fits(step, chosen)
            return bridge.profile(
                loaded.module,
                *loaded.args,
                **options,
                kwargs=loaded.kwargs,
                dry=dry,
                rounds=rounds,
                policy=plan,
                progress=progress,
                device=card,
                **training,
            )


def _about(source: Source, loss: str | None) -> dict[str, Any]:
    """What a report says of what was asked for."""
    model: dict[str, Any] = {"arguments": dict(source.arguments)} if source.arguments else {}
    if source.lora is not None:
        model["lora"] = str(source.lora)
    data = {**source.sizes, "inputs": list(map(str, source.inputs)), **({} if loss is None else {"loss": loss})}
    return {"name": source.reference, "model": model, "data": data}


def _on_ranks(
    loading: Callable[[], Loaded],
    strategy: str,
    ranks: int | None,
    shard: tuple[str, ...],
    dry: bool,
    output: Output,
    options: dict[str, Any],
) -> Report | None:
    from memback.bridges.torch.ranks.predict import place, predict_loaded, run_rank

    at = place()
    if dry:
        if ranks is None:
            raise UsageError("--distributed with --dry needs --ranks N, the number of ranks")
        if at is not None:
            raise UsageError("--dry predicts for all ranks in one process: start it without torchrun")
        with progress_bar(output) as progress, _notes(output):
            return predict_loaded(loading, strategy, ranks, shard, progress=progress, **options)
    if ranks is not None:
        raise UsageError("--ranks belongs to --dry: a real run has as many ranks as torchrun starts processes")
    files = click.get_current_context().params["files"]  # type: ignore[union-attr]
    if not files:
        raise UsageError("-o FILE is needed: each rank writes its own report next to it")
    first = at is None or at[0] == 0
    with progress_bar(output if first else replace(output, quiet=True)) as progress, _notes(output):
        return run_rank(loading, strategy, files[0], output.force, shard, progress=progress, **options)


@contextmanager
def _explained(factory: str, inputs: Sequence[Input]) -> Iterator[None]:
    from memback.bridges.torch.recording.inputs import dtype_remedy
    from memback.bridges.torch.recording.paths import described
    from memback.bridges.torch.recording.step import DryRunError

    try:
        yield
    except DryRunError as error:
        raise DryRunError(f"{error}{dtype_remedy(str(error), inputs)}") from error
    except MembackError:
        raise
    except Exception as error:
        said = f"{factory} can't be run: {described(error)}"
        raise MembackError(f"{said}{dtype_remedy(said, inputs)}") from error


def _notes(output: Output) -> AbstractContextManager[None]:
    """Show warnings of dry runs in the block as notes, on standard error."""
    from memback.bridges.torch import DryRunWarning

    return shown(DryRunWarning, output, "Note")

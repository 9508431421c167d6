"""A step on several ranks: predicted for all of them in one process, or run by as many processes under torchrun.

Every rank's report is written to a file of its own as soon as it is there: first its prediction, then, in its place,
what was measured. So a rank that dies leaves what it had, and takes nothing from the others.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from msgspec.structs import replace

from memback.bridges.torch.loading import Loaded, without_memory
from memback.bridges.torch.profile import MODES, profile
from memback.bridges.torch.recording.calls import check_all_visible
from memback.bridges.torch.recording.fake import DryRunError
from memback.bridges.torch.recording.guard import check_fits
from memback.bridges.torch.recording.paths import described
from memback.bridges.torch.recording.sharding import wrap
from memback.bridges.torch.recording.step import Loss, Step, sum_of_outputs
from memback.bridges.torch.recording.training import Optimizer
from memback.errors import MembackError, UsageError
from memback.files import check_target
from memback.profiling.ranks import merge, rank_file
from memback.profiling.report import Report
from memback.profiling.run import modes_of

__all__ = ["place", "predict", "predict_loaded", "run_rank"]

_PENDING = "it was not heard of after its dry run"
_LOOK_EVERY = 0.05
_AFTER_FAILURE = 5.0
"""Seconds that the others have to write what they have, once a rank has failed."""


# -- all ranks in one process, dry


def predict(
    make: Callable[[], torch.nn.Module],
    *inputs: Any,
    strategy: str,
    ranks: int,
    shard: Sequence[str] = (),
    options: dict[str, Any] | None = None,
    loss: Loss = sum_of_outputs,
    kwargs: Mapping[str, Any] | None = None,
    modes: Sequence[str] = MODES,
    autocast: torch.dtype | None = None,
    about: Mapping[str, Any] | None = None,
    optimizer: Optimizer = None,
    accumulate: int = 1,
    clip: float | None = None,
) -> Report:
    """Predict a training step on several ranks, in this process alone: nothing is allocated, nobody is asked.

    Args:
        make: gives the module, as it is before it is put under the strategy; called once for each rank.
        inputs: what each rank's module is called with: a rank's share of the batch.
        strategy: ``ddp`` or ``fsdp2``.
        ranks: how many there are.
        shard: for ``fsdp2``, patterns of the paths of submodules that are gathered each by itself; see
            :func:`~memback.bridges.torch.recording.sharding.wrap`.
        options: for ``DistributedDataParallel`` or ``fully_shard``.
        loss: gives the loss, a tensor of one number, from what the module gives; by default the sum of its numbers.
        kwargs: what each rank's module is called with by name.
        modes: as in :func:`~memback.bridges.torch.profile`.
        autocast: as there.
        about: as there.
        optimizer: as there, but a class or a function: each rank makes one of its own parameters or shards.
        accumulate: as there.
        clip: as there.

    Returns:
        the merged :class:`~memback.profiling.report.Report`: the rank that needs the most memory leads.

    Raises:
        UsageError: as :func:`~memback.bridges.torch.recording.sharding.wrap`, or this process is one of several ranks
        already.
        MembackError: the step can't be run dry.
    """

    def load() -> Loaded:
        with without_memory():
            return Loaded(make(), inputs, kwargs or {})

    update = {"optimizer": optimizer, "accumulate": accumulate, "clip": clip}
    named = {"loss": loss, "modes": modes, "autocast": autocast, "about": about, **update}
    return predict_loaded(load, strategy, ranks, shard, options, **named)


def predict_loaded(
    load: Callable[[], Loaded],
    strategy: str,
    ranks: int,
    shard: Sequence[str] = (),
    options: dict[str, Any] | None = None,
    **named: Any,
) -> Report:
    """:func:`predict`, of what ``load`` gives for each rank: a module without memory, and its inputs."""
    if dist.is_available() and dist.is_initialized():
        raise UsageError("this process is one of several ranks already: predict others in a process of its own")
    reports = []
    for rank in range(ranks):
        with _fake_group(rank, ranks):
            loaded = load()
            check_all_visible(loaded.module)
            module = wrap(loaded.module, strategy, shard, **(options or {}))
            reports.append(profile(module, *loaded.args, kwargs=loaded.kwargs, dry=True, **named))
    return merge(reports)


@contextmanager
def _fake_group(rank: int, ranks: int) -> Iterator[None]:
    """In the block this process is one of several ranks, of which there is no other."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=rank, world_size=ranks, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


# -- one rank of a real run


def place() -> tuple[int, int] | None:
    """This process's rank and how many there are, as torchrun tells it; None where it does not."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def run_rank(
    load: Callable[[], Loaded],
    strategy: str,
    file: str,
    force: bool = False,
    shard: Sequence[str] = (),
    backend: str | None = None,
    wait: float = 60.0,
    **named: Any,
) -> Report | None:
    """Run this process's part of a step on several ranks, under torchrun.

    Args:
        load: gives the module, as it is before it is put under the strategy, and its inputs.
        strategy: ``ddp`` or ``fsdp2``.
        file: where the merged report will be; this rank's is written beside it (``out.rank0.json``).
        force: whether a file that is there is overwritten, and what is predicted not to fit is run all the same.
        shard: as in :func:`predict`.
        backend: of the process group; by default Gloo, and NCCL where there is CUDA, of which each rank takes a device.
        wait: for how many seconds rank 0, when it is done, waits for the others' reports.
        named: for :func:`~memback.bridges.torch.profile`.

    Returns:
        on rank 0 the merged report of the ranks that left one, on the others None.

    Raises:
        UsageError: this is not under torchrun, or as :func:`~memback.bridges.torch.recording.sharding.wrap`.
        MembackError: this rank failed. Rank 0 raises it only if there is no report at all.
    """
    at = place()
    if at is None:
        raise UsageError(
            "there is one process and no torchrun: start it as torchrun --nproc-per-node 2 -m memback torch …, or say"
            " --dry --ranks 2 for a prediction"
        )
    rank, ranks = at
    own = rank_file(file, rank)
    check_target(own, force)
    Path(own).unlink(missing_ok=True)
    failure = None
    with _terminated():
        try:
            _run(load, strategy, own, force, shard, backend, named)
        except UsageError:
            raise
        except Exception as error:
            failure = error
    with suppress(ValueError):  # in no thread but the main one
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is left to do is short, and is for the others, too
    if rank:
        if failure is not None:
            raise _told(failure, rank)
        return None
    found = _gather([rank_file(file, number) for number in range(ranks)], wait if failure is None else _AFTER_FAILURE)
    if not found:
        assert failure is not None
        raise _told(failure, rank)
    return merge(found)


def _run(
    load: Callable[[], Loaded],
    strategy: str,
    own: str,
    force: bool,
    shard: Sequence[str],
    backend: str | None,
    named: dict[str, Any],
) -> None:
    """Leave this rank's report: predicted, measured, or with the reason why it went no further."""
    report: Report | None = None
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group(backend or ("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"))
    try:
        loaded = load()
        module = wrap(loaded.module, strategy, shard)
        with suppress(DryRunError):  # then there is no prediction to leave
            report = profile(module, *loaded.args, kwargs=loaded.kwargs, dry=True, **named)
            _leave(report, own, _PENDING)
        step = Step(module, loaded.args, loaded.kwargs, named.get("loss", sum_of_outputs), named.get("autocast"))
        if not force:
            check_fits(step, modes_of(named.get("modes", MODES), None))
        report = profile(module, *loaded.args, kwargs=loaded.kwargs, **named)
        _leave(report, own, None)
    except Exception as error:
        if report is not None:
            _leave(report, own, described(error))
        raise
    finally:
        dist.destroy_process_group()


def _leave(report: Report, file: str, stopped: str | None) -> None:
    assert report.distributed is not None
    replace(report, distributed=replace(report.distributed, stopped=stopped)).save(file, force=True)


def _told(failure: Exception, rank: int) -> MembackError:
    if isinstance(failure, MembackError):
        return failure
    return MembackError(f"rank {rank} failed: {described(failure)}")


class _TerminatedError(MembackError):
    """The process has been asked to end."""


@contextmanager
def _terminated() -> Iterator[None]:
    """In the block torchrun's request to end is an error like any other: it comes when another rank has failed."""

    def end(number: int, frame: object) -> None:
        raise _TerminatedError("it was ended from outside, as is done when another rank has failed")

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # in no thread but the main one
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _gather(files: Sequence[str], wait: float) -> list[Report]:
    """The reports in these files: all of them once they are whole, or else, after a while, what there is."""
    until = time.monotonic() + wait
    while True:
        found = [Report.load(file) for file in files if Path(file).is_file()]
        settled = [report for report in found if report.distributed and report.distributed.stopped != _PENDING]
        if len(settled) == len(files) or time.monotonic() > until:
            return found
        time.sleep(_LOOK_EVERY)

"""What ranks exchange in a step: parameters that FSDP2 gathers, gradients that it reduces, buffers that DDP spreads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any

import torch

from memback.bridges.torch.recording.tracking import Tracker

__all__ = ["exchanges_told"]


@contextmanager
def exchanges_told(tracker: Tracker, strategy: str | None) -> Iterator[None]:
    """In the block a tracker is told of what ranks exchange, and of storages that get or lose memory without an op.

    FSDP2 resizes the storages of whole parameters to give them memory and to take it back.
    """
    with ExitStack() as stack:
        tracker.reduces_in_buckets = strategy == "ddp"
        stack.enter_context(_wrapped(torch.UntypedStorage, "resize_", partial(_resizing, tracker)))
        if strategy is not None:
            from torch.distributed.fsdp._fully_shard import _fsdp_param_group as fsdp
            from torch.nn.parallel import DistributedDataParallel

            group = fsdp.FSDPParamGroup
            for owner, name, wrap in (
                (group, "unshard", _gathering),
                (group, "wait_for_unshard", _gathered),
                (group, "reshard", _resharding),
                (fsdp, "foreach_reduce", _reducing),
                (DistributedDataParallel, "_sync_buffers", _spreading),
            ):
                stack.enter_context(_wrapped(owner, name, partial(wrap, tracker)))
        yield


@contextmanager
def _wrapped(owner: Any, name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """In the block a function of a class or module is another one, made of it."""
    inherited = name not in vars(owner)
    original = getattr(owner, name)
    setattr(owner, name, wraps(original)(wrap(original)))
    try:
        yield
    finally:
        if inherited:
            delattr(owner, name)
        else:
            setattr(owner, name, original)


def _resizing(tracker: Tracker, original: Any) -> Any:
    def resize(storage: Any, size: int) -> Any:
        given = original(storage, size)
        tracker.resized(storage)
        return given

    return resize


def _gathering(tracker: Tracker, original: Any) -> Any:
    def gather(group: Any, *args: Any, **kwargs: Any) -> Any:
        with tracker.exchanging("gathered", "all_gather", group.modules[0]):
            return original(group, *args, **kwargs)

    return gather


def _gathered(tracker: Tracker, original: Any) -> Any:
    gather = _gathering(tracker, original)

    def wait(group: Any) -> None:
        gather(group)
        tracker.settle()

    return wait


def _resharding(tracker: Tracker, original: Any) -> Any:
    """After the forward pass a part of the gathered parameters may stay, a shard for a smaller group of ranks."""

    def reshard(group: Any) -> None:
        with tracker.exchanging("gathered", "reshard", group.modules[0]):
            original(group)

    return reshard


def _reducing(tracker: Tracker, original: Any) -> Any:
    def reduce(params: Any, *args: Any, **kwargs: Any) -> Any:
        with tracker.exchanging("buckets", "reduce_scatter", params[0]._module_info.module):
            given = original(params, *args, **kwargs)
        for param in params:
            if param.sharded_param.grad is not None:
                tracker.is_gradient(param.sharded_param.grad)
        tracker.settle()
        return given

    return reduce


def _spreading(tracker: Tracker, original: Any) -> Any:
    def spread(module: Any) -> None:
        with tracker.exchanging("buckets", "broadcast", module):
            original(module)
        tracker.settle()

    return spread

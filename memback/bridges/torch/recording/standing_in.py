"""A module under a strategy (or none) without memory, for a dry run of what this rank does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from memback.bridges.torch.recording.fake import DryRunError, fake_mode, faked
from memback.bridges.torch.recording.sharding import fsdp_params, strategy_of

__all__ = ["standing_in"]


@contextmanager
def standing_in(module: nn.Module, inputs: Any, *others: Any) -> Iterator[tuple[nn.Module, Any]]:
    """In the block there is a module like this one, and inputs, that hold no memory; nothing is sent to other ranks.

    The module itself has its parameters and buffers back afterwards. DDP's part is played by another DDP around the
    same module: the first one's reducer would wait for gradients of parameters that have been exchanged. Of ``others``,
    such as the loss, nothing holds a tensor of the dry run afterwards.

    Raises:
        DryRunError: DDP can't be run dry, as it is around a part of the module only, casts by itself, or looks for
            parameters that are not used.
    """
    strategy = strategy_of(module)
    if strategy is None:
        with faked(module, inputs, others=others) as given:
            yield module, given
        return
    from torch.distributed._tools import fake_collectives  # noqa: F401 - it tells collectives of fake tensors

    if strategy == "ddp":
        if not isinstance(module, nn.parallel.DistributedDataParallel):
            raise DryRunError("DDP is around a part of the module, which can't be run dry: put DDP around the whole")
        with faked(module.module, inputs, exchanged=True, others=others) as given:
            yield _like(module), given
    else:
        mode = fake_mode(module, inputs)
        with (
            _fake_shards(module, mode) as known,
            faked(module, inputs, mode=mode, known=known, exchanged=True, others=others) as given,
        ):
            yield module, given


def _like(ddp: Any) -> nn.Module:
    """Another DDP of the same kind, around a module without memory.

    It is good for one step: in the next forward pass it would rebuild its buckets, for which it reads memory. They are
    as many bytes before and after.
    """
    if ddp.mixed_precision is not None:
        raise DryRunError("DDP's own mixed precision can't be run dry: use autocast in its place")
    if ddp.find_unused_parameters or ddp.static_graph:
        raise DryRunError(
            "DDP that looks for unused parameters (find_unused_parameters, static_graph) decides by values, which a dry"
            " run does not have: run it for real"
        )
    caps = ddp.bucket_bytes_cap_list
    twin = nn.parallel.DistributedDataParallel(
        ddp.module,
        init_sync=False,
        process_group=ddp.process_group,
        bucket_cap_mb=None if ddp.bucket_bytes_cap_default or caps else ddp.bucket_bytes_cap / 2**20,
        bucket_cap_mb_list=[cap / 2**20 for cap in caps] or None,
        gradient_as_bucket_view=ddp.gradient_as_bucket_view,
        skip_all_reduce_unused_params=ddp.skip_all_reduce_unused_params,
        forward_sync_buffers=ddp.forward_sync_buffers,
    )
    reduced = lambda state, bucket: _reduced(bucket)  # noqa: E731 - PyTorch refuses annotations that it doesn't know
    for hook, state in ddp._comm_hooks or [(reduced, None)]:
        twin.register_comm_hook(state, hook)
    return twin.train(ddp.training)


def _reduced(bucket: Any) -> Any:
    """In the place of DDP's own reduction, which is in place."""
    future: Any = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


@contextmanager
def _fake_shards(module: nn.Module, mode: Any) -> Iterator[dict[int, Any]]:
    """In the block FSDP2 has shards without memory; gives what stands for each sharded parameter, by its id."""
    known: dict[int, Any] = {}
    before = [(param, dict(vars(param))) for param in fsdp_params(module)]
    try:
        for param, _ in before:
            real = id(param.sharded_param)
            known[real] = _exchange(param, mode)
        yield known
    finally:
        for param, attributes in before:
            vars(param).pop("_unsharded_param", None)
            vars(param).update(attributes)  # what it has noted besides, such as dtypes, may stay


def _exchange(param: Any, mode: Any) -> Any:
    """Have FSDP2 see a shard without memory in the place of a parameter's shard, and no whole parameter yet."""
    from torch.distributed.tensor import DTensor

    shard, local = param.sharded_param, param.sharded_param._local_tensor
    with mode:
        flat = torch.empty_like(param._sharded_param_data, device=param.device)
        stand_in = torch.as_strided(flat, local.size(), local.stride(), local.storage_offset())
        given = DTensor(stand_in, shard._spec, requires_grad=False)
    param.sharded_param = nn.Parameter(given, requires_grad=shard.requires_grad)
    param._sharded_param_data = flat
    param.all_gather_outputs = []
    vars(param).pop("_unsharded_param", None)
    return param.sharded_param

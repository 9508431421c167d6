"""Modules that several ranks train: which strategy they are under, and how they are put under one.

A strategy is ``ddp`` (``torch.nn.parallel.DistributedDataParallel``: every rank has all parameters, gradients are
reduced in buckets) or ``fsdp2`` (``torch.distributed.fsdp.fully_shard``: every rank has a shard of each parameter,
whole ones are gathered when they are used).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch.distributed as dist
from torch import nn

from memback.bridges.torch.recording.fake import fake_mode, is_dry
from memback.bridges.torch.recording.paths import matches
from memback.errors import UsageError

__all__ = ["STRATEGIES", "bucket_bytes", "fsdp_params", "reshard", "strategy_of", "wrap"]

STRATEGIES = ("ddp", "fsdp2")


def strategy_of(module: nn.Module) -> str | None:
    """The strategy under which a module, or a part of it, is trained; None where it is under none."""
    if not dist.is_available():
        return None
    from torch.distributed.fsdp import FSDPModule
    from torch.nn.parallel import DistributedDataParallel

    kinds = {"ddp": DistributedDataParallel, "fsdp2": FSDPModule}
    found = (name for part in module.modules() for name, kind in kinds.items() if isinstance(part, kind))
    return next(found, None)


def wrap(module: nn.Module, strategy: str, shard: Sequence[str] = (), **options: Any) -> nn.Module:
    """Put a module under a strategy, unless it is under one already. The process group must have been initialised.

    Args:
        module: on real tensors, or on such as hold no memory; it is changed in place.
        strategy: ``ddp`` or ``fsdp2``.
        shard: for ``fsdp2``, patterns of the paths of submodules that are sharded, and gathered, each by itself. They
            match part by part, as in a shell: ``blocks.*`` is ``blocks.0``, not ``blocks.0.norm``. By default the parts
            of every ``ModuleList`` and ``Sequential`` that is in no other. What is left is one more group.
        options: for PyTorch's own function.

    Raises:
        UsageError: an unknown strategy, a pattern that no submodule has or that matches a mere list of modules, groups
            that do not divide the ranks, a module under another strategy, or one for DDP of which nothing is trained.
    """
    if strategy not in STRATEGIES:
        raise UsageError(f"unknown strategy {strategy!r}; there are {', '.join(STRATEGIES)}")
    present = strategy_of(module)
    if present is not None:
        if present != strategy:
            raise UsageError(f"the module is under {present} already, and can't be put under {strategy}")
        return module
    if strategy == "ddp":
        if shard:
            raise UsageError("what is sharded belongs to fsdp2: under ddp every rank has all parameters")
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise UsageError("no parameter of the module requires a gradient: DDP has nothing to reduce")
        with fake_mode(module) if is_dry(module) else nullcontext():
            return nn.parallel.DistributedDataParallel(module, init_sync=not is_dry(module), **options)
    from torch.distributed.fsdp import fully_shard

    device = next((parameter.device.type for parameter in module.parameters()), "cpu")
    mesh = dist.device_mesh.init_device_mesh(device, (dist.get_world_size(),))
    _check_group_size(options.get("reshard_after_forward"), dist.get_world_size())
    for part in (*(_parts(module, shard) if shard else _blocks(module)), module):
        fully_shard(part, **{"mesh": mesh, **options})  # in no fake mode, because it reads numbers of meshes
    return module


def _check_group_size(size: Any, ranks: int) -> None:
    if isinstance(size, int) and not isinstance(size, bool) and (size < 1 or ranks % size):
        raise UsageError(f"reshard_after_forward={size} does not divide the {ranks} ranks; give a number that does")


def _parts(module: nn.Module, patterns: Iterable[str]) -> list[nn.Module]:
    """Those that match, each once, and those within others first, because FSDP2 leaves out what is sharded already."""
    named = [(name, part) for name, part in module.named_modules() if name]
    found: dict[str, nn.Module] = {}
    for pattern in patterns:
        matching = {name: part for name, part in named if matches(name, pattern)}
        if not matching:
            names = ", ".join(name for name, _ in named[:8])
            raise UsageError(f"no submodule's path matches {pattern!r}; there are {names}{', …' * (len(named) > 8)}")
        for name, part in matching.items():
            if type(part).forward is nn.Module.forward:
                raise UsageError(
                    f"{pattern!r} matches {name}, a {type(part).__name__} that is never called; write {name}.*"
                )
        found |= matching
    return [found[name] for name in sorted(found, key=lambda name: name.count("."), reverse=True)]


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The parts, with parameters, of the outermost lists of modules."""
    if isinstance(module, (nn.ModuleList, nn.Sequential)):
        yield from (part for part in module if any(True for _ in part.parameters()))
    else:
        for child in module.children():
            yield from _blocks(child)


# -- what a strategy holds


def fsdp_params(module: nn.Module) -> Iterator[Any]:
    """What FSDP2 knows of each parameter that it has sharded."""
    for group in _groups(module):
        yield from group.fsdp_params


def _groups(module: nn.Module) -> Iterator[Any]:
    if not dist.is_available():
        return
    from torch.distributed.fsdp import FSDPModule

    groups: dict[int, Any] = {}
    for part in module.modules():
        if isinstance(part, FSDPModule):
            groups |= {id(group): group for group in part._get_fsdp_state()._fsdp_param_groups}
    yield from groups.values()


def reshard(module: nn.Module) -> None:
    """Free the whole parameters that FSDP2 has kept, as it does with the outermost ones after the forward pass."""
    for group in _groups(module):
        group.reshard()


def bucket_bytes(module: nn.Module) -> int:
    """Bytes of the flat buffers in which DDP reduces gradients; they are there from when it is made."""
    from torch.nn.parallel import DistributedDataParallel

    return sum(_bytes_of_buckets(part) for part in module.modules() if isinstance(part, DistributedDataParallel))


def _bytes_of_buckets(ddp: Any) -> int:
    from torch._subclasses.fake_tensor import FakeTensorMode

    parameters, sparse = ddp._build_params_for_reducer()
    if any(sparse):  # gradients of these are reduced by themselves, in no bucket, and DDP can't show the others
        return sum(parameter.nbytes for parameter, alone in zip(parameters, sparse, strict=True) if not alone)
    # It gives zeros in the shape of the buckets, for which there need not be memory.
    with nullcontext() if is_dry(ddp) else FakeTensorMode(allow_non_fake_inputs=True):
        return sum(bucket.buffer().nbytes for bucket in ddp.reducer._get_zeros_like_grad_buckets())

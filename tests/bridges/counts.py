"""What a step of PyTorch's keeps and holds, counted by other means than memback's."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def kept_bytes(forward: Callable[[], Any], arguments: Iterable[torch.Tensor]) -> int:
    """Bytes of the distinct storages that autograd saves in a forward pass, without those of ``arguments``."""
    kept: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()  # alive, so that its address stays its own
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    known = {tensor.untyped_storage()._cdata for tensor in arguments}
    total = sum(storage.nbytes() for address, storage in kept.items() if address not in known)
    del loss
    return total


class StorageCount(TorchDispatchMode):
    """The sum of the living storages that ops have given, without those of ``arguments``, and its peak."""

    def __init__(self, arguments: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in arguments}
        self.sizes: dict[int, int] = {}
        self.peak = 0
        self.sum: tuple[int, int] | None = None
        """Of gradients: the storage to which one was added, and the bytes with the sum beside it."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.settle()
        in_backward = torch._C._current_graph_task_id() != -1
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in self.sizes and storage._cdata not in self.known:
                self.sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, storage._cdata)
                if func is torch.ops.aten.add.Tensor and in_backward and _is_dense(args[0]):
                    self.sum = args[0].untyped_storage()._cdata, sum(self.sizes.values())
                else:
                    self.peak = max(self.peak, sum(self.sizes.values()))
        return out

    def settle(self) -> None:
        """While a mode is on, autograd adds gradients out of place; else it writes to one that is gone afterwards."""
        if self.sum is not None and self.sum[0] in self.sizes:
            self.peak = max(self.peak, self.sum[1])
        self.sum = None


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether a tensor has all of its storage, which another may be added to."""
    return tensor.nbytes == tensor.untyped_storage().nbytes()


def storage_peak(step: Callable[[], Any], arguments: Iterable[torch.Tensor]) -> int:
    with StorageCount(arguments) as count:
        step()
    return count.peak

"""What ``torch.cuda`` answers for a card that is not there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import optimizer
from torch.utils import _foreach_utils

from memback.bridges.torch.device.cards import Card

__all__ = ["answering_for"]

_TO: Callable[..., Any] = torch.Tensor.to
_FOREACH = optimizer._foreach_supported_types


@contextmanager
def answering_for(card: Card) -> Iterator[None]:
    """In the block code that asks PyTorch for its CUDA device is told of this card."""
    properties = SimpleNamespace(
        name=card.title,
        major=card.capability[0],
        minor=card.capability[1],
        total_memory=card.memory_bytes,
        multi_processor_count=card.multiprocessors,
        max_threads_per_multi_processor=card.threads,
        warp_size=32,
    )
    no_state = torch.zeros(16, dtype=torch.uint8)
    answers: dict[str, Any] = {
        "is_available": True,
        "is_initialized": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_properties": properties,
        "get_device_capability": card.capability,
        "get_device_name": card.title,
        "is_current_stream_capturing": False,
        "get_rng_state": no_state,
        "set_rng_state": None,
        "synchronize": None,
        "empty_cache": None,
        "_lazy_init": None,
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(patch.object(torch.cuda, name, _giving(answer)))
        halves = lambda including_emulation=True: including_emulation or card.capability >= (8, 0)  # noqa: E731
        stack.enter_context(patch.object(torch.cuda, "is_bf16_supported", halves))
        if (transformers := sys.modules.get("transformers.utils.import_utils")) is not None:  # which takes other ways
            stack.enter_context(patch.object(transformers, "is_fake_tensor", _giving(False), create=True))
        # Older versions of PyTorch make memory on the device before the first fake tensor of it.
        stack.enter_context(patch.object(fake_tensor, "init_gpu_context", _giving(None), create=True))
        stream = SimpleNamespace(is_capturing=_giving(False))
        stack.enter_context(patch.object(torch.accelerator, "current_stream", _giving(stream)))
        for place in (optimizer, _foreach_utils):
            stack.enter_context(patch.object(place, "_foreach_supported_types", [*_FOREACH, FakeTensor], create=True))
        for name in ("tensor", "as_tensor"):
            stack.enter_context(patch.object(torch, name, _made_here(getattr(torch, name))))
        stack.enter_context(patch.object(torch.Tensor, "to", _moved_here))
        stack.enter_context(patch.object(torch.Tensor, "cuda", lambda tensor, *_, **__: _moved_here(tensor, "cuda")))
        yield


def _giving(answer: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: answer


def _moved_here(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """``Tensor.to``: of a tensor of the CPU, PyTorch would ask CUDA for the device."""
    if isinstance(tensor, FakeTensor):
        return _TO(tensor, *args, **kwargs)
    copy = kwargs.pop("copy", False)
    device, dtype, non_blocking, form = torch._C._nn._parse_to(*args, **kwargs)
    if device is None or device.type != "cuda":
        return _TO(tensor, *args, copy=copy, **kwargs)
    form = torch.preserve_format if form is None else form
    return torch.ops.aten._to_copy(
        tensor, dtype=dtype or tensor.dtype, device=device, non_blocking=non_blocking, memory_format=form
    )


def _made_here(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """PyTorch makes a tensor of numbers on the CPU first, and would ask CUDA for the device then."""

    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if device is None or torch.device(device).type not in ("cuda", "meta"):
            return make(data, *args, device=device, **kwargs)
        grad = kwargs.pop("requires_grad", False)
        moved: torch.Tensor = make(data, *args, **kwargs).to(device)
        return moved.requires_grad_() if grad else moved

    return made

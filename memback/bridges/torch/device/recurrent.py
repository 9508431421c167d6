"""Recurrent layers by cuDNN: one op for all layers and steps, whose weights lie in one buffer.

As ``ATen/native/cudnn/RNN.cpp`` and ``ATen/cudnn/AutocastRNN.cpp`` have it. What cuDNN keeps for backward, and what it
takes as workspace, only cuDNN knows: the first is counted by figures that were published, the second is not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from memback.bridges.torch.device.current import mode_now, note_unmodelled
from memback.bridges.torch.device.mode import DeviceMode
from memback.bridges.torch.device.registry import composite, kernel
from memback.bridges.torch.recording.storages import key

__all__ = ["lie_flat", "reserve_bytes"]

_aten = torch.ops.aten
_MODES = {"rnn_relu": 0, "rnn_tanh": 1, "lstm": 2, "gru": 3}
_KINDS = {number: kind for kind, number in _MODES.items()}
_KEPT = {"rnn_relu": 1, "rnn_tanh": 1, "lstm": 5, "gru": 6}
"""Numbers that cuDNN keeps of each unit at each step, beside what goes to the next layer.

For LSTM and GRU they are read off https://github.com/pytorch/pytorch/issues/2895, where 4 layers of 320 units keep
736,000,000 B and 864,000,000 B: 23 and 27 numbers a unit over 25,000 inputs. For plain layers one is the least that
backward needs.
"""
_FLAT = (torch.float16, torch.float32, torch.float64)
"""Types whose weights ``flatten_parameters`` lays into one buffer when a module is moved; of others each step does."""
_DROPOUT_STATE = 2_228_224
"""Bytes of cuDNN's random streams, which PyTorch makes once for layers with dropout: the stub's, as cards' vary."""
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


def reserve_bytes(kind: str, inputs: int, hidden: int, layers: int, directions: int, itemsize: int) -> int:
    """Bytes that cuDNN is taken to keep of a recurrent layer for backward.

    Args:
        kind: ``lstm``, ``gru``, ``rnn_tanh`` or ``rnn_relu``.
        inputs: steps of the longest sequence times sequences.
        hidden: units of a layer.
        layers: how many there are, one upon the other.
        directions: 2 of bidirectional ones, else 1.
        itemsize: bytes of a number.
    """
    return inputs * hidden * directions * (_KEPT[kind] * layers + layers - 1) * itemsize


def lie_flat(layer: torch.nn.RNNBase) -> dict[int, Any]:
    """Lay a layer's weights into one buffer, as ``flatten_parameters`` does after it was moved.

    Gives the new weights by the ids of the old ones.
    """
    names = [name for name in layer._flat_weights_names if layer._parameters.get(name) is not None]
    before: list[Any] = [layer._parameters[name] for name in names]
    dtypes = {weight.dtype for weight in before}
    if not torch.backends.cudnn.enabled or not dtypes <= set(_FLAT) or len(dtypes) != 1:
        return {}
    if len({key(weight.untyped_storage()) for weight in before}) < len(before):
        return {}
    whole = torch.empty(sum(weight.numel() for weight in before), dtype=before[0].dtype, device=before[0].device)
    after = dict(zip(names, map(torch.nn.Parameter, _parts(whole, before)), strict=True))
    for name, weight in zip(names, before, strict=True):
        layer._parameters[name] = after[name].requires_grad_(weight.requires_grad)
    return {id(weight): after[name] for name, weight in zip(names, before, strict=True)}


def _parts(whole: Any, like: Sequence[Any]) -> list[Any]:
    """Views of a buffer, one after the other, of these shapes."""
    parts, start = [], 0
    for one in like:
        parts.append(whole.narrow(0, start, one.numel()).view(one.shape))
        start += one.numel()
    return parts


def _by_cells(op: Any) -> Any:
    """A recurrent layer, step by step."""
    name = op._overloadpacket.__name__

    def run(*args: Any, **kwargs: Any) -> Any:
        note_unmodelled(name, "a recurrent layer without cuDNN, which is taken to run cell by cell")
        return op._op_dk(_COMPOSITE, *args, **kwargs)

    return run


def _of_padded(op: Any) -> Any:
    """A layer of sequences of the same length."""
    by_cells, kind = _by_cells(op), op._overloadpacket.__name__

    def run(
        tensor: Any,
        hidden: Any,
        weights: Any,
        biases: bool,
        layers: int,
        dropout: float,
        train: bool,
        both: bool,
        batch_first: bool,
    ) -> Any:
        if not _is_acceptable(tensor):
            return by_cells(tensor, hidden, weights, biases, layers, dropout, train, both, batch_first)
        return _by_cudnn(kind, tensor, (), hidden, weights, biases, layers, dropout, train, both, batch_first)

    return run


def _of_packed(op: Any) -> Any:
    """A layer of sequences end to end, of which ``sizes`` says how many there are at each step."""
    by_cells, kind = _by_cells(op), op._overloadpacket.__name__

    def run(
        tensor: Any,
        sizes: Any,
        hidden: Any,
        weights: Any,
        biases: bool,
        layers: int,
        dropout: float,
        train: bool,
        both: bool,
    ) -> Any:
        if not _is_acceptable(tensor):
            return by_cells(tensor, sizes, hidden, weights, biases, layers, dropout, train, both)
        return _by_cudnn(kind, tensor, sizes.tolist(), hidden, weights, biases, layers, dropout, train, both, False)

    return run


for _op in (_aten.lstm, _aten.gru, _aten.rnn_tanh, _aten.rnn_relu):
    composite(f"{_op.__name__}.input")(_of_padded(_op.input))
    composite(f"{_op.__name__}.data")(_of_packed(_op.data))


def _is_acceptable(tensor: Any) -> bool:
    return torch.backends.cudnn.enabled and tensor.dtype in (*_FLAT, torch.bfloat16) and tensor.numel() > 0


def _by_cudnn(
    kind: str,
    tensor: Any,
    sizes: Iterable[int],
    hidden: Any,
    weights: Any,
    biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    both: bool,
    batch_first: bool,
) -> Any:
    what = "what cuDNN takes as workspace, and what it keeps for backward, of which an estimate is counted"
    note_unmodelled(kind, what)
    hx, cx = hidden if kind == "lstm" else (hidden, None)
    if dropout and train:
        mode_now().memory.keep("cuDNN's dropout", _DROPOUT_STATE)
    buffer, weights, cast = _in_one_buffer(tensor, weights)
    if cast is not None:
        tensor, hx, cx = tensor.to(cast), hx.to(cast), None if cx is None else cx.to(cast)
    units = (hx if cx is None else cx).size(2)
    projected = hx.size(2) if hx.size(2) != units else 0
    out, hy, cy, _, _ = _aten._cudnn_rnn(
        tensor,
        weights,
        4 if biases else 2,
        buffer,
        hx,
        cx,
        _MODES[kind],
        units,
        projected,
        layers,
        batch_first,
        dropout,
        train,
        both,
        list(sizes),
        None,
    )
    return (out, hy, cy) if kind == "lstm" else (out, hy)


def _in_one_buffer(tensor: Any, weights: Any) -> tuple[Any, Any, torch.dtype | None]:
    """The buffer that the step makes for weights: autocast does for copies, PyTorch for types that it never lays out.

    Gives the weights in it, too, and the type to which all is cast by autocast.
    """
    cast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
    dtype = cast or weights[0].dtype
    total = sum(weight.numel() for weight in weights)
    if cast is None:
        made = torch.empty(0 if dtype in _FLAT else total, dtype=dtype, device=tensor.device)
        return made, weights, None
    buffer = torch.empty(total, dtype=dtype, device=tensor.device)
    parts = zip(_parts(buffer, weights), weights, strict=True)
    return buffer, [part.detach().copy_(weight) for part, weight in parts], cast


@kernel(_aten._pack_padded_sequence.default)
def _pack(mode: DeviceMode, func: Any, padded: Any, lengths: Any, batch_first: bool) -> Any:
    """Sequences of known lengths end to end; how many there are at each step stays on the CPU, and is known."""
    known = mode.value_of(lengths)
    if known is None:
        return func(padded, lengths, batch_first)
    with unset_fake_temporarily():
        data, sizes = func(torch.empty((*padded.shape[:2], 1)), known, batch_first)
    return mode.empty((data.size(0), *padded.shape[2:]), padded.dtype), sizes


@kernel(_aten._cudnn_rnn.default)
def _forward(mode: DeviceMode, func: Any, tensor: Any, weight: Any, *args: Any) -> Any:
    _, buffer, hx, cx, kind, hidden, projected, layers, batch_first, _, train, both, sizes, _ = args
    directions = 2 if both else 1
    copied = _first_in_time(mode, tensor, batch_first, sizes)
    steps = tuple(tensor.shape[:-1]) if sizes or not batch_first else (tensor.size(1), tensor.size(0))
    out = mode.empty((*steps, (projected or hidden) * directions), tensor.dtype)
    batch = sizes[0] if sizes else steps[1]
    hy = mode.empty((layers * directions, batch, projected or hidden), hx.dtype)
    cy = mode.empty((0,) if cx is None else (layers * directions, batch, hidden), hx.dtype)
    inputs = (len(sizes) if sizes else steps[0]) * batch
    kept = reserve_bytes(_KINDS[kind], inputs, hidden, layers, directions, tensor.element_size()) if train else 0
    reserve = mode.empty((kept,), torch.uint8)
    del copied
    return out.transpose(0, 1) if batch_first and not sizes else out, hy, cy, reserve, buffer


def _first_in_time(mode: DeviceMode, tensor: Any, batch_first: bool, sizes: Any) -> Any:
    """The copy of what does not lie step by step; None of what does."""
    laid = tensor.transpose(0, 1) if batch_first and not sizes else tensor
    return None if laid.is_contiguous() else mode.empty(laid.size(), laid.dtype)


@kernel(_aten._cudnn_rnn_backward.default)
def _backward(mode: DeviceMode, func: Any, tensor: Any, weight: Any, *args: Any) -> Any:
    """All gradients of weights are in one buffer, too; that of the input is made whether it is needed or not."""
    _, _, hx, cx, out, *gradients = args[:8]
    batch_first, train, sizes, mask = args[12], args[14], args[16], args[19]
    if not train:
        raise RuntimeError("cudnn RNN backward can only be called in training mode")
    missing = [
        mode.empty(like.size(), like.dtype)
        for given, like in zip(gradients, (out, hx, cx), strict=True)
        if given is None and like is not None
    ]
    given = gradients[0]
    held = [_first_in_time(mode, tensor, batch_first, sizes)]
    held.append(None if given is None else _first_in_time(mode, given, batch_first, sizes))
    swapped = batch_first and not sizes
    dx = mode.empty((tensor.size(1), tensor.size(0), tensor.size(2)) if swapped else tensor.size(), tensor.dtype)
    dhx = mode.empty(hx.size(), hx.dtype)
    dcx = None if cx is None else mode.empty(cx.size(), cx.dtype)
    del held, missing
    found: list[Any] = []
    if mask[3]:
        copied = _first_in_time(mode, tensor, batch_first, sizes)
        found = _parts(mode.empty((sum(one.numel() for one in weight),), weight[0].dtype), weight)
        del copied
    return dx.transpose(0, 1) if swapped else dx, dhx, dcx, found

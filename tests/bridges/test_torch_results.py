"""What an op has given is made again: the same as PyTorch's fake tensors give for each call."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from memback.bridges.torch.device import mode as on_cards
from memback.bridges.torch.device.cards import card
from memback.bridges.torch.device.exchange import on_card
from memback.bridges.torch.recording import results
from memback.bridges.torch.recording.storages import tensors

aten = torch.ops.aten


def looks(out, given):
    """All that tells tensors of a dry run apart, with the argument that each lies in."""
    homes = [tensor.untyped_storage()._cdata for tensor in given]
    return [
        (
            type(one),
            tuple(one.shape),
            one.stride(),
            one.storage_offset(),
            one.dtype,
            one.device,
            one.untyped_storage().nbytes(),
            torch._C._dispatch_keys(one).raw_repr(),
            homes.index(home) if (home := one.untyped_storage()._cdata) in homes else None,
        )
        for one in tensors(out)
    ]


def checked(func, args, kwargs, fake):
    """Run an op anew and twice as it is run again, and compare."""
    inside = [tensor for tensor in tensors((args, kwargs)) if isinstance(tensor, FakeTensor)]
    anew = func(*args, **kwargs)
    for _ in range(2):
        out = results.run_again(fake, func, args, kwargs)
        assert type(out) is type(anew)
        assert looks(out, inside) == looks(anew, inside), func
    return out


SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=3)
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
ONE = [
    (aten.add.Tensor, 2),
    (aten.add.Tensor, 2.0),
    (aten.mul.Tensor, True),
    (aten.clone.default,),
    (aten.detach.default,),
    (aten.alias.default,),
    (aten.t.default,),
    (aten.unsqueeze.default, 0),
    (aten.expand.default, [2, -1, -1, -1]),
    (aten.view.default, [-1]),
    (aten._unsafe_view.default, [-1]),
    (aten.split.Tensor, 2),
    (aten.unbind.int, 0),
    (aten.relu_.default,),
    (aten.sum.dim_IntList, [0]),
    (aten.max.dim, 0),
    (aten._conj.default,),
    (aten.view_as_real.default,),
    (aten._foreach_add.Scalar, 1),
    (aten._foreach_mul_.Scalar, 1),
    (aten.nonzero.default,),
    (aten.empty_like.default,),
    (aten.resize_.default, [7]),
]


@settings(deadline=None)
@given(shape=SHAPES, dtype=DTYPES, which=st.sampled_from(ONE), turned=st.booleans(), inside=st.booleans())
def test_what_is_made_again_is_what_pytorch_makes(shape, dtype, which, turned, inside):
    func, *more = which
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        made = torch.empty([size + 2 for size in shape] if inside else shape, dtype=dtype, device="cpu")
        tensor = made[tuple(slice(1, size + 1) for size in shape)] if inside else made
        tensor = tensor.transpose(0, -1) if turned else tensor
        first = [tensor, tensor] if "foreach" in func.name() else tensor
        try:
            func(first.clone() if func is aten.resize_.default else first, *more)
        except Exception as error:
            with pytest.raises(type(error)):
                results.run_again(fake, func, (first, *more), {})
            return
        if func is aten.resize_.default:
            results.run_again(fake, func, (first, *more), {})
            assert list(first.shape) == [7]
        else:
            checked(func, (first, *more), {}, fake)


def test_a_number_of_another_type_gives_another_result():
    with FakeTensorMode() as fake:
        whole = torch.empty(3, dtype=torch.int64, device="cpu")
        of = [results.run_again(fake, aten.add.Tensor, (whole, one), {}).dtype for one in (1, 1.0, True, 1, 1.0)]
    assert of == [torch.int64, torch.float32, torch.int64, torch.int64, torch.float32]


def test_the_default_type_is_part_of_what_is_asked():
    with FakeTensorMode() as fake:
        whole = torch.empty(3, dtype=torch.int64, device="cpu")
        before = torch.get_default_dtype()
        try:
            found = []
            for dtype in (torch.float32, torch.float64, torch.float32):
                torch.set_default_dtype(dtype)
                found.append(results.run_again(fake, aten.add.Tensor, (whole, 1.0), {}).dtype)
        finally:
            torch.set_default_dtype(before)
    assert found == [torch.float32, torch.float64, torch.float32]


def test_nothing_of_a_mode_outlives_it():
    import gc
    import weakref

    fake = FakeTensorMode()
    with fake:
        tensor = torch.empty(3, device="cpu")
        for _ in range(2):
            results.run_again(fake, aten.neg.default, (tensor,), {})
    there = weakref.ref(fake)
    del fake, tensor
    gc.collect()
    assert there() is None


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), (2, 8, 32)),
        (
            nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            (2, 3, 10, 10),
        ),
        (nn.LSTM(8, 16, 2), (5, 2, 8)),
    ],
    ids=["transformer", "convolution", "lstm"],
)
def test_every_op_of_a_training_step_gives_what_pytorch_makes(module, shape, monkeypatch):
    seen = set()

    def twice(fake, func, args, kwargs):
        if not results._is_repeatable(func):
            return func(*args, **kwargs)
        seen.add(func)
        return checked(func, args, kwargs, fake)

    monkeypatch.setattr(on_cards, "run_again", twice)
    with on_card(card("h100"), module, (torch.ones(shape),)) as (there, (x,)):
        optimizer = torch.optim.AdamW(module.parameters())
        for _ in range(2):
            out = module(x)
            (out[0] if isinstance(out, tuple) else out).sum().backward()
            there.mode.assumed = 1.0
            optimizer.step()
            optimizer.zero_grad()
    assert len(seen) > 10

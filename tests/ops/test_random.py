"""Dropout's mask: three forms, one mask."""

from __future__ import annotations

import ml_dtypes  # noqa: F401 - makes np.dtype know bfloat16
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import memback as mb
from memback.dry.array import ShapeArray
from memback.dry.memory import dry_memory
from memback.engine.arrays import distinct_bytes, leaves, root
from memback.engine.checkpoint import checkpoint
from memback.engine.op import OpError
from memback.engine.tensor import Tensor
from memback.ops.random import dropout

FORMS = ("bool", "bits", "seed")
DTYPES = ("float16", "bfloat16", "float32", "float64")


def drop(x, p, form, seed=1):
    mb.manual_seed(seed)
    return dropout.forward(x, p, mask=form)


@given(n=st.integers(1, 50), p=st.sampled_from([0.1, 0.5, 0.9]), seed=st.integers(0, 2**64 - 1))
def test_all_forms_and_dtypes_draw_the_same_mask(n, p, seed):
    masks = [drop(np.ones((n, 3), np.dtype(d)), p, form, seed)[0] != 0 for form in FORMS for d in DTYPES]
    assert all((mask == masks[0]).all() for mask in masks)


def test_forms_agree_over_several_pieces_of_work():
    x = np.ones(3 * 2**17 + 5, "float32")
    outs = [drop(x, 0.3, form)[0] for form in FORMS]
    assert (outs[0] == outs[1]).all()
    assert (outs[0] == outs[2]).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_drops_what_forward_dropped(form, dtype):
    x = np.ones((37, 11), np.dtype(dtype))
    out, kept = drop(x, 0.25, form)
    grad = dropout.vjp(x, kept, 0.25)
    assert grad.dtype == out.dtype == x.dtype
    np.testing.assert_array_equal(grad, out)


@pytest.mark.parametrize(("form", "size"), [("bool", 1001), ("bits", 126), ("seed", 0)])
def test_a_mask_costs_a_byte_or_a_bit_an_element_or_nothing(form, size):
    assert distinct_bytes(leaves(drop(np.ones(1001), 0.5, form)[1])) == size


def test_a_share_p_is_dropped_and_the_rest_scaled_up():
    n = 10**6
    out, _ = drop(np.ones(n), 0.3, "seed")
    assert abs((out == 0).sum() - 0.3 * n) < 5 * (n * 0.3 * 0.7) ** 0.5
    np.testing.assert_allclose(out[out != 0], 1 / 0.7)


def test_each_draw_is_another_one_until_the_seed_is_set_again():
    x = np.ones(200)
    first, second = drop(x, 0.5, "bool")[0], dropout(x)
    assert (first != second).any()
    assert (drop(x, 0.5, "bool")[0] == first).all()
    assert (drop(x, 0.5, "bool", seed=2)[0] != first).any()


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_draws_the_same_mask_again(form):
    grads = []
    for wrap in (lambda f, h: f(h), checkpoint):
        mb.manual_seed(3)
        leaf = Tensor(np.ones(300), requires_grad=True)
        out = wrap(lambda h: dropout(mb.ops.multiply(mb.ops.multiply(h, h), h), 0.5, mask=form), leaf)
        dropout(np.ones(3))  # what else is drawn in between makes no difference
        out.backward(np.ones(300))
        grads.append(leaf.grad)
    np.testing.assert_array_equal(*grads)


@pytest.mark.parametrize("kwargs", [{"p": 0.0}, {"training": False}])
def test_without_anything_to_drop_the_input_passes_and_nothing_is_kept(kwargs):
    x = np.ones(5)
    out, kept = dropout.forward(x, **kwargs)
    assert root(out) is x
    assert kept is None
    d_out = np.ones(5)
    assert dropout.backward(d_out, x, **kwargs) is d_out


def test_dropping_everything_gives_zeros_forward_and_backward():
    x = np.ones(5)
    assert not dropout(x, 1.0).any()
    assert not dropout.backward(x, x, 1.0).any()


@pytest.mark.parametrize("form", FORMS)
def test_the_workspace_stays_below_1_mib(form):
    memory = dry_memory()
    x, before = ShapeArray.argument((4096, 4096)), memory.live
    memory.reset_peak()
    out, kept = dropout.forward(x, mask=form)
    assert memory.peak - before <= out.nbytes + sum(k.nbytes for k in leaves(kept)) + 2**20
    memory.reset_peak()
    before = memory.live
    grad = dropout.vjp(x, kept, 0.5)
    assert memory.peak - before <= grad.nbytes + 2**20


def test_no_mask_is_made_where_no_backward_follows():
    memory = dry_memory()
    x, before = ShapeArray.argument((4096, 4096)), memory.live
    memory.reset_peak()
    out, kept = dropout.forward(x, keep=False)
    assert memory.peak - before <= out.nbytes + 2**20
    assert kept is None


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"p": 1.5}, r"probability \(=1.5\) must lie between 0 and 1"), ({"mask": "byte"}, r"`mask` \(='byte'\) must be")],
)
def test_a_wrong_call_names_value_and_remedy(kwargs, message):
    with pytest.raises(OpError, match=message):
        dropout(np.ones(3), **kwargs)

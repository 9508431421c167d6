"""Checkpoints: the same bits, the same side effects, fewer bytes, and errors that say what went wrong."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import memback as mb
from memback import nn, ops

ROWS = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)


class Block(nn.Module):
    """Everything that a second run could do otherwise: dropout, and running statistics."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.dropout = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)

    def forward(self, x):
        return ops.gelu(self.dropout(self.norm(self.linear(x))))


def leaf(*shape):
    return mb.Tensor(np.random.default_rng(1).standard_normal(shape), requires_grad=True)


def twice_exp(x):
    return ops.exp(ops.exp(x))


def twice_tanh(x):
    return ops.tanh(ops.tanh(x))


# -- the same bits


def plainly(function, *args):
    return function(*args)


def two_in_one(a, b, c, d, run):
    return lambda x: run(lambda x: d(run(lambda x: c(b(x)), a(x))), x)


FORMS = {
    "one": lambda blocks, run: lambda x: blocks[2](run(lambda x: blocks[1](blocks[0](x)), x)),
    "in a row": lambda blocks, run: lambda x: run(blocks[2], run(blocks[1], run(blocks[0], x))),
    "nested": lambda blocks, run: lambda x: blocks[2](run(lambda x: blocks[1](run(blocks[0], x)), x)),
    "nested twice": lambda blocks, run: (
        lambda x: run(lambda x: blocks[2](run(lambda x: blocks[1](run(blocks[0], x)), x)), x)
    ),
}


def step(form, run):
    """Saved bytes, and the bits of loss, gradients and running statistics."""
    mb.manual_seed(3)
    blocks = nn.ModuleList([Block() for _ in range(3)])
    x = mb.Tensor(ROWS, requires_grad=True)
    with mb.Tape() as tape:
        y = FORMS[form](blocks, run)(x)
        loss = ops.sum(y * y)
        saved = tape.saved_bytes
    loss.backward()
    arrays = [loss.data, x.grad, *(p.grad for p in blocks.parameters()), *dict(blocks.named_buffers()).values()]
    return saved, [array.tobytes() for array in arrays]


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_changes_no_bit_and_has_side_effects_once(form):
    saved, bits = step(form, mb.checkpoint)
    all_saved, all_bits = step(form, plainly)
    assert bits == all_bits
    assert saved < all_saved


def test_what_is_drawn_after_a_recomputation_is_what_would_have_been_drawn():
    def after(run):
        mb.manual_seed(1)
        x = leaf(4, 4)
        ops.sum(run(lambda x: ops.exp(ops.dropout(ops.exp(x), 0.5)), x)).backward()
        return ops.dropout(np.ones(64), 0.5)

    np.testing.assert_array_equal(after(mb.checkpoint), after(plainly))


def test_frozen_inputs_still_give_parameters_their_gradients():
    block = nn.Linear(6, 3)
    ops.sum(mb.checkpoint(lambda x: ops.tanh(block(x)), mb.Tensor(ROWS))).backward()
    expected = nn.Linear(6, 3)
    expected.load_state_dict(block.state_dict())
    ops.sum(ops.tanh(expected(mb.Tensor(ROWS)))).backward()
    np.testing.assert_array_equal(block.weight.grad, expected.weight.grad)


def test_frozen_parameters_get_none():
    block = nn.Linear(6, 3)
    block.weight.requires_grad = False
    x = mb.Tensor(ROWS, requires_grad=True)
    ops.sum(mb.checkpoint(lambda x: ops.tanh(block(x)), x)).backward()
    assert block.weight.grad is None
    assert block.bias.grad is not None
    assert x.grad is not None


def test_arguments_and_results_may_be_nested():
    def function(pair, *, scale):
        x, y = pair["x"], pair["y"]
        return {"first": twice_exp(x) * scale, "rest": [ops.tanh(y) * x, "text", y]}

    def gradients(run):
        x, y = leaf(3), leaf(3)
        out = (
            run(function, {"x": x, "y": y}, scale=2.0)
            if run is mb.checkpoint
            else function({"x": x, "y": y}, scale=2.0)
        )
        ops.sum(out["first"] + out["rest"][0] + out["rest"][2]).backward()
        return x.grad, y.grad

    for one, other in zip(gradients(mb.checkpoint), gradients(None), strict=True):
        np.testing.assert_array_equal(one, other)


def test_backward_can_be_repeated_with_retain_graph():
    x = leaf(3)
    loss = ops.sum(mb.checkpoint(twice_exp, x))
    loss.backward(retain_graph=True)
    once = x.grad.copy()
    loss.backward()
    np.testing.assert_array_equal(x.grad, 2 * once)
    with pytest.raises(mb.TapeError, match="a second time"):
        loss.backward()


def test_the_function_runs_once_with_a_tape_and_without():
    calls = []

    def function(x):
        calls.append(mb.is_recomputing())
        return twice_exp(x)

    with mb.no_grad():
        mb.checkpoint(function, leaf(3))
    assert calls == [False]
    ops.sum(mb.checkpoint(function, leaf(3))).backward()
    assert calls == [False, False]


def test_what_a_function_does_may_depend_on_what_changes():
    calls = []

    def function(x):
        calls.append(1)
        return twice_exp(x) if len(calls) == 1 else ops.tanh(ops.tanh(x))

    x, y = leaf(3), leaf(3)
    ops.sum(mb.checkpoint(function, x)).backward()
    ops.sum(twice_exp(y)).backward()
    np.testing.assert_array_equal(x.grad, y.grad)


def test_what_needs_no_gradient_is_recomputed_too():
    frozen, layer = nn.Linear(6, 50), nn.Linear(50, 6)
    for parameter in frozen.parameters():
        parameter.requires_grad = False

    def function(x):
        return ops.tanh(layer(ops.dropout(ops.relu(frozen(x)), 0.5)))

    def step(run):
        mb.manual_seed(1)
        layer.weight.grad = layer.bias.grad = None
        with mb.Tape() as tape:
            h = ops.exp(mb.Tensor(ROWS, requires_grad=True)).detach()
            loss = ops.sum(run(function, h))
            saved = tape.saved_bytes
        loss.backward()
        return saved, layer.weight.grad.tobytes(), layer.bias.grad.tobytes()

    saved, *bits = step(mb.checkpoint)
    all_saved, *all_bits = step(plainly)
    assert bits == all_bits
    assert saved == ROWS.nbytes < all_saved


def test_a_result_that_needs_no_gradient_and_was_changed_in_place_is_kept_as_it_was_used():
    def step(run):
        w = leaf(3)

        def function(x):
            mask = ops.exp(x)
            mask[0] = 7.0
            return ops.tanh(mask * w)

        ops.sum(run(function, mb.Tensor(np.ones(3)))).backward()
        return w.grad

    np.testing.assert_array_equal(step(mb.checkpoint), step(plainly))


def test_a_retained_graph_keeps_no_more_between_two_backwards():
    with mb.Tape() as tape:
        h = ops.tanh(leaf(100))
        loss = ops.sum(mb.checkpoint(lambda h: mb.checkpoint(twice_tanh, twice_tanh(h)), h))
        before = tape.saved_bytes
        loss.backward(retain_graph=True)
        assert tape.saved_bytes <= 2 * before
        loss.backward()
        assert tape.saved_bytes == 0


def test_only_the_inputs_are_saved():
    x = mb.Tensor(np.full(100, -2.0), requires_grad=True)
    with mb.Tape() as tape:
        h = ops.exp(x)
        out = mb.checkpoint(lambda h: twice_exp(ops.exp(h)), h)
        assert tape.saved_bytes == h.nbytes
    ops.sum(out).backward()


def test_ops_that_are_kept_are_not_computed_again(monkeypatch):
    layer = nn.Linear(6, 6)
    products = []
    forward = type(ops.linear).forward
    monkeypatch.setattr(ops.linear, "forward", lambda h, W, b=None: products.append(1) or forward(ops.linear, h, W, b))
    x = mb.Tensor(ROWS, requires_grad=True)
    ops.sum(mb.checkpoint(lambda x: ops.tanh(layer(ops.tanh(x))), x, keep={"linear"})).backward()
    assert len(products) == 1
    ops.sum(mb.checkpoint(lambda x: ops.tanh(layer(ops.tanh(x))), x)).backward()
    assert len(products) == 3


# -- what saves nothing is told


def warned(function, *args):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mb.checkpoint(function, *args)
    return [str(w.message) for w in caught if issubclass(w.category, mb.CheckpointWarning)]


def test_a_checkpoint_that_saves_nothing_warns_and_says_where_and_why():
    (message,) = warned(lambda x: x + 1.0, leaf(3))
    assert "test_recomputation.py:" in message
    assert "would keep 0 bytes" in message
    (message,) = warned(lambda h: ops.exp(h), ops.exp(leaf(3)))
    assert "its calls would keep 24 bytes, its inputs take 24" in message
    (message,) = warned(twice_exp, mb.Tensor(np.ones(3)))
    assert "nothing in it requires gradients" in message


def test_a_checkpoint_that_saves_something_is_silent():
    assert warned(twice_exp, leaf(3)) == []
    layer = nn.Linear(6, 6)
    assert warned(lambda x: ops.tanh(layer(ops.tanh(x))), mb.Tensor(ROWS)) == []


# -- what was changed can't be recomputed, and is an error


def test_an_input_that_was_changed_in_place():
    w, x = leaf(3), mb.Tensor(np.ones(3))
    loss = ops.sum(mb.checkpoint(lambda x: twice_exp(w * x), x))
    x[0] = 2.0
    with pytest.raises(
        mb.TapeError,
        match=r"'other', an input of multiply .* changed in place by an assignment at test_rec",
    ):
        loss.backward()


def test_a_parameter_that_was_changed_in_place_between_forward_and_recomputation():
    layer = nn.Linear(6, 6)
    x = mb.Tensor(ROWS, requires_grad=True)
    loss = ops.sum(mb.checkpoint(lambda x: ops.tanh(layer(ops.tanh(x))), x))
    layer.weight.copy_(np.zeros((6, 6)))
    with pytest.raises(mb.TapeError, match=r"'weight', an input of linear .* by copy_ at test_recomputation.py"):
        loss.backward()


def test_a_parameter_of_a_checkpoint_inside_of_another_that_was_changed_in_place():
    layer = nn.Linear(6, 6)
    x = mb.Tensor(ROWS, requires_grad=True)
    loss = ops.sum(mb.checkpoint(lambda x: mb.checkpoint(lambda h: ops.tanh(layer(ops.tanh(h))), ops.exp(x)), x))
    layer.weight.copy_(np.zeros((6, 6)))
    with pytest.raises(mb.TapeError, match="changed in place by copy_ at test_recomputation.py"):
        loss.backward()


def test_a_buffer_that_the_first_run_changes_before_it_reads_it_is_found_as_it_was():
    count, x = mb.Tensor(np.zeros(3)), leaf(3)

    def function(x):
        if not mb.is_recomputing():
            count.copy_(count.data + 1)
        return twice_exp(x * count)

    ops.sum(mb.checkpoint(function, x)).backward()
    value = np.exp(x.data)
    np.testing.assert_allclose(x.grad, value * np.exp(value))


def test_a_result_that_leaves_by_a_side_door_has_its_gradient():
    def gradient(run):
        x, inside = leaf(3), []

        def function(x):
            inside.append(ops.exp(x))
            return ops.exp(inside[0])

        ops.sum(run(function, x) + inside[0] * 2.0).backward()
        return x.grad

    np.testing.assert_array_equal(gradient(mb.checkpoint), gradient(plainly))


def test_an_exception_leaves_the_tape_empty_and_usable():
    for failing in (1,):
        calls = []

        def function(x, calls=calls, failing=failing):
            calls.append(1)
            h = ops.exp(x)
            if len(calls) == failing:
                raise ArithmeticError("boom")
            return ops.exp(h)

        with mb.Tape() as tape:
            x = leaf(3)
            h = ops.exp(x)
            with pytest.raises((ArithmeticError, mb.MembackError), match="boom"):
                ops.sum(mb.checkpoint(function, h)).backward()
            assert tape.saved_bytes == 0
            assert not mb.is_recomputing()
            x.grad = None
            ops.sum(ops.exp(x)).backward()
            np.testing.assert_array_equal(x.grad, np.exp(x.data))

"""The tape: right gradients, freed as early as can be, and clean after whatever goes wrong."""

from __future__ import annotations

import gc
import inspect
import itertools
import threading
import tracemalloc
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import memback as mb
from memback import nn, ops
from memback.dry.array import ShapeArray
from memback.engine.arrays import Array, root
from memback.engine.gradients import add
from memback.engine.node import Port, node_of
from memback.engine.observer import Observer
from memback.engine.op import REGISTRY, Op
from memback.engine.state import at_path, current
from memback.engine.tape import Tape


def leaf(*shape, seed=0, dtype=np.float64):
    return mb.Tensor(np.random.default_rng(seed).standard_normal(shape).astype(dtype), requires_grad=True)


def line_below():
    """Where the line after the caller's is, as errors write it."""
    return f"test_tape.py:{inspect.currentframe().f_back.f_lineno + 1}"


class Watching:
    """Installs an observer for a block."""

    def __init__(self, observer: Observer) -> None:
        self.observer = observer

    def __enter__(self) -> None:
        self.before, current().observer = current().observer, self.observer

    def __exit__(self, *_: object) -> None:
        current().observer = self.before


class Broken(Op):
    """x; raises where and what it is told to."""

    name = "test_broken"
    saves = {"x": ("x",)}

    def forward(self, x: Array, where: str = "", error: Any = None) -> Array:
        if where == "forward" or (where == "recomputation" and mb.is_recomputing()):
            raise error
        return np.array(x)

    def vjp(self, d_out: Array, x: Array, where: str, error: Any) -> Array:
        if where == "backward":
            raise error
        return d_out

    def flops(self) -> int:
        return 0


@pytest.fixture
def broken():
    before = dict(REGISTRY)
    yield Broken()
    REGISTRY.clear()
    REGISTRY.update(before)


# -- the notes' network


def notes_network():
    names = ("x", "W1", "b1", "W2", "b2", "W3", "b3")
    shapes = ((4, 3), (3, 5), (5,), (5, 6), (6,), (6, 2), (2,))
    v = {name: leaf(*shape, seed=i) for i, (name, shape) in enumerate(zip(names, shapes, strict=True))}
    v["y"] = leaf(4, 2, seed=99)
    v["a1"] = ops.linear(v["x"], v["W1"], v["b1"])
    v["h1"] = ops.relu(v["a1"])
    v["a2"] = ops.linear(v["h1"], v["W2"], v["b2"])
    v["h2"] = ops.relu(v["a2"])
    v["f"] = ops.linear(v["h2"], v["W3"], v["b3"])
    v["L"] = ops.sqerr(v["f"], v["y"])
    return v


def equation_30(values):
    """The backward pass of Eq. 30 by hand (30e and 30f with their slips mended), from plain arrays."""
    v = {name: tensor.data for name, tensor in values.items()}
    d = {"f": v["f"] - v["y"], "y": v["y"] - v["f"]}
    for below, W, b, above in (("h2", "W3", "b3", "f"), ("h1", "W2", "b2", "a2"), ("x", "W1", "b1", "a1")):
        if above != "f":
            d[above] = d["h" + above[1]] * (v[above] > 0)
        d[below] = d[above] @ v[W].T
        d[W] = v[below].T @ d[above]
        d[b] = d[above].sum(axis=0)
    return d


def test_gradients_of_the_notes_network_are_equation_30():
    v = notes_network()
    expected = equation_30(v)
    v["L"].backward()
    for name in ("x", "y", "W1", "b1", "W2", "b2", "W3", "b3"):
        np.testing.assert_allclose(v[name].grad, expected[name], rtol=1e-12, atol=1e-12, err_msg=name)
        assert v[name].grad.shape == v[name].shape


def test_activation_gradients_pass_by_in_the_order_of_equation_30():
    v = notes_network()
    expected = equation_30(v)
    seen = []

    class Gradients(Observer):
        def backward_ended(self, node, edges):
            seen.extend((edge, np.array(edge.grad)) for edge in edges if edge is not None)

    with Watching(Gradients()):
        v["L"].backward()
    names = {id(v[name] if v[name].node is None else v[name].node): name for name in v}
    assert [names[id(edge)] for edge, _ in seen] == [
        *("f", "y", "h2", "W3", "b3", "a2", "h1", "W2", "b2", "a1", "x", "W1", "b1")
    ]
    for edge, gradient in seen:
        name = names[id(edge)]
        np.testing.assert_allclose(gradient, expected[name], rtol=1e-12, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("name", ["h1", "a1", "a2", "f"])
def test_an_activation_gradient_can_be_asked_for(name):
    v = notes_network()
    expected = equation_30(v)[name]
    np.testing.assert_allclose(mb.total(v["L"], v[name]), expected, rtol=1e-12, atol=1e-12)


# -- accumulation


def test_gradients_are_added_from_the_last_use_to_the_first():
    x = mb.Tensor(np.float64(1.0), requires_grad=True)
    uses = [1e16, -1e16, 1.0, 0.5]  # every order of adding these gives another number
    loss = ops.multiply(x, uses[0])
    for use in uses[1:]:
        loss = ops.add(loss, ops.multiply(x, use))
    loss.backward()
    expected = uses[-1]
    for use in reversed(uses[:-1]):
        expected = expected + use
    assert x.grad == expected


def test_a_second_backward_pass_adds_to_the_first():
    x = leaf(3)
    for _ in range(2):
        ops.sum(ops.multiply(x, 3.0)).backward()
    np.testing.assert_array_equal(x.grad, np.full(3, 6.0))


def test_a_result_that_is_used_in_many_places_gets_the_sum():
    x = leaf(3)
    h = ops.exp(x)
    ops.sum(ops.add(ops.add(h, ops.multiply(h, 2.0)), ops.multiply(h, h))).backward()
    e = np.exp(x.data)
    np.testing.assert_allclose(x.grad, (3 + 2 * e) * e, rtol=1e-14)


def test_each_output_of_a_call_with_several_has_its_own_gradient():
    x = leaf(6)
    first, _, last = ops.split(x, 2)
    ops.sum(ops.add(ops.multiply(first, 2.0), ops.add(last, last))).backward()
    np.testing.assert_array_equal(x.grad, [2, 2, 0, 0, 2, 2])


@pytest.mark.parametrize("gradient", [np.arange(3.0), mb.Tensor(np.arange(3.0)), [0.0, 1.0, 2.0]])
def test_backward_from_a_value_that_is_no_scalar_takes_its_gradient(gradient):
    x = leaf(3)
    ops.multiply(x, 2.0).backward(gradient)
    np.testing.assert_array_equal(x.grad, [0, 2, 4])


def test_a_gradient_that_is_a_view_or_broadcast_is_used_and_not_written_to():
    x = leaf(4, 3)
    row = np.arange(3.0)
    given = np.broadcast_to(row, (4, 3))
    h = ops.multiply(x, 1.0)
    ops.add(ops.add(h, h), h).backward(given)
    np.testing.assert_array_equal(x.grad, np.broadcast_to(3 * np.arange(3.0), (4, 3)))
    np.testing.assert_array_equal(row, np.arange(3.0))
    x.grad[...] = 7.0
    np.testing.assert_array_equal(row, np.arange(3.0))


def test_backward_from_a_leaf_is_the_gradient_itself():
    x = leaf()
    x.backward()
    assert x.grad == 1.0


PATHS = {
    "add to itself": lambda x, y: ops.add(x, x),
    "add": lambda x, y: ops.add(x, y),
    "subtract": lambda x, y: ops.subtract(x, y),
    "views": lambda x, y: ops.add(ops.reshape(x, (2, 3)), ops.transpose(ops.reshape(y, (3, 2)), 0, 1)),
    "concatenate": lambda x, y: ops.concatenate([x, y, x]),
    "stack": lambda x, y: ops.stack([y, x]),
    "split": lambda x, y: ops.concatenate(ops.split(ops.add(x, y), 3)),
    "sum": lambda x, y: ops.add(ops.sum(x), ops.sum(y)),
    "broadcast": lambda x, y: ops.add(ops.broadcast_to(x, (2, 6)), y),
    "index": lambda x, y: ops.add(x[1:3], y[0]),
    "no op": lambda x, y: x,
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("twice", [False, True])
def test_leaf_gradients_share_memory_with_nothing(path, twice):
    x, y = leaf(6, seed=1), leaf(6, seed=2)
    out = PATHS[path](x, y)
    given = np.ones(out.shape)
    for _ in range(1 + twice):
        out.backward(given, retain_graph=True)
    arrays = [a for a in (x.grad, y.grad, x.data, y.data, given, out.data) if a is not None]
    for a, b in itertools.combinations(arrays, 2):
        if a is not x.data or b is not out.data:
            assert not np.shares_memory(a, b)
    np.testing.assert_array_equal(given, np.ones(out.shape))


def test_a_gradient_that_somebody_holds_is_not_written_to():
    x = leaf(3)
    ops.sum(x).backward()
    held, copy = x.grad, x.grad.copy()
    ops.sum(x).backward()
    np.testing.assert_array_equal(held, copy)
    np.testing.assert_array_equal(x.grad, 2 * copy)


def test_a_gradient_that_nobody_holds_is_added_to_in_its_own_memory():
    x = leaf(1000)
    ops.sum(x).backward()
    address = x.grad.ctypes.data
    ops.sum(x).backward()
    assert x.grad.ctypes.data == address


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "multiply", "subtract"]), st.integers(0, 9), st.integers(0, 9)), max_size=9
    )
)
def test_random_graphs_of_integers_have_the_exact_gradient(steps):
    """With whole numbers there is no rounding, so that forward differentiation gives the same numbers."""
    values = [mb.Tensor(np.float64(k), requires_grad=True) for k in (2.0, -1.0, 3.0)]
    tangents = list(np.eye(3))
    for name, i, j in steps:
        a, b = i % len(values), j % len(values)
        x, y, dx, dy = values[a].data, values[b].data, tangents[a], tangents[b]
        if abs(x) > 1e3 or abs(y) > 1e3:
            continue
        tangents.append({"add": dx + dy, "subtract": dx - dy, "multiply": dx * y + dy * x}[name])
        values.append(getattr(ops, name)(values[a], values[b]))
    leaves = values[:3]
    values[-1].backward()
    got = [0.0 if x.grad is None else float(x.grad) for x in leaves]
    assert got == list(tangents[-1])


# -- types


@pytest.mark.parametrize("low", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_every_input_gets_a_gradient_of_its_own_type(low):
    x, W, b = leaf(2, 3, dtype=low), leaf(3, 4, seed=1, dtype=np.float64), leaf(4, seed=2, dtype=np.float32)
    out = ops.linear(x, W, b)
    ops.sum(ops.multiply(out, np.float64(2.0))).backward()
    for tensor in (x, W, b):
        assert tensor.grad.dtype == tensor.dtype
        assert tensor.grad.shape == tensor.shape
    np.testing.assert_allclose(x.grad.astype(float), np.tile(2 * W.data.sum(axis=1), (2, 1)), rtol=1e-2)


def test_integers_cannot_require_gradients():
    with pytest.raises(TypeError, match="only floating-point tensors can require gradients, not int64"):
        mb.Tensor(np.arange(3), requires_grad=True)


# -- what is kept, and until when


def test_saved_values_die_as_backward_walks_past_them():
    x = leaf(5)
    refs = []
    h = x
    for _ in range(6):
        h = ops.tanh(h)  # keeps its output
        refs.append(weakref.ref(h.data))
    loss = ops.sum(h)
    del h
    alive = []

    class Count(Observer):
        def backward_begins(self, node):
            alive.append((node.name, sum(ref() is not None for ref in refs)))

    with Watching(Count()):
        loss.backward()
    assert alive == [("sum", 6), *(("tanh", n) for n in (6, 5, 4, 3, 2, 1))]
    assert [ref() for ref in refs] == [None] * 6


def test_activation_gradients_die_when_they_are_used():
    x = leaf(1000)
    h = x
    for _ in range(50):
        h = ops.add(h, 1.0)
    loss = ops.sum(h)
    del h
    gc.collect()
    tracemalloc.start()
    loss.backward()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * x.nbytes


def test_a_result_that_nobody_uses_frees_what_it_saved():
    x = leaf(5)
    with mb.Tape() as tape:
        out = ops.tanh(ops.exp(x))
        refs = [weakref.ref(tensor) for _, tensor in node_of(out.node).saved()]
        assert tape.saved_bytes == 2 * x.nbytes
        del out
        assert tape.saved_bytes == 0
        assert len(tape) == 0
    assert [ref() for ref in refs] == [None]


@pytest.mark.parametrize("frozen", ["W", "h", "neither"])
def test_a_linear_layer_keeps_what_its_trained_inputs_need(frozen):
    x, W = leaf(8, 4), leaf(4, 16, seed=1)
    W.requires_grad, x.requires_grad = frozen != "W", frozen != "h"
    with mb.Tape() as tape:
        h = ops.negative(x)  # keeps nothing itself
        ref = weakref.ref(h.data)
        loss = ops.sum(ops.linear(h, W))
        del h
        assert tape.saved_bytes == (0 if frozen == "W" else x.nbytes)
        assert (ref() is None) == (frozen == "W")
    loss.backward()
    assert (W.grad is None) == (frozen == "W")
    assert (x.grad is None) == (frozen == "h")


def test_nothing_is_recorded_where_nothing_requires_gradients():
    with mb.Tape() as tape:
        out = ops.exp(mb.Tensor(np.ones(3)))
        assert len(tape) == tape.saved_bytes == 0
    assert not out.requires_grad


def test_nothing_is_recorded_under_no_grad_which_nests():
    x = leaf(3)
    with mb.Tape() as tape:
        with mb.no_grad():
            with mb.no_grad():
                out = ops.exp(x)
            assert not ops.exp(x).requires_grad
        assert not out.requires_grad
        assert len(tape) == 0
        assert ops.exp(x).requires_grad
    with pytest.raises(mb.TapeError, match=r"nothing with requires_grad=True led to; was the forward pass run under"):
        out.backward()


def test_plain_arrays_give_plain_arrays():
    assert isinstance(ops.exp(np.ones(3)), np.ndarray)


def test_detach_cuts_the_graph():
    x = leaf(3)
    ops.sum(ops.multiply(x, ops.exp(x).detach())).backward()
    np.testing.assert_array_equal(x.grad, np.exp(x.data))


def test_retain_all_keeps_every_variable_until_backward_is_over():
    x = leaf(5)
    with mb.Tape("all") as tape:
        h = ops.add(x, 1.0)
        refs = [weakref.ref(h.data)]
        h = ops.add(h, 1.0)
        refs.append(weakref.ref(h.data))
        loss = ops.sum(h)
        del h
        assert tape.saved_bytes == 2 * x.nbytes + loss.nbytes
        assert all(ref() is not None for ref in refs)
    loss.backward()
    assert [ref() for ref in refs] == [None, None]
    assert tape.saved_bytes == 0


def test_a_long_chain_is_walked_and_freed_without_recursion():
    x = leaf()
    h = x
    for _ in range(20_000):
        h = ops.add(h, 1.0)
    h.backward()
    assert x.grad == 1.0
    for _ in range(20_000):
        h = ops.add(h, 1.0)
    del h


def test_training_for_200_steps_holds_no_more_memory_than_for_20():
    model = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4), checkpoint="all")
    x, y = np.ones((8, 16), np.float32), np.zeros((8, 4), np.float32)

    def steps(count):
        for _ in range(count):
            loss = ops.sqerr(model(mb.Tensor(x)), y)
            model.zero_grad()
            loss.backward()
            unused = ops.exp(model(mb.Tensor(x)))  # recorded, never taken backward
            for parameter in model.parameters():
                parameter.copy_(parameter.data - 0.01 * parameter.grad)
        del loss, unused
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    steps(20)
    tracemalloc.start()
    before = steps(20)
    after = steps(200)
    tracemalloc.stop()
    assert after - before < 4096


# -- several passes, several tapes


def test_backward_twice_needs_retain_graph():
    x = leaf(3)
    with at_path("blocks.1"):
        where = line_below()
        loss = ops.sum(ops.exp(x))
    loss.backward()
    with pytest.raises(mb.TapeError) as caught:
        loss.backward()
    assert f"sum (layer 'blocks.1', called at {where})" in str(caught.value)
    assert "a second time" in str(caught.value)
    assert "retain_graph=True" in str(caught.value)


def test_backward_through_a_part_that_an_earlier_backward_freed_is_an_error():
    x = leaf(3)
    h = ops.exp(x)
    ops.sum(h).backward()
    with pytest.raises(mb.TapeError, match="backward through exp .* a second time"):
        ops.sum(ops.multiply(h, 2.0)).backward()


def test_retain_graph_lets_backward_run_again_with_the_same_result():
    x = leaf(3)
    loss = ops.sum(ops.multiply(ops.tanh(ops.exp(x)), x))
    loss.backward(retain_graph=True)
    first, x.grad = x.grad, None
    loss.backward(retain_graph=True)
    second, x.grad = x.grad, None
    loss.backward()
    assert first.tobytes() == second.tobytes() == x.grad.tobytes()


def test_two_losses_on_one_tape_go_backward_in_any_order():
    x = leaf(3)
    first, second = ops.sum(ops.exp(x)), ops.sum(ops.tanh(x))
    first.backward()
    second.backward()
    np.testing.assert_allclose(x.grad, np.exp(x.data) + 1 - np.tanh(x.data) ** 2, rtol=1e-12)


def test_tapes_nest_and_record_each_what_runs_in_it():
    x = leaf(3)
    with mb.Tape() as outer:
        first = ops.exp(x)
        with mb.Tape() as inner:
            second = ops.exp(x)
            assert (len(outer), len(inner)) == (1, 1)
        third = ops.exp(x)
        assert (len(outer), len(inner)) == (2, 1)
    assert first.requires_grad
    assert second.requires_grad
    assert third.requires_grad


def graph_across(tapes):
    """exp, tanh, multiply and sum, each under a tape of its own choice; x is used on two of them."""
    x = leaf(3)
    with tapes[0]:
        h = ops.exp(x)
    with tapes[1]:
        g = ops.tanh(h)
    with tapes[2]:
        product = ops.multiply(g, h)
    with tapes[3]:
        return x, ops.sum(product)


@pytest.mark.parametrize("pattern", ["aaab", "abbb", "abab", "abca", "baab"])
def test_a_graph_that_lies_on_several_tapes_has_all_its_gradients(pattern):
    expected, loss = graph_across([Tape()] * 4)
    loss.backward()
    tapes = {name: mb.Tape() for name in pattern}
    x, loss = graph_across([tapes[name] for name in pattern])
    loss.backward()
    assert x.grad.tobytes() == expected.grad.tobytes()
    assert [len(tape) for tape in tapes.values()] == [0] * len(tapes)


def test_what_was_recorded_on_a_tape_can_be_used_after_it():
    x = leaf(3)
    with mb.Tape():
        loss = ops.sum(ops.exp(x))
    ops.multiply(loss, 2.0).backward()
    np.testing.assert_array_equal(x.grad, 2 * np.exp(x.data))


# -- in-place changes


def change_by_copy(tensor):
    tensor.copy_(np.zeros(tensor.shape))


def change_by_assignment(tensor):
    with mb.no_grad():
        tensor[0] = 5.0


def change_through_a_view(tensor):
    view = mb.Tensor(tensor.data.reshape(-1)[1:])
    view[...] = 5.0


CHANGES = {
    "copy_": change_by_copy,
    "an assignment": change_by_assignment,
    "an assignment (view)": change_through_a_view,
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_saved_value_that_was_changed_in_place_is_an_error(what):
    x, y = leaf(3), mb.Tensor(np.ones(3))
    with at_path("head"):
        where = line_below()
        out = ops.multiply(x, y)
    CHANGES[what](y)
    with pytest.raises(mb.TapeError) as caught:
        ops.sum(out).backward()
    message = str(caught.value)
    assert f"'other', saved by multiply (layer 'head', called at {where})" in message
    assert f"was changed in place by {what.partition(' (')[0]} at test_tape.py:" in message
    assert "Use an out-of-place operation" in message


def test_a_view_that_was_saved_sees_a_change_of_its_root():
    x, y = leaf(3), mb.Tensor(np.ones((2, 3)))
    out = ops.multiply(x, y[1])
    y.copy_(np.zeros((2, 3)))
    with pytest.raises(mb.TapeError, match="changed in place"):
        ops.sum(out).backward()


def test_a_change_of_what_was_not_saved_or_before_it_was_is_none():
    x, y = leaf(3), mb.Tensor(np.ones(3))
    y.copy_(np.full(3, 2.0))
    out = ops.add(ops.multiply(x, y), x)
    other = mb.Tensor(np.ones(3))
    ops.sum(ops.add(out, other))
    other.copy_(np.zeros(3))
    x_before = x.data.copy()
    x.copy_(x.data * 2)  # multiply keeps x only to differentiate by y
    ops.sum(out).backward()
    np.testing.assert_array_equal(x.grad, [3.0, 3.0, 3.0])
    assert not np.array_equal(x.data, x_before)


def test_a_parameter_that_is_updated_between_two_backward_passes_is_an_error():
    layer = nn.Linear(3, 2)
    optimizer = mb.optim.SGD(layer.parameters(), lr=0.1)
    x = leaf(4, 3, dtype=np.float32)
    loss = ops.sum(layer(x))
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(mb.TapeError, match="'weight', saved by linear .* was changed in place by a step of SGD"):
        loss.backward()


def test_assigning_into_a_tensor_that_requires_gradients_is_an_error():
    x = leaf(3)
    for target in (x, ops.exp(x)):
        with pytest.raises(mb.TapeError, match=r"not recorded: build the value with ops\.where or ops\.concatenate"):
            target[0] = 1.0


# -- what backward refuses


def test_a_loss_that_is_no_scalar_needs_a_gradient_of_its_shape():
    out = ops.exp(leaf(3))
    made = r"the output of exp \(layer '\(top\)', called at test_tape.py:\d+\)"
    with pytest.raises(mb.TapeError, match=rf"backward from {made}, of shape \(3,\), needs `gradient`"):
        out.backward()
    with pytest.raises(mb.TapeError, match=rf"`gradient` has shape \(2,\), but {made} has \(3,\)"):
        out.backward(np.ones(2))
    out.backward(np.ones(3))


def test_a_leaf_that_is_no_scalar_needs_a_gradient_too():
    with pytest.raises(mb.TapeError, match=r"backward from a leaf, of shape \(3,\), needs `gradient`"):
        leaf(3).backward()


def test_an_output_among_several_that_is_no_scalar_names_its_call():
    first, _ = ops.split(leaf(4), 2)
    with pytest.raises(mb.TapeError, match=r"the output of split \(layer '\(top\)', called at test_tape.py:\d+\), of"):
        first.backward()


def test_higher_derivatives_are_refused():
    with pytest.raises(
        mb.TapeError,
        match=r"backward from the output of sum \(.*test_tape.py:\d+\) with create_graph: higher derivatives are out of"
        " memback's scope",
    ):
        ops.sum(leaf(3)).backward(create_graph=True)


# -- errors say where


def test_an_op_that_fails_names_itself_its_layer_the_line_and_what_it_was_given():
    x, W = leaf(2, 3, dtype=np.float32), leaf(4, 5)
    with at_path("encoder.2"), pytest.raises(mb.OpError) as caught:
        where = line_below()
        ops.linear(x, W)
    message = str(caught.value)
    assert message.startswith(f"linear (layer 'encoder.2', called at {where}): ")
    assert message.endswith("it was given input float32[2, 3], weight float64[4, 5]")


def test_an_op_inside_of_a_layer_names_the_layer_and_the_line_that_called_the_model():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(5, 2)))
    with pytest.raises(mb.OpError) as caught:
        where = line_below()
        model(mb.Tensor(np.ones((2, 3), np.float32)))
    assert f"linear (layer '1.1', called at {where})" in str(caught.value)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda x: ops.exp(), r"exp\(\) misses input"),
        (lambda x: ops.exp(x, 1), r"exp\(\) takes 1 arguments"),
        (lambda x: ops.exp(x, y=1), r"exp\(\) has no argument 'y'"),
        (lambda x: ops.where(x, 1.0, 2.0), r"where has no derivative by `condition`"),
    ],
)
def test_a_wrong_call_names_its_layer_and_line_too(call, reason):
    x = leaf(3)
    with (
        at_path("head"),
        pytest.raises(mb.OpError, match=rf"^\w+ \(layer 'head', called at test_tape\.py:\d+\): {reason}"),
    ):
        call(x)


def test_a_backward_that_fails_names_its_op_layer_and_line(broken):
    x = leaf(3)
    with at_path("blocks.0"):
        where = line_below()
        out = broken(x, "backward", ValueError("no luck"))
    with pytest.raises(mb.OpError) as caught:
        ops.sum(out).backward()
    assert f"the backward of test_broken (layer 'blocks.0', called at {where}) failed: no luck" in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)


def test_anomalies_of_forward_are_found_where_they_arise():
    x = leaf(3)
    with mb.detect_anomaly(), at_path("norm"):
        ops.exp(x)
        with np.errstate(divide="ignore"), pytest.raises(mb.AnomalyError) as caught:
            where = line_below()
            ops.log(ops.multiply(x, 0.0))
    assert f"log (layer 'norm', called at {where}) gave NaN or infinity" in str(caught.value)


def test_anomalies_of_backward_are_found_where_they_arise():
    x = mb.Tensor(np.zeros(3), requires_grad=True)
    with mb.detect_anomaly():
        with at_path("norm"):
            where = line_below()
            out = ops.sqrt(x)
        with np.errstate(divide="ignore"), pytest.raises(mb.AnomalyError) as caught:
            ops.sum(out).backward()
    assert f"the backward of sqrt (layer 'norm', called at {where}) gave NaN or infinity" in str(caught.value)
    assert x.grad is None


def test_anomalies_pass_where_nobody_looks_for_them():
    with mb.detect_anomaly():
        pass
    with np.errstate(divide="ignore"):
        assert np.isneginf(ops.log(mb.Tensor(np.zeros(1))).data)


# -- after an exception


ERRORS = [ValueError("no luck"), MemoryError("too much"), KeyboardInterrupt(), mb.OpError("no luck")]


def scenario(broken, where, error, x):
    """Something recorded, then the failure."""
    kept = ops.tanh(ops.exp(x))
    if where == "forward":
        return kept, broken(kept, "forward", error)
    if where == "backward":
        return kept, ops.sum(ops.exp(broken(kept, "backward", error))).backward()
    if where == "checkpoint's first run":
        return kept, mb.checkpoint(lambda h: ops.exp(broken(ops.exp(h), "forward", error)), kept)
    if where == "checkpoint's recomputation":
        function = lambda h: ops.tanh(ops.exp(broken(ops.exp(h), "recomputation", error)))  # noqa: E731
        return kept, ops.sum(mb.checkpoint(function, kept)).backward()
    if where == "checkpoint's backward":
        return kept, ops.sum(mb.checkpoint(lambda h: ops.exp(ops.exp(broken(h, "backward", error))), kept)).backward()
    raise error


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "where",
    [
        "forward",
        "backward",
        "checkpoint's first run",
        "checkpoint's recomputation",
        "checkpoint's backward",
        "the block",
    ],
)
@pytest.mark.parametrize("retain", ["needed", "all"])
def test_an_exception_leaves_the_tape_empty_and_everything_usable(broken, where, error, retain):
    x = leaf(4)
    tape = mb.Tape(retain)
    outside = current().tape
    expected = type(error) if isinstance(error, (MemoryError, KeyboardInterrupt, mb.OpError)) else mb.OpError
    if type(error) is MemoryError and where != "the block":
        expected = mb.OutOfMemoryError
    with pytest.raises(ValueError if where == "the block" and type(error) is ValueError else expected), tape:
        scenario(broken, where, error, x)
    assert current().tape is outside
    assert current().observer is None
    assert current().path == ""
    assert not mb.is_recomputing()
    assert len(tape) == tape.saved_bytes == 0
    assert x.grad is None
    with tape:
        loss = ops.sum(ops.exp(x))
    loss.backward()
    np.testing.assert_array_equal(x.grad, np.exp(x.data))


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_running_out_of_memory_names_the_call_and_the_bytes(broken, where):
    try:
        np.empty(2**57, np.float32)
    except MemoryError as error:
        numpys = error
    x = leaf(4)
    with pytest.raises(
        mb.OutOfMemoryError, match=r"\(layer .*called at test_tape.py:\d+\) found no more memory"
    ) as raised:
        scenario(broken, where, numpys, x)
    assert raised.value.bytes == 2**59
    assert f"{2**59:,} B" in str(raised.value)
    assert isinstance(raised.value, MemoryError)
    assert isinstance(raised.value, mb.MembackError)


@pytest.mark.parametrize("where", ["forward", "backward", "checkpoint's first run", "checkpoint's recomputation"])
def test_an_exception_on_the_threads_own_tape_empties_it_too(broken, where):
    x = leaf(4)
    held = ops.exp(x)
    with pytest.raises(mb.OpError):
        scenario(broken, where, ValueError("no luck"), x)
    assert len(current().tape) == 0
    with pytest.raises(mb.TapeError, match="exp .* after its tape was cleared"):
        ops.sum(held).backward()
    ops.sum(ops.exp(x)).backward()
    np.testing.assert_array_equal(x.grad, np.exp(x.data))


def test_an_exception_frees_what_was_saved_while_its_tensors_live_on(broken):
    x = leaf(4)
    with pytest.raises(mb.OpError), mb.Tape():
        inner = ops.exp(x)
        ref = weakref.ref(inner.data)
        out = ops.tanh(inner)
        del inner
        broken(out, "forward", ValueError())
    assert ref() is None
    assert out.data is not None


def test_clearing_a_tape_frees_what_it_saved():
    x = leaf(4)
    with mb.Tape() as tape:
        inner = ops.exp(x)
        ref = weakref.ref(inner.data)
        out = ops.tanh(inner)
        del inner
    tape.clear()
    assert ref() is None
    assert len(tape) == tape.saved_bytes == 0
    with pytest.raises(mb.TapeError, match="after its tape was cleared"):
        ops.sum(out).backward()


# -- threads


def trained(seed, barrier=None):
    mb.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(6, 12), nn.Dropout(0.3), nn.Tanh(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 2), checkpoint="sqrt"
    )
    optimizer = mb.optim.AdamW(model.parameters(), lr=0.01)
    rng = np.random.default_rng(seed)
    for _ in range(15):
        x, y = rng.standard_normal((4, 6)).astype(np.float32), np.ones((4, 2), np.float32)
        if barrier is not None:
            barrier.wait()
        optimizer.zero_grad()
        ops.sqerr(model(mb.Tensor(x)), y).backward()
        optimizer.step()
    return b"".join(p.data.tobytes() for p in model.parameters())


def test_two_threads_that_train_at_once_get_the_bits_that_each_gets_alone():
    alone = [trained(seed) for seed in (1, 2)]
    barrier = threading.Barrier(2, timeout=30)
    together: dict[int, Any] = {}

    def run(seed):
        try:
            together[seed] = trained(seed, barrier)
        except BaseException as error:
            together[seed] = error
            barrier.abort()

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[1], together[2]] == alone
    assert alone[0] != alone[1]


def test_a_thread_has_a_tape_and_a_mode_of_its_own():
    seen = {}

    def look():
        seen["tape"] = current().tape
        seen["recorded"] = ops.exp(leaf(2)).requires_grad

    with mb.no_grad():
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        assert current().tape is None
    assert seen["recorded"]
    assert seen["tape"] is not current().tape


def test_backward_can_run_in_another_thread_than_forward():
    x = leaf(3)
    loss = ops.sum(ops.exp(x))
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    np.testing.assert_array_equal(x.grad, np.exp(x.data))


# -- the tensor


def test_a_tensor_shows_its_array():
    x = mb.Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    assert (x.shape, x.dtype, x.ndim, x.size, x.nbytes, len(x)) == ((2, 3), np.float64, 2, 6, 48, 2)
    assert x.numpy() is x.data
    assert "requires_grad=True" in repr(x)
    assert "requires_grad" not in repr(x.detach())
    assert mb.Tensor(x).data is x.data
    one = mb.Tensor(2.5)
    assert float(one) == one.item() == 2.5
    assert bool(one)


def test_an_array_beside_a_tensor_leaves_the_operator_to_the_tensor():
    x = leaf(3)
    out = np.ones(3) + x * 2.0
    assert isinstance(out, mb.Tensor)
    ops.sum(out).backward()
    np.testing.assert_array_equal(x.grad, [2.0, 2.0, 2.0])


def test_the_port_of_an_output_knows_its_gradient():
    first, _ = ops.split(leaf(4), 2)
    assert isinstance(first.node, Port)
    first.node.accumulate([np.ones(2)], 0)
    np.testing.assert_array_equal(first.node.grad, np.ones(2))


@pytest.mark.parametrize("shape", [(6, 2), (3, 2, 2)], ids=["owner", "view of all of it"])
@pytest.mark.parametrize("make", [np.zeros, ShapeArray], ids=["real", "dry"])
def test_a_gradient_that_nobody_else_sees_is_added_to_in_place(make, shape):
    mine = [make((6, 2)).reshape(shape) if len(shape) == 3 else make(shape)]
    before = id(root(mine[0]))
    assert id(root(add(mine, make(shape)))) == before


def _of_a_part():
    return np.zeros((6, 2))[:3]


def _overlapping():
    return np.lib.stride_tricks.as_strided(np.zeros(4), (2, 2), (8, 8))


@pytest.mark.parametrize("make", [_of_a_part, _overlapping])
def test_a_gradient_that_is_no_plain_view_of_all_of_its_buffer_is_not_added_to_in_place(make):
    mine = [make()]
    buffer = root(mine[0])
    total = add(mine, np.ones(mine[0].shape))
    assert (total == 1).all()
    assert root(total) is not buffer


def test_a_gradient_that_somebody_else_sees_is_not_added_to_in_place():
    for mine in (np.zeros((6, 2)), np.zeros((6, 2)).reshape(3, 2, 2)):
        seen = root(mine)
        add([mine.view() if mine.base is None else mine], np.ones(mine.shape))
        assert (seen == 0).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_joined_inputs_keep_their_type_beside_bfloat16(dtype):
    parts = [np.ones(2, dtype), np.ones(3, dtype)]
    assert ops.concatenate(parts).dtype == dtype

"""Graphs that were recorded on several threads and tapes: all gradients, or an error; none is ever lost in silence."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memback as mb
from memback import ops
from memback.engine import tensor
from memback.engine.observer import Observer
from memback.engine.state import current
from memback.engine.tape import Tape


def leaf(value: float = 2.0) -> mb.Tensor:
    return mb.Tensor(np.full(3, value), requires_grad=True)


@pytest.fixture
def threads() -> Iterator[list[ThreadPoolExecutor]]:
    with ExitStack() as stack:
        yield [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(3)]


def run(pool: ThreadPoolExecutor | None, function: Callable[..., Any], *args: Any) -> Any:
    return function(*args) if pool is None else pool.submit(function, *args).result(30)


def test_branches_of_a_thread_pool_come_together() -> None:
    w = leaf()
    with ThreadPoolExecutor(2) as pool:
        a, b = pool.map(lambda k: ops.sum(ops.multiply(w, k)), [1.0, 2.0])
    ops.add(a, b).backward()
    np.testing.assert_array_equal(w.grad, [3.0, 3.0, 3.0])


@pytest.mark.parametrize("own_tapes", [False, True])
def test_backward_in_a_thread_of_its_own_walks_over_every_tape(own_tapes: bool, threads: Any) -> None:
    w = leaf()
    with Tape() if own_tapes else ExitStack():
        h = ops.multiply(w, w)
    with Tape():
        loss = ops.sum(ops.multiply(h, h))
    run(threads[0], loss.backward)
    np.testing.assert_array_equal(w.grad, [32.0, 32.0, 32.0])


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["multiply", "add", "exp", "checkpoint", "split"]),
        st.integers(0, 9),
        st.integers(0, 9),
        st.integers(0, 3),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=10,
)


def graph(steps: list[Any], place: Callable[[int, int, Callable[[], Any]], Any]) -> tuple[list[mb.Tensor], mb.Tensor]:
    """Each call is made where ``place`` has it made, by the numbers of a thread and of a tape."""
    leaves = [leaf(0.1), leaf(0.2)]
    values: list[Any] = list(leaves)
    for name, i, j, thread, number in steps:
        x, y = values[i % len(values)], values[j % len(values)]
        call = {
            "multiply": lambda x=x, y=y: ops.multiply(x, y),
            "add": lambda x=x, y=y: ops.add(x, y),
            "exp": lambda x=x: ops.exp(ops.multiply(x, 0.1)),
            "checkpoint": lambda x=x, y=y: mb.checkpoint(lambda a: ops.tanh(ops.exp(ops.multiply(a, y))), x),
            "split": lambda x=x: ops.concatenate(ops.split(x, 2)[::-1]),
        }[name]
        values.append(place(thread, number, call))
    total = values[-1]
    for value in values[2:-1]:
        total = ops.add(total, value)
    return leaves, ops.sum(total)


@pytest.mark.filterwarnings("ignore::memback.CheckpointWarning")
@settings(max_examples=40)
@given(STEPS, st.integers(0, 3))
def test_gradients_are_the_same_wherever_calls_are_made(steps: list[Any], last: int) -> None:
    expected, loss = graph(steps, lambda thread, number, call: call())
    loss.backward()
    tapes = [None, Tape(), Tape(), mb.Tape()]
    with ExitStack() as stack:
        pools = [None, *(stack.enter_context(ThreadPoolExecutor(1)) for _ in range(3))]

        def place(thread: int, number: int, call: Callable[[], Any]) -> Any:
            def on_tape() -> Any:
                chosen = tapes[number]
                with chosen if chosen is not None else ExitStack():
                    return call()

            return run(pools[thread], on_tape)

        leaves, loss = graph(steps, place)
        run(pools[last], loss.backward)
    for x, y in zip(leaves, expected, strict=True):
        assert (x.grad is None) == (y.grad is None)
        if x.grad is not None:
            assert x.grad.tobytes() == y.grad.tobytes()
    assert all(len(t) == 0 for t in tapes if t is not None)


def test_a_total_derivative_goes_over_every_tape(threads: Any) -> None:
    w = leaf()
    h = run(threads[0], ops.multiply, w, w)
    f = run(threads[1], ops.sum, h)
    np.testing.assert_array_equal(mb.total(f, w), [4.0, 4.0, 4.0])
    f.backward()
    np.testing.assert_array_equal(w.grad, [4.0, 4.0, 4.0])


def test_an_exception_in_backward_leaves_alone_what_other_threads_have_recorded(threads: Any) -> None:
    w = leaf()
    h = run(threads[0], ops.exp, w)
    other = run(threads[0], lambda: ops.sum(ops.tanh(w)))
    y = mb.Tensor(np.ones(3))
    loss = ops.sum(ops.multiply(h, y))
    y.copy_(np.zeros(3))
    with pytest.raises(mb.TapeError, match="changed in place"):
        loss.backward()
    with pytest.raises(mb.TapeError, match="after its tape was cleared"):
        ops.sum(h).backward()
    run(threads[0], other.backward)
    np.testing.assert_array_equal(w.grad, 1 - np.tanh(w.data) ** 2)


def test_one_leaf_gets_the_gradients_of_two_threads_at_once(monkeypatch: pytest.MonkeyPatch, threads: Any) -> None:
    w = leaf()
    w.grad = np.zeros(3)
    begun, add = threading.Event(), tensor.add

    def slow(mine: list[Any], other: Any) -> Any:
        if not begun.is_set():
            begun.set()
            threads[1].submit(losses[1].backward)
            threading.Event().wait(0.2)  # the other thread has come here by now, if it can
        return add(mine, other)

    losses = [run(threads[k], lambda k=k: ops.sum(ops.multiply(w, 1.0 + k))) for k in (0, 1)]
    monkeypatch.setattr(tensor, "add", slow)
    run(threads[0], losses[0].backward)
    run(threads[1], lambda: None)
    np.testing.assert_array_equal(w.grad, [3.0, 3.0, 3.0])


def test_two_threads_may_not_take_one_graph_backward_at_once(threads: Any) -> None:
    w = leaf()
    trunk = ops.exp(w)
    first, second = ops.sum(ops.tanh(trunk)), ops.sum(ops.multiply(trunk, 2.0))
    caught: list[Any] = []

    class Meanwhile(Observer):
        def backward_begins(self, node: Any) -> None:
            if node.name == "tanh":
                caught.append(threads[0].submit(second.backward).exception(30))

    state = current()
    state.observer = Meanwhile()
    try:
        first.backward(retain_graph=True)
    finally:
        state.observer = None
    assert isinstance(caught[0], mb.TapeError)
    assert "while another thread takes a part of its graph backward" in str(caught[0])
    run(threads[0], second.backward)
    np.testing.assert_allclose(w.grad, np.exp(w.data) * (3 - np.tanh(np.exp(w.data)) ** 2), rtol=1e-12)


# -- checkpoints


def test_a_checkpoint_recomputes_from_the_tensor_that_it_used() -> None:
    w, v = leaf(), leaf()
    used = [ops.exp(w)]
    out = mb.checkpoint(lambda a: ops.tanh(ops.exp(ops.multiply(a, used[0]))), w)
    used[0] = ops.tanh(w)
    ops.sum(out).backward()
    ops.sum(ops.tanh(ops.exp(ops.multiply(v, ops.exp(v))))).backward()
    assert w.grad.tobytes() == v.grad.tobytes()


def test_a_checkpointed_function_may_record_on_a_tape_of_its_own() -> None:
    w, v = leaf(0.1), leaf(0.1)

    def block(a: mb.Tensor) -> Any:
        with Tape():
            h = ops.exp(a)
        return ops.tanh(ops.exp(h))

    ops.sum(mb.checkpoint(block, ops.exp(w))).backward()
    ops.sum(block(ops.exp(v))).backward()
    assert w.grad.tobytes() == v.grad.tobytes()


def test_a_checkpoint_reaches_what_it_closes_over_in_another_thread(threads: Any) -> None:
    w = leaf(0.1)
    h = run(threads[0], ops.exp, w)

    def block(a: mb.Tensor) -> Any:
        return ops.exp(mb.checkpoint(lambda b: ops.tanh(ops.exp(ops.multiply(b, h))), a))

    loss = ops.sum(mb.checkpoint(block, w))
    run(threads[1], loss.backward)
    v = leaf(0.1)
    ops.sum(ops.exp(ops.tanh(ops.exp(ops.multiply(v, ops.exp(v)))))).backward()
    assert w.grad.tobytes() == v.grad.tobytes()

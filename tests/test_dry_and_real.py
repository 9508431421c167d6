"""What NumPy decides about an array's memory a dry run decides alike: whether it may be written to, whose it is."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

import memback as mb
from memback import nn, ops
from memback.dry.array import ShapeArray
from memback.dry.memory import dry_memory, fresh_dry_memory
from memback.engine.arrays import is_writeable, root
from memback.profiling.mode import Mode
from memback.profiling.step import Step

# -- arrays that NumPy lets nobody write to

VIEWS: dict[str, Callable[[Any], Any]] = {
    "broadcast_to": lambda a: np.broadcast_to(a, (3, 4)),
    "broadcast_to more": lambda a: np.broadcast_to(a, (2, 3, 4)),
    "a view of it": lambda a: np.broadcast_to(a, (3, 4))[1:],
    "its transpose": lambda a: np.broadcast_to(a, (3, 4)).T,
    "its reshape": lambda a: np.reshape(np.broadcast_to(a, (3, 4)), (4, 3)),
    "sliding_window_view": lambda a: np.lib.stride_tricks.sliding_window_view(a, 2, axis=0),
    "diagonal": np.diagonal,
    "transpose": np.transpose,
    "slice": lambda a: a[1:],
    "a copy": lambda a: np.broadcast_to(a, (3, 4)).copy(),
    "a sum": lambda a: np.broadcast_to(a, (3, 4)) + 1,
}


@pytest.mark.parametrize("name", VIEWS)
def test_an_array_without_memory_is_read_only_where_numpys_is(name: str) -> None:
    real, dry = (VIEWS[name](a) for a in (np.zeros((3, 4), np.float32), ShapeArray((3, 4))))
    assert is_writeable(dry) == is_writeable(real)
    assert dry.shape == real.shape


@pytest.mark.parametrize("make", [np.zeros, ShapeArray], ids=["real", "dry"])
def test_nothing_is_written_to_a_read_only_array(make: Any) -> None:
    target = np.broadcast_to(make((3, 4)), (3, 4))
    with pytest.raises(ValueError, match="read-only"):
        np.add(make((3, 4)), 1, out=target)
    with pytest.raises(ValueError, match="read-only"):
        target[0] = 1


REPEATED: dict[str, Callable[[Any], Any]] = {
    "sum": lambda h: ops.sum(h, 0),
    "sum, keepdim": lambda h: ops.sum(h, 0, True),
    "mean": lambda h: ops.mean(h, 0),
    "sum of everything": lambda h: ops.sum(h[:, :1]),
    "max": lambda h: ops.max(h, 0),
    "broadcast_to": lambda h: ops.broadcast_to(h, h.shape),
}


def two_uses(reduce: Callable[[Any], Any], x: mb.Tensor, first: bool) -> mb.Tensor:
    h = ops.tanh(x)
    uses = [lambda: ops.sum(ops.multiply(h, 3.0)), lambda: ops.sum(ops.multiply(reduce(h), 2.0))]
    one, two = uses if first else uses[::-1]
    total: mb.Tensor = ops.add(one(), two())
    return total


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("name", REPEATED)
def test_a_sum_over_a_dimension_of_one_beside_another_use_has_the_gradient_of_both(name: str, first: bool) -> None:
    x = mb.Tensor(np.full((1, 3), 0.5), requires_grad=True)
    two_uses(REPEATED[name], x, first).backward()
    weights = [5, 3, 3] if name == "sum of everything" else [5, 5, 5]
    np.testing.assert_allclose(x.grad, [np.multiply(weights, 1 - np.tanh(0.5) ** 2)], rtol=1e-12)


class Leaf(nn.Module):
    """One parameter."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.x = nn.Parameter(np.full(shape, 0.5, np.float32))


@pytest.mark.parametrize("name", ["sum", "mean", "sum of everything", "broadcast_to"])
def test_a_gradient_that_can_not_be_added_to_in_place_is_predicted_with_its_second_buffer(name: str) -> None:
    module = Leaf((1, 100_000))
    step = Step(lambda: two_uses(REPEATED[name], module.x, True), module)
    ledger = step.account(Mode("full")).ledger
    measured, _ = step.measure(Mode("full"), ledger)
    assert step.predict(Mode("full")).peak.bytes == pytest.approx(measured.bytes, abs=4096)


# -- numbers

INDICES: dict[str, Any] = {
    "numbers": (0, 0),
    "negative numbers": (-1, 2),
    "numpy's numbers": (np.int64(1), 0),
    "a number and a gap": (0, 0, ...),
    "a row": 0,
    "a slice": (0, slice(1)),
    "a new dimension": (0, 0, None),
    "an array without dimensions": (np.array(0), 0),
}


@pytest.mark.parametrize("name", INDICES)
def test_an_element_has_a_buffer_of_its_own_dry_where_it_has_for_real(name: str) -> None:
    for make in (np.zeros, ShapeArray):
        a: Any = make((3, 4))
        out = ops.getitem(a, INDICES[name])
        owns = root(out) is not root(a)
        assert owns == (name not in ("a number and a gap", "a row", "a slice", "a new dimension")), make
        assert out.shape == np.zeros((3, 4))[INDICES[name]].shape


def test_picking_an_element_of_an_array_without_dimensions_copies_it() -> None:
    for a in (np.zeros(()), ShapeArray(())):
        assert root(ops.getitem(a, ())) is not a


def test_assigning_to_an_element_takes_no_memory_on_a_dry_run() -> None:
    with fresh_dry_memory() as memory:
        a = ShapeArray((3, 4))
        a[0, 0] = 1.0
        assert memory.peak == a.nbytes


def test_elements_that_are_picked_keep_nothing_else_alive() -> None:
    module = Leaf((100, 100))

    def step() -> mb.Tensor:
        h, picked = module.x, []
        for _ in range(5):
            h = ops.sigmoid(h)
            picked.append(h[0, 0])
        total: mb.Tensor = ops.sum(ops.stack(picked))
        return total

    made = Step(step, module)
    for mode in (Mode("inference"), Mode("full")):
        account = made.account(mode)
        dry = made.predict(mode)
        assert dry.ledger.saved_at_end_of_forward == account.ledger.saved_at_end_of_forward
        assert dry.peak.bytes == pytest.approx(made.measure(mode, account.ledger)[0].bytes, abs=4096)


# -- what a checkpoint keeps after its backward


def test_a_checkpoint_lets_go_after_backward_of_what_its_function_closes_over() -> None:
    w = mb.Tensor(np.ones((50, 50)), requires_grad=True)
    with mb.Tape() as tape:
        h = ops.tanh(w)
        unused = ops.exp(h)  # is only in the closure, and no gradient comes to it
        ref, other = weakref.ref(h.data), weakref.ref(unused.data)
        out = mb.checkpoint(lambda a, u=unused, v=h: (ops.sum(ops.exp(ops.exp(ops.multiply(a, v)))), u.shape)[0], w)
        del h, unused
    out.backward()
    gc.collect()
    assert ref() is None
    assert other() is None
    assert tape.saved_bytes == 0


# -- an interrupt


def test_no_function_of_pythons_runs_when_an_array_without_memory_dies() -> None:
    """An interrupt that comes in one is printed and lost."""
    called: list[str] = []
    with fresh_dry_memory() as memory:
        array = ShapeArray((3, 4))
        view = array[1:]
        sys.setprofile(lambda frame, event, argument: called.append(event))
        del array, view
        sys.setprofile(None)
        assert "call" not in called
        assert memory.live == 0


def test_an_array_that_was_interrupted_while_it_was_made_dies_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    unraisable: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", unraisable.append)

    class Interrupted(ShapeArray):
        __slots__ = ()

        def _describe(self, shape: Any, dtype: Any) -> None:
            raise KeyboardInterrupt

    live = dry_memory().live
    for made in (lambda: ShapeArray.__new__(ShapeArray), lambda: Interrupted((3,))):
        with suppress(KeyboardInterrupt):
            made()
    assert not unraisable
    assert dry_memory().live == live


def test_arrays_that_die_in_a_cycle_or_in_another_thread_are_counted() -> None:
    with fresh_dry_memory() as memory:
        cycle: list[Any] = [ShapeArray((3, 4))]
        cycle.append(cycle)
        del cycle
        gc.collect()
        assert memory.live == 0
        box = [ShapeArray((3, 4))]
        assert memory.live == 48
        thread = threading.Thread(target=box.clear)
        thread.start()
        thread.join()
        assert memory.live == 0
        assert memory.peak == 48

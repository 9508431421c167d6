"""Computations that nobody designed (tests/random_graphs.py): what must hold for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import memback as mb
from memback.engine.op import REGISTRY
from memback.profiling import measuring
from memback.profiling.mode import Mode
from memback.profiling.step import Step as Profiled
from tests.ops.cases import CASES
from tests.ops.test_against_torch import to_torch
from tests.ops.test_every_op import OPS
from tests.random_graphs import BUILDERS, DTYPES, SEED, Graph, Model, Ref, draw, filled, loss, weights

pytestmark = [
    pytest.mark.filterwarnings("ignore::memback.engine.checkpoint.CheckpointWarning"),
    pytest.mark.filterwarnings("ignore::memback.profiling.precision.PrecisionWarning"),  # some are subnormal, or wide
]

FEW, MANY = range(2 * len(OPS)), range(2 * len(OPS), 810)
FEW_LARGE, MANY_LARGE = range(0, len(OPS), 6), range(100, 200)
NARROW = {"float16": 0.01, "bfloat16": 0.08}
MODES = ("full", "checkpoint", "inference", "retain-all")


@pytest.fixture(autouse=True, scope="module")
def quick_measurements() -> Iterator[None]:
    """Memory need not go back to the system."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "_give_back_free_memory", lambda: None)
        yield


def of_graphs(few: range, many: range) -> Callable[[Callable[[int], None]], Any]:
    """Run a test of a seed: for a few of them always, for many among the tests that take long."""

    def wrap(test: Callable[..., None]) -> Any:
        def run(seeds: range, request: Any) -> None:
            arguments = [request.getfixturevalue(name) for name in fixtures]
            for seed in seeds:
                try:
                    test(seed, *arguments)
                except BaseException as error:
                    error.add_note(f"the graph of seed {seed}")
                    raise

        fixtures = test.__code__.co_varnames[1 : test.__code__.co_argcount]
        run.__name__ = run.__qualname__ = test.__name__
        pieces = [pytest.param(many[i : i + 100], marks=pytest.mark.long) for i in range(0, len(many), 100)]
        return pytest.mark.parametrize("seeds", [few, *pieces], ids=str)(run)

    return wrap


def gradients(graph: Graph, checkpoints: bool = False) -> tuple[bytes, list[Any]]:
    """Bits of the loss, and the gradients of trained leaves; the tape holds nothing afterwards."""
    leaves = [mb.Tensor(leaf.array, requires_grad=leaf.trained) for leaf in graph.leaves]
    before = [leaf.array.tobytes() for leaf in graph.leaves]
    with mb.Tape() as tape:
        total = loss(graph, leaves, checkpoints)
        if total.requires_grad:
            total.backward()
        assert tape.saved_bytes == 0
    assert [leaf.array.tobytes() for leaf in graph.leaves] == before
    return total.data.tobytes(), [leaf.grad for leaf in leaves]


def test_every_op_can_be_drawn() -> None:
    assert sorted(BUILDERS) == OPS
    drawn = {step.op for seed in FEW for step in draw(seed).steps}
    assert drawn == set(OPS)


@of_graphs(FEW, MANY)
def test_gradients_are_what_differences_say(seed: int) -> None:
    graph = draw(seed)
    _, grads = gradients(graph)
    rng, expected, terms = np.random.default_rng(seed), 0.0, 1.0
    arrays = [leaf.array for leaf in graph.leaves]
    ahead, behind = list(arrays), list(arrays)
    for i, (leaf, grad) in enumerate(zip(graph.leaves, grads, strict=True)):
        if grad is None:
            continue
        assert leaf.trained
        assert (grad.shape, grad.dtype) == (leaf.array.shape, leaf.array.dtype)
        direction = rng.normal(size=leaf.array.shape)
        ahead[i], behind[i] = leaf.array + 1e-6 * direction, leaf.array - 1e-6 * direction
        expected += np.sum(grad * direction)
        terms += np.sum(np.abs(grad * direction))
    slope = (loss(graph, ahead) - loss(graph, behind)) / 2e-6
    assert abs(slope - expected) <= 1e-6 * terms


@of_graphs(FEW, MANY)
def test_checkpoints_change_no_bit(seed: int) -> None:
    graph = draw(seed).cast(list(DTYPES.values())[seed % 4])
    plain, under = gradients(graph), gradients(graph, checkpoints=True)
    assert plain[0] == under[0]
    for one, other in zip(plain[1], under[1], strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            assert one.tobytes() == other.tobytes()


@of_graphs(FEW, MANY)
def test_a_graph_that_two_threads_have_made_has_the_same_gradients(seed: int) -> None:
    """Each of two threads computes the loss of half of the ends, and this one their sum's gradients."""
    graph = draw(seed)
    halves = [graph._replace(ends=graph.ends[::2]), graph._replace(ends=graph.ends[1::2] or graph.ends[:1])]
    leaves = [mb.Tensor(leaf.array, requires_grad=leaf.trained) for leaf in graph.leaves]
    with ThreadPoolExecutor(2) as threads:
        one, two = threads.map(lambda half: loss(half, leaves), halves)
    total = one + two
    if total.requires_grad:
        total.backward()
    alone = [gradients(half)[1] for half in halves]
    for leaf, first, second in zip(leaves, *alone, strict=True):
        expected = sum(grad for grad in (first, second) if grad is not None)
        np.testing.assert_allclose(0 if leaf.grad is None else leaf.grad, expected, rtol=1e-9, atol=1e-9)


def _rows(ledger: Any) -> list[tuple[Any, ...]]:
    return [
        (row.path, row.op, row.output_shape, row.dtype, row.saved_bytes, row.shared_bytes, row.flops)
        for row in ledger.rows
    ]


def _accounts(seed: int, large: bool, modes: tuple[str, ...]) -> Iterator[tuple[Profiled, Mode, Any, Any]]:
    """The graph of a seed as a step: in each mode its account and its prediction, which agree."""
    graph = draw(seed, large).cast(list(DTYPES.values())[seed // 2 % 4])
    model = Model(graph, checkpoints=True)
    if not model().requires_grad:
        return
    step = Profiled(model, model)
    shas = set()
    for mode in map(Mode, modes):
        account, prediction = step.account(mode), step.predict(mode)
        real, dry = account.ledger, prediction.ledger
        shas |= {account.gradient_sha256} - {None}
        assert real.saved_at_end_of_forward == dry.saved_at_end_of_forward
        if mode.name != "checkpoint":  # which holds the inputs themselves on a dry run, beside what stands for them
            assert real.input_bytes == dry.input_bytes
        assert _rows(real) == _rows(dry)
        assert sum(row.saved_bytes for row in real.rows) == real.saved_at_end_of_forward
        kept = {value.buffer: value.bytes for row in real.rows for value in row.saved}
        assert sum(kept.values()) == real.saved_at_end_of_forward
        assert sum(prediction.peak.parts.values()) == prediction.peak.bytes
        for ledger in (real, dry):
            assert max((event.live_bytes for event in ledger.events), default=0) <= prediction.peak.bytes
        yield step, mode, account, prediction
    assert len(shas) == 1


@of_graphs(FEW, MANY)
def test_a_dry_run_foresees_every_row(seed: int) -> None:
    for _ in _accounts(seed, False, MODES):
        pass


@of_graphs(FEW_LARGE, MANY_LARGE)
def test_a_dry_run_foresees_the_peak(seed: int) -> None:
    for step, mode, account, prediction in _accounts(seed, True, MODES[:3]):
        measured, _ = step.measure(mode, account.ledger)
        assert abs(measured.bytes - prediction.peak.bytes) <= measured.bytes / 100 + 64 * 1024, mode


# -- against PyTorch


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


def _of_torch(torch: Any, graph: Graph) -> list[Any]:
    """PyTorch's gradients of the trained leaves."""
    leaves = [to_torch(torch, leaf.array.copy()).requires_grad_(leaf.trained) for leaf in graph.leaves]
    values = {Ref(-1 - i): leaf for i, leaf in enumerate(leaves)}
    for number, (op, args, kwargs) in enumerate(graph.steps):
        given = _converted(torch, filled(args, values.__getitem__))
        backwards = (
            op == "getitem" and isinstance(given[1], slice) and given[1].step == -1
        )  # which PyTorch does not take
        out = torch.flip(given[0], (0,)) if backwards else CASES[op].torch(torch, *given, **kwargs)
        values.update({Ref(number, i): v for i, v in enumerate(out if REGISTRY[op].multiple else [out])})
    total = None
    for ref in graph.ends:
        weight = torch.tensor(weights(tuple(values[ref].shape), np.dtype(np.float64))).to(values[ref].dtype)
        part = torch.sum(values[ref] * weight)
        total = part if total is None else total + part
    if total is not None and total.requires_grad:
        total.backward()
    return [leaf.grad for leaf in leaves]


def _converted(torch: Any, value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return to_torch(torch, value.astype(np.int64) if value.dtype == np.int32 else value)
    return type(value)(_converted(torch, v) for v in value) if type(value) in (list, tuple) else value


def _apart(found: Any, expected: Any) -> float:
    return float(np.max(np.abs(np.asarray(found, np.float64) - expected), initial=0))


@pytest.mark.torch
@of_graphs(FEW, MANY)
def test_gradients_are_pytorchs(seed: int, torch: Any) -> None:
    """In float64 the same; in narrower types not much further than PyTorch's from those."""
    graph = draw(seed)
    mb.manual_seed(SEED)
    right = gradients(graph)[1]
    for one, other in zip(right, _of_torch(torch, graph), strict=True):
        if one is not None:
            assert _apart(other.numpy(), one) <= 1e-8 * np.max(np.abs(one), initial=1)
    for name, tolerance in NARROW.items():
        narrow = graph.cast(DTYPES[name])
        rounded = gradients(narrow.cast(np.float64))[1]
        for ours, theirs, exact in zip(gradients(narrow)[1], _of_torch(torch, narrow), rounded, strict=True):
            if ours is not None:
                scale = tolerance * max(1.0, float(np.max(np.abs(exact), initial=0)))
                assert _apart(ours, exact) <= 4 * _apart(theirs.double().numpy(), exact) + scale, name

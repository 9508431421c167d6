"""Compiled kernels against the same ops in float64, and their bytes against a dry run's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import memback as mb
from memback import ops
from memback.errors import MembackError
from memback.ops import compiled
from tests.ops.test_workspace import OBJECTS, measured, predicted

ULP = float(np.finfo(np.float32).eps)

numba = pytest.mark.skipif(
    __import__("importlib.util").util.find_spec("numba") is None, reason="Numba is not installed (the extra fast)"
)


@pytest.fixture
def in_use() -> Iterator[None]:
    mb.use_compiled_kernels()
    yield
    mb.use_compiled_kernels(False)


CALLS: dict[str, Callable[[Any], tuple[Any, tuple[Any, ...]]]] = {
    "gelu": lambda x: (ops.gelu, (x,)),
    "gelu by a tanh": lambda x: (ops.gelu, (x, "tanh")),
    "silu": lambda x: (ops.silu, (x,)),
    "softmax": lambda x: (ops.softmax, (x,)),
    "attention_softmax": lambda x: (ops.attention_softmax, (x, 0.3)),
    "causal attention_softmax": lambda x: (ops.attention_softmax, (x, 0.3, True)),
    "layer_norm": lambda x: (ops.layer_norm, (x, x.shape[-1], x[0, 0] + 1, x[-1, -1])),
    "rms_norm": lambda x: (ops.rms_norm, (x, x.shape[-1], x[0, 0] + 1, 1e-5)),
}
"""An op and its arguments, for an input of three dimensions."""


def both(name: str, x: Any, d_out: Any) -> list[Any]:
    """Output and gradients."""
    op, args = CALLS[name](x)
    grads = op.backward(d_out, *args)
    return [op(*args), *(g for g in (grads if isinstance(grads, tuple) else (grads,)) if g is not None)]


@numba
@pytest.mark.usefixtures("in_use")
@pytest.mark.parametrize("name", CALLS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 70)),
    size=st.sampled_from([0.1, 1.0, 10.0]),
    seed=st.integers(0, 2**16),
)
def test_kernels_agree_with_numpy_in_double_precision(
    name: str, shape: tuple[int, ...], size: float, seed: int
) -> None:
    assume("norm" not in name or shape[-1] >= 8)  # dividing by the deviation of few numbers magnifies any rounding
    rng = np.random.default_rng(seed)
    x, d_out = (rng.standard_normal(shape, np.float32) for _ in range(2))
    x *= np.float32(size)
    kernels = both(name, x, d_out)
    exact = both(name, x.astype(np.float64), d_out.astype(np.float64))
    mb.use_compiled_kernels(False)
    numpys = both(name, x, d_out)
    mb.use_compiled_kernels()
    for got, other, expected in zip(kernels, numpys, exact, strict=True):
        assert got.dtype == np.float32
        allowed = 16 * ULP * (1 + float(np.abs(expected).max()))
        assert np.abs(got - expected).max() <= max(allowed, 2 * float(np.abs(other - expected).max()))


@numba
@pytest.mark.usefixtures("in_use")
@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_number_stays_where_numpy_has_it(name: str) -> None:
    x = np.linspace(-3, 3, 2 * 8 * 40, dtype=np.float32).reshape(2, 8, 40)
    x[0, 1, 3], x[0, 2, 4], x[1, 3, 0], x[1, 4] = np.nan, np.inf, -np.inf, -np.inf
    with np.errstate(all="ignore"):
        mine = both(name, x, np.ones_like(x))
        mb.use_compiled_kernels(False)
        numpys = both(name, x, np.ones_like(x))
    for a, b in zip(mine, numpys, strict=True):
        assert np.array_equal(np.isnan(a), np.isnan(b))


@numba
def test_the_gradient_of_an_embedding_is_the_same_bits() -> None:
    rng = np.random.default_rng(0)
    numbers, weight = rng.integers(0, 9, (4, 50)), rng.standard_normal((9, 33), np.float32)
    d_out = rng.standard_normal((4, 50, 33), np.float32)
    expected = ops.embedding.backward(d_out, numbers, weight)[1]
    mb.use_compiled_kernels()
    got = ops.embedding.backward(d_out, numbers, weight)[1]
    mb.use_compiled_kernels(False)
    assert np.array_equal(got, expected)


SHAPE = (4, 90, 512)
WORK = {
    "gelu": (ops.gelu, (SHAPE,), {}),
    "gelu by a tanh": (ops.gelu, (SHAPE, "tanh"), {}),
    "silu": (ops.silu, (SHAPE,), {}),
    "softmax": (ops.softmax, (SHAPE,), {}),
    "attention_softmax": (ops.attention_softmax, (SHAPE, 0.3, True), {}),
    "layer_norm": (ops.layer_norm, (SHAPE, 512, (512,), (512,)), {}),
    "rms_norm": (ops.rms_norm, (SHAPE, 512, (512,)), {}),
    "layer_norm without parameters": (ops.layer_norm, (SHAPE, 512), {}),
}


@numba
@pytest.mark.usefixtures("in_use")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", WORK)
def test_a_dry_run_predicts_the_peak_with_kernels(name: str, dtype: str) -> None:
    op, args, kwargs = WORK[name]
    for seen, expected in zip(
        measured(op, args, kwargs, np.dtype(dtype)), predicted(op, args, kwargs, np.dtype(dtype)), strict=True
    ):
        assert expected <= seen <= expected + OBJECTS


@numba
@pytest.mark.usefixtures("in_use")
@pytest.mark.parametrize("policy", [None, "all"])
def test_a_gpt_holds_what_was_predicted_and_has_the_same_gradients_checkpointed(policy: str | None) -> None:
    model = mb.models.GPT(layers=2, width=64, heads=2, vocabulary=50, context=32)
    x = np.random.default_rng(0).integers(0, 50, (8, 33))
    modes = ("full",) if policy is None else ("full", "checkpoint")
    report = mb.profile(model, step=lambda: model.loss(x), modes=modes, policy=policy)
    runs = report.runs
    assert report.machine["compiled_kernels"]
    assert len({run.gradient_sha256 for run in runs}) == 1
    for run in runs:
        assert 0 <= run.measured_peak_bytes - run.predicted_peak_bytes <= 4096  # of 2.6 MB


@numba
@pytest.mark.usefixtures("in_use")
def test_what_a_kernel_cannot_read_is_left_to_numpy() -> None:
    x = np.linspace(-3, 3, 24, dtype=np.float32).reshape(4, 6)
    fixed = x.copy()
    fixed.flags.writeable = False
    misaligned = np.frombuffer(b"\0" + x.tobytes(), np.float32, offset=1).reshape(4, 6)
    expected = ops.gelu(x, "tanh")
    for same in (fixed, misaligned):
        assert np.allclose(ops.gelu(same, "tanh"), expected, atol=1e-6)
    assert np.allclose(ops.gelu(x.T, "tanh"), expected.T, atol=1e-6)
    assert ops.gelu(x[:0], "tanh").shape == (0, 6)


@numba
def test_the_setting_can_be_undone() -> None:
    x = np.linspace(-3, 3, 1000, dtype=np.float32)
    before = ops.gelu(x, "tanh")
    mb.use_compiled_kernels()
    assert compiled.run("gelu_tanh", x, np.empty_like(x))
    mb.use_compiled_kernels(False)
    assert not compiled.run("gelu_tanh", x, np.empty_like(x))
    assert np.array_equal(ops.gelu(x, "tanh"), before)


def test_without_numba_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "memback.ops.kernels", raising=False)
    with pytest.raises(MembackError, match=r"pip install 'numba>=0\.63'"):
        mb.use_compiled_kernels()


NOWHERE = """
from numba.core import caching
caching.CacheImpl._locator_classes = []
import numpy as np
import memback as mb
mb.use_compiled_kernels()
print(mb.ops.gelu(np.ones(1, np.float32))[0] > 0.8)
"""


@numba
def test_kernels_that_can_be_kept_nowhere_are_compiled_anew() -> None:
    run = subprocess.run([sys.executable, "-c", NOWHERE], capture_output=True, text=True, check=True)
    assert run.stdout == "True\n"

"""What normalisations keep, and the side effect of batch norm."""

from __future__ import annotations

import ml_dtypes  # noqa: F401 - makes np.dtype know bfloat16
import numpy as np
import pytest

import memback as mb
from memback.dry.array import ShapeArray
from memback.dry.memory import dry_memory
from memback.engine.checkpoint import checkpoint
from memback.engine.op import OpError
from memback.engine.tensor import Tensor
from memback.ops.normalisation import batch_norm, group_norm, layer_norm, rms_norm

CALLS = {
    "layer_norm": (layer_norm, (8,), (6, 8), {}),
    "rms_norm": (rms_norm, (8,), (6, 8), {}),
    "group_norm": (group_norm, (2,), (3, 8, 5), {}),
    "batch_norm": (batch_norm, (None, None), (6, 8), {"training": True}),
}
"""Op, arguments after the input, the input's shape, keyword arguments."""


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_output_has_the_inputs_dtype_and_the_numbers_kept_are_float32_at_least(name, dtype, rng):
    op, args, shape, kwargs = CALLS[name]
    x = rng.normal(size=shape).astype(np.dtype(dtype))
    out, *numbers = op.forward(x, *args, **kwargs)
    assert out.dtype == x.dtype
    assert out.shape == shape
    wide = np.float64 if dtype == "float64" else np.float32
    assert {n.dtype for n in numbers if n is not None} == {np.dtype(wide)}


@pytest.mark.parametrize(
    ("name", "count"), [("layer_norm", 12), ("rms_norm", 6), ("group_norm", 12), ("batch_norm", 16)]
)
def test_besides_the_input_only_one_or_two_numbers_a_mean_are_kept(name, count, rng):
    op, args, shape, kwargs = CALLS[name]
    _, *numbers = op.forward(rng.normal(size=shape).astype("float32"), *args, **kwargs)
    assert sum(n.size for n in numbers) == count


@pytest.mark.parametrize("op", [layer_norm, rms_norm, group_norm, batch_norm])
def test_the_weight_is_kept_only_where_the_input_needs_a_gradient(op):
    bits = {name: 1 << k for k, name in enumerate(op.inputs)}
    everything = sum(bits[name] for name in op.saves)
    assert "weight" in op.saving(everything, len(bits)).names
    assert "weight" not in op.saving(bits["weight"], len(bits)).names
    if "bias" in bits:
        assert op.saving(bits["bias"], len(bits)).names == ()


@pytest.mark.parametrize("name", CALLS)
def test_float16_is_normalised_in_float32(name, rng):
    op, args, shape, kwargs = CALLS[name]
    x = (rng.normal(size=shape) * 300 + 2000).astype("float16")  # whose squares are too large for float16
    exact = op(x.astype("float64"), *args, **kwargs)
    np.testing.assert_allclose(op(x, *args, **kwargs), exact, atol=2e-3)


@pytest.mark.parametrize("name", ["layer_norm", "rms_norm", "group_norm", "batch_norm"])
def test_no_temporary_of_the_inputs_size_is_made(name):
    op, args, _, kwargs = CALLS[name]
    shape = (4096, 64, 64) if name in ("group_norm", "batch_norm") else (2**21, 8)
    memory = dry_memory()
    x, before = ShapeArray.argument(shape), memory.live
    memory.reset_peak()
    out, *numbers = op.forward(x, *args, **kwargs)
    kept = out.nbytes + sum(n.nbytes for n in numbers if n is not None)
    assert memory.peak - before < kept + 2**21


def test_more_than_one_piece_of_work_gives_what_one_gives(monkeypatch, rng):
    x = rng.normal(size=(5, 4, 3))
    d_out, weight, bias = rng.normal(size=x.shape), rng.normal(size=4), rng.normal(size=4)
    calls = (group_norm, (2, weight, bias)), (batch_norm, (None, None, weight, bias, True))

    def everything():
        return [g for op, args in calls for g in op.backward(d_out, x, *args) if g is not None]

    whole = everything()
    monkeypatch.setattr("memback.ops.workspace.PIECE", 1)
    for one, other in zip(whole, everything(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)


# -- batch norm's running statistics


@pytest.fixture
def running():
    return np.zeros(3), np.ones(3)


def test_training_moves_the_running_statistics_in_place_by_the_unbiased_variance(running, rng):
    x = rng.normal(size=(7, 3, 2))
    batch_norm(x, *running, training=True, momentum=0.25)
    flat = x.swapaxes(0, 1).reshape(3, -1)
    np.testing.assert_allclose(running[0], 0.25 * flat.mean(1))
    np.testing.assert_allclose(running[1], 0.75 + 0.25 * flat.var(1, ddof=1))


def test_outside_of_training_they_stay_and_are_used(running, rng):
    x = rng.normal(size=(7, 3))
    running[0][:] = 2
    np.testing.assert_allclose(batch_norm(x, *running, eps=0.0), x - 2)
    np.testing.assert_array_equal(running, [[2] * 3, [1] * 3])


def test_a_checkpoint_moves_them_once(running, rng):
    x = rng.normal(size=(7, 3))
    expected = running[0].copy(), running[1].copy()
    batch_norm(x, *expected, training=True)
    leaf = Tensor(x, requires_grad=True)
    out = checkpoint(lambda h: mb.ops.multiply(batch_norm(h, *running, training=True), h), leaf)
    out.backward(np.ones_like(x))
    np.testing.assert_array_equal(running, expected)
    plain = Tensor(x, requires_grad=True)
    mb.ops.multiply(batch_norm(plain, None, None, training=True), plain).backward(np.ones_like(x))
    np.testing.assert_array_equal(leaf.grad, plain.grad)


def test_backward_and_jacobian_do_not_move_them(running, rng):
    x = rng.normal(size=(4, 3))
    batch_norm.backward(x, x, *running, training=True)
    batch_norm.jacobian(x, *running, training=True)
    np.testing.assert_array_equal(running, [[0] * 3, [1] * 3])
    assert not mb.is_recomputing()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: batch_norm(x, None, None), "`running_mean` and `running_var` are needed"),
        (lambda x: batch_norm(x[:1], None, None, training=True), "more than one value a channel"),
        (lambda x: batch_norm(x[0], None, None, training=True), r"must have shape \(N, C\)"),
        (lambda x: group_norm(x, 2), r"channels \(=3\) must be divisible by `num_groups` \(=2\)"),
        (
            lambda x: layer_norm(x, (4,)),
            r"`normalized_shape` \(=\(4,\)\) must end the input's shape, which is \(4, 3\)",
        ),
        (lambda x: layer_norm(x, 3, np.ones(4)), r"`weight` has shape \(4,\), it must have \(3,\)"),
    ],
)
def test_a_wrong_call_names_value_and_remedy(call, message):
    with pytest.raises(OpError, match=message):
        call(np.zeros((4, 3)))


@pytest.mark.parametrize("norm", [layer_norm, rms_norm])
def test_rows_of_no_features_are_normalised_to_themselves(norm):
    with np.errstate(invalid="ignore"):  # the mean of nothing is no number
        assert norm(np.zeros((3, 0), np.float32), 0).shape == (3, 0)


# -- what batch norm keeps outside of training


def evaluated(rng, wanted, shape=(7, 3, 4), weight=True):
    """Input, weight and bias, of which the ``wanted`` require gradients, and the op as a function of the input."""
    arrays = {"input": rng.normal(size=shape), "weight": rng.normal(size=3), "bias": rng.normal(size=3)}
    tensors = {name: Tensor(array, requires_grad=name in wanted) for name, array in arrays.items()}
    mean, variance = rng.normal(size=3), rng.uniform(0.5, 2, size=3)
    parameters = (tensors["weight"], tensors["bias"]) if weight else (None, None)
    return tensors, lambda x: batch_norm(x, mean, variance, *parameters, eps=1e-3)


KEPT = {
    ("input",): {"weight", "running_var"},
    ("weight",): {"input", "running_mean", "running_var"},
    ("bias",): set(),
    ("input", "bias"): {"weight", "running_var"},
    ("input", "weight", "bias"): {"input", "weight", "running_mean", "running_var"},
}


@pytest.mark.parametrize("wanted", KEPT)
def test_outside_of_training_only_what_the_wanted_gradients_need_is_kept(wanted, rng):
    tensors, call = evaluated(rng, wanted)
    out = call(tensors["input"])
    assert {name for name, _ in out.node.saved()} == KEPT[wanted]
    everything, same = evaluated(np.random.default_rng(0), ("input", "weight", "bias"))
    d_out = rng.normal(size=out.shape)
    out.backward(d_out)
    same(everything["input"]).backward(d_out)
    for name, tensor in tensors.items():
        if name in wanted:
            assert tensor.grad.tobytes() == everything[name].grad.tobytes()
        else:
            assert tensor.grad is None


@pytest.mark.parametrize("wanted", [("input",), ("weight",), ("input", "weight", "bias")])
def test_in_training_the_running_statistics_are_not_kept(wanted, rng):
    x, w, b = (Tensor(a, requires_grad=True) for a in (rng.normal(size=(7, 3)), np.ones(3), np.zeros(3)))
    for name, tensor in (("input", x), ("weight", w), ("bias", b)):
        tensor.requires_grad = name in wanted
    out = batch_norm(x, np.zeros(3), np.ones(3), w, b, training=True)
    assert {name for name, _ in out.node.saved()} == {"input", "mean", "rstd"} | ({"weight"} & KEPT[wanted])


@pytest.mark.parametrize("weight", [True, False])
def test_the_gradient_by_the_input_alone_is_that_of_finite_differences(weight, rng):
    tensors, call = evaluated(rng, ("input",), weight=weight)
    x = tensors["input"]
    d_out = rng.normal(size=x.shape)
    call(x).backward(d_out)
    for index in [(0, 0, 0), (3, 1, 2), (6, 2, 3)]:
        moved = x.data.copy()
        moved[index] += 1e-6
        slope = np.sum(d_out * (call(Tensor(moved)).data - call(Tensor(x.data)).data)) / 1e-6
        assert x.grad[index] == pytest.approx(slope, rel=1e-5)


def test_a_frozen_batch_norm_in_evaluation_saves_no_activation_dry_or_real(rng):
    conv, norm = mb.nn.Conv2d(3, 4, 3), mb.nn.BatchNorm2d(4)
    model = mb.nn.Sequential(conv, norm, mb.nn.Conv2d(4, 2, 3))
    model.eval()
    norm.requires_grad_(False)
    x = rng.normal(size=(2, 3, 9, 9)).astype(np.float32)

    def step():
        return mb.ops.sum(model(Tensor(x)))

    report = mb.profile(model, step=step, modes=("full",), rounds=0)
    with mb.dry_run():
        dry = mb.profile(model, step=step, modes=("full",))
    (run,) = report.runs
    assert run.saved_bytes == dry.runs[0].saved_bytes == 2 * 4 * 7 * 7 * 4  # what the last layer needs
    assert run.predicted_peak_bytes == pytest.approx(run.measured_peak_bytes, abs=4096)

"""Every model's gradients against finite differences, and what is common to all models."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import memback as mb
from memback import models
from tests.models.small import MODELS, batch

STEP = 1e-7


def losses_around(model, x, y, parameter, direction):
    """The losses a step before and a step behind, with the same dropout."""
    before = parameter.data.copy()
    values = []
    for sign in (-1, 1):
        parameter.data[...] = before + sign * STEP * direction
        mb.manual_seed(5)
        values.append(float(model.loss(x, y).data))
    parameter.data[...] = before
    return values


@pytest.mark.parametrize("name", MODELS)
def test_gradients_agree_with_finite_differences_along_random_directions(name):
    mb.manual_seed(0)
    model = MODELS[name]("float64")
    x, y = batch(name, "float64")
    mb.manual_seed(5)
    model.loss(x, y).backward()
    rng = np.random.default_rng(0)
    with mb.no_grad():
        for path, parameter in model.named_parameters():
            direction = rng.standard_normal(parameter.shape)
            low, high = losses_around(model, x, y, parameter, direction)
            expected = float(np.sum(parameter.grad * direction))
            assert (high - low) / (2 * STEP) == pytest.approx(expected, rel=2e-4, abs=2e-7), path


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_computes_in_the_dtype_that_it_was_made_in(name, dtype):
    mb.manual_seed(0)
    model = MODELS[name](dtype)
    wanted = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    x, y = batch(name, wanted)
    with mb.Tape() as tape:
        loss = model.loss(x, y)
    loss.backward()
    assert loss.dtype == wanted
    assert {p.grad.dtype for p in model.parameters()} == {wanted}
    assert {row.dtype for row in tape.rows()} <= {dtype, "int64"}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_without_memory_says_the_same_of_a_step_as_one_with(name):
    mb.manual_seed(0)
    model = MODELS[name]("float32")
    x, y = batch(name, "float32")
    with mb.Tape() as tape:
        model.loss(x, y)
    with mb.dry_run():
        dry = MODELS[name]("float32")
        with mb.Tape() as dry_tape:
            dry.loss(mb.ShapeArray.argument(x.shape, x.dtype), mb.ShapeArray.argument(y.shape, y.dtype))
    assert [(r.path, r.op, r.saved_bytes) for r in dry_tape.rows()] == [
        (r.path, r.op, r.saved_bytes) for r in tape.rows()
    ]
    assert {n: (p.shape, p.dtype) for n, p in dry.named_parameters()} == {
        n: (p.shape, p.dtype) for n, p in model.named_parameters()
    }


@pytest.mark.parametrize("name", [n for n in MODELS if n != "notes_network"])
def test_correct_tells_for_each_target_whether_it_was_met(name):
    mb.manual_seed(0)
    model = MODELS[name]("float32").eval()
    x, y = batch(name, "float32")
    with mb.no_grad():
        best = np.argmax(model(x).data, axis=model.class_dim)
        assert model.correct(x, best).all()
        assert model.correct(x, best).shape == y.shape
        assert not model.correct(x, best + 1).any()


def test_a_gpt_without_targets_predicts_the_next_tokens_of_its_input_without_copying_them():
    mb.manual_seed(0)
    model = models.GPT(1, 8, 2, 7, 5)
    text = np.random.default_rng(0).integers(0, 7, (2, 6))
    with mb.Tape() as tape:
        loss = model.loss(text)
    assert loss.data == model.loss(text[:, :-1], text[:, 1:]).data
    assert all(row.saved_bytes == 0 for row in tape.rows() if row.dtype == "int64")


def test_a_gpt_refuses_a_sequence_beyond_its_context():
    with pytest.raises(ValueError, match=r"7 tokens is longer than `context` \(=6\)"):
        MODELS["gpt"]("float32")(np.zeros((1, 7), int))


def test_a_gpt_sees_no_later_token():
    mb.manual_seed(0)
    for name in ("gpt", "llama"):
        model = MODELS[name]("float64").eval()
        text = np.array([[1, 2, 3, 4, 5]])
        other = np.array([[1, 2, 3, 0, 6]])
        with mb.no_grad():
            np.testing.assert_array_equal(model(text).data[:, :3], model(other).data[:, :3])


def test_dropout_is_off_in_evaluation():
    mb.manual_seed(0)
    model = MODELS["gpt"]("float32")
    x, y = batch("gpt", "float32")
    assert model.loss(x, y).data != model.loss(x, y).data
    model.eval()
    assert model.loss(x, y).data == model.loss(x, y).data


def test_the_notes_network_is_the_notes_equation_11():
    mb.manual_seed(0)
    model = MODELS["notes_network"]("float64")
    x, y = batch("notes_network", "float64")
    w1, b1, w2, b2, w3, b3 = (p.data for p in model.parameters())
    h1 = np.maximum(x @ w1 + b1, 0)
    h2 = np.maximum(h1 @ w2 + b2, 0)
    assert float(model.loss(x, y)) == pytest.approx(0.5 * np.sum((h2 @ w3 + b3 - y) ** 2))


def test_unet_says_which_images_fit():
    with pytest.raises(ValueError, match="both must be divisible by 4"):
        MODELS["unet"]("float32")(np.zeros((1, 2, 10, 8), np.float32))

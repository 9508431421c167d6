from __future__ import annotations

import math

import numpy as np
import pytest

import memback as mb
from memback import nn, ops
from memback.errors import MembackError
from memback.optim import PIECE, SGD, AdamW

SHAPES = {"matrix": (7, 5), "vector": (4,), "number": (), "nothing": (0, 3)}


def parameter(shape, seed=0):
    return nn.Parameter(np.asarray(np.random.default_rng(seed).standard_normal(shape)))


def gradients(shape, count=4):
    random = np.random.default_rng(1)
    return [np.asarray(random.standard_normal(shape)) for _ in range(count)]


def run(optimizer, p, grads):
    for grad in grads:
        p.grad = grad.copy()
        optimizer.step()
    return p.data


def sgd(p, grads, lr, momentum, weight_decay, nesterov):
    """PyTorch's documentation of SGD, line by line (dampening 0)."""
    p, b = p.copy(), None
    for g in grads:
        g = g + weight_decay * p
        if momentum != 0:
            b = g.copy() if b is None else momentum * b + g
            g = g + momentum * b if nesterov else b
        p = p - lr * g
    return p


def adamw(p, grads, lr, betas, eps, weight_decay):
    """PyTorch's documentation of AdamW, line by line."""
    p, m, v = p.copy(), np.zeros_like(p), np.zeros_like(p)
    for t, g in enumerate(grads, 1):
        p = p - lr * weight_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        p = p - lr * m_hat / (np.sqrt(v_hat) + eps)
    return p


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_follows_its_formula(shape, momentum, weight_decay, nesterov):
    if nesterov and not momentum:
        return
    p, settings = parameter(shape), {"momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
    expected = sgd(p.data, gradients(shape), 0.1, **settings)
    np.testing.assert_allclose(run(SGD([p], 0.1, **settings), p, gradients(shape)), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.5)])
def test_adamw_follows_its_formula(shape, weight_decay, betas):
    p = parameter(shape)
    expected = adamw(p.data, gradients(shape), 0.01, betas, 1e-8, weight_decay)
    found = run(AdamW([p], 0.01, betas, weight_decay=weight_decay), p, gradients(shape))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("make", [lambda p: SGD(p, 0.1, momentum=0.9), AdamW], ids=["sgd", "adamw"])
@pytest.mark.parametrize("shape", [(3 * PIECE + 17,), (5, PIECE // 2 + 1)])
def test_an_update_in_pieces_is_the_update_of_the_whole(make, shape):
    whole, rows = parameter(shape), [parameter(shape) for _ in range(2)]
    grads = gradients(shape, 2)
    run(make([whole]), whole, grads)
    few = slice(0, 3)
    part = nn.Parameter(rows[0].data[few].copy())
    run(make([part]), part, [grad[few] for grad in grads])
    np.testing.assert_array_equal(whole.data[few], part.data)
    last = slice(-3, None)
    part = nn.Parameter(rows[1].data[last].copy())
    run(make([part]), part, [grad[last] for grad in grads])
    np.testing.assert_array_equal(whole.data[last], part.data)


def test_parameters_are_changed_in_place_and_gradients_are_not():
    p, (grad,) = parameter((3, 2)), gradients((3, 2), 1)
    array, p.grad = p.data, grad
    before, grad_before = array.copy(), grad.copy()
    SGD([p], 0.1, momentum=0.9, weight_decay=0.1, nesterov=True).step()
    assert p.data is array
    assert not np.array_equal(array, before)
    assert p.grad is grad
    np.testing.assert_array_equal(grad, grad_before)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_state_is_made_at_once_in_the_parameters_dtype(dtype):
    model = nn.Linear(3, 4, dtype=dtype)
    size = sum(p.nbytes for p in model.parameters())
    assert SGD(model.parameters(), 0.1).state_bytes == 0
    assert SGD(model.parameters(), 0.1, momentum=0.9).state_bytes == size
    assert AdamW(model.parameters()).state_bytes == 2 * size


def test_frozen_parameters_have_no_state_and_stay():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    before = model[0].weight.data.copy()
    optimizer = AdamW(model.parameters())
    assert optimizer.state_bytes == 2 * sum(p.nbytes for p in model[1].parameters())
    ops.sum(model(mb.Tensor(np.ones((2, 2), np.float32)))).backward()
    optimizer.step()
    np.testing.assert_array_equal(model[0].weight.data, before)


def test_a_parameter_without_a_gradient_is_left_alone_and_its_steps_are_its_own():
    a, b = parameter((3,)), parameter((3,), seed=5)
    optimizer = AdamW([a, b], 0.1, weight_decay=0.5)
    before = b.data.copy()
    grads = gradients((3,), 3)
    run(optimizer, a, grads[:2])
    np.testing.assert_array_equal(b.data, before)
    a.grad = None
    expected = adamw(b.data, grads[2:], 0.1, (0.9, 0.999), 1e-8, 0.5)
    np.testing.assert_allclose(run(optimizer, b, grads[2:]), expected, rtol=1e-12)


def test_zero_grad_drops_gradients():
    p = parameter((2,))
    p.grad = np.ones(2)
    SGD([p], 0.1).zero_grad()
    assert p.grad is None


@pytest.mark.parametrize("make", [lambda p: SGD(p, 0.1, momentum=0.9), AdamW], ids=["sgd", "adamw"])
def test_a_loaded_state_goes_on_to_the_same_bits(make):
    grads = gradients((4, 3), 6)
    whole = parameter((4, 3))
    run(make([whole]), whole, grads)
    first = parameter((4, 3))
    before = make([first])
    run(before, first, grads[:3])
    second = nn.Parameter(first.data.copy())
    after = make([second])
    after.load_state_dict(before.state_dict())
    run(before, first, grads[:1])  # the copy does not follow
    np.testing.assert_array_equal(run(after, second, grads[3:]), whole.data)


def test_a_state_of_another_optimiser_or_model_is_refused_and_changes_nothing():
    p = parameter((2, 2))
    optimizer = AdamW([p])
    run(optimizer, p, gradients((2, 2), 1))
    before = {name: np.array(array) for name, array in optimizer.state_dict().items()}
    for other in (SGD([p], 0.1, momentum=0.9), AdamW([parameter((3, 2))]), AdamW([p, parameter((1,))])):
        with pytest.raises(MembackError, match="the state does not fit"):
            optimizer.load_state_dict(other.state_dict())
    for name, array in optimizer.state_dict().items():
        np.testing.assert_array_equal(array, before[name])


def test_backward_over_a_parameter_that_a_step_has_changed_is_an_error():
    layer = nn.Linear(2, 2)
    x = mb.Tensor(np.ones((1, 2), np.float32), requires_grad=True)
    loss = ops.sum(layer(x))
    loss.backward(retain_graph=True)
    SGD(layer.parameters(), 0.1).step()
    with pytest.raises(mb.TapeError, match="'weight', saved by linear .* was changed in place by a step of SGD"):
        loss.backward()


def test_the_learning_rate_can_be_set_anew():
    p = parameter(())
    optimizer = SGD([p], 1.0)
    optimizer.lr = 0.5
    before = p.data.copy()
    run(optimizer, p, [np.asarray(1.0)])
    assert math.isclose(p.data, before - 0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: SGD(p, 0.0), r"`lr` \(=0.0\) must be positive"),
        (lambda p: SGD(p, math.nan), r"`lr` \(=nan\) must be positive"),
        (lambda p: SGD(p, 0.1, nesterov=True), "`nesterov` needs a `momentum`"),
        (lambda p: SGD(p, 0.1, momentum=-1), r"`momentum` \(=-1\)"),
        (lambda p: SGD(p, 0.1, weight_decay=-1), r"`weight_decay` \(=-1\)"),
        (lambda p: AdamW(p, betas=(1.0, 0.9)), r"`betas\[0\]` \(=1.0\)"),
        (lambda p: AdamW(p, eps=-1), r"`eps` \(=-1\)"),
        (lambda p: SGD([], 0.1), "nothing to train|no parameter to train"),
        (lambda p: SGD([nn.Parameter(np.ones(1), requires_grad=False)], 0.1), "no parameter to train"),
    ],
)
def test_settings_without_meaning_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make([parameter((2,))])

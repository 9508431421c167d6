"""Optimisers beside PyTorch's, step by step on the same gradients."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from memback import nn, optim
from memback.optim import SGD, AdamW

pytestmark = pytest.mark.torch

SHAPES = ((3, 4), (5,), ())

SGD_SETTINGS = {
    "plain": {},
    "weight decay": {"weight_decay": 0.1},
    "momentum": {"momentum": 0.9},
    "momentum and weight decay": {"momentum": 0.9, "weight_decay": 0.1},
    "nesterov": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
}

ADAMW_SETTINGS = {
    "defaults": {},
    "no weight decay": {"weight_decay": 0.0},
    "other constants": {"betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.2},
}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def _compare(torch, ours, theirs, mine, others, dtype):
    """Seven steps: the third without a gradient for the second parameter, and from the fifth on a lower rate."""
    rng = np.random.default_rng(1)
    for step in range(7):
        for number, (p, q) in enumerate(zip(mine, others, strict=True)):
            grad = np.asarray(rng.standard_normal(p.shape), dtype)
            skipped = step == 2 and number == 1
            p.grad, q.grad = (None, None) if skipped else (grad, torch.tensor(grad))
        if step == 4:
            ours.lr = theirs.param_groups[0]["lr"] = ours.lr / 3
        ours.step()
        theirs.step()
        for p, q in zip(mine, others, strict=True):
            tolerance = 1e-12 if dtype == "float64" else 1e-5
            np.testing.assert_allclose(p.data, q.detach().numpy(), rtol=tolerance, atol=tolerance)


def _parameters(torch, dtype):
    rng = np.random.default_rng(0)
    mine = [nn.Parameter(np.asarray(rng.standard_normal(shape), dtype)) for shape in SHAPES]
    return mine, [torch.nn.Parameter(torch.tensor(p.data)) for p in mine]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("settings", SGD_SETTINGS.values(), ids=SGD_SETTINGS)
def test_sgd_takes_pytorchs_steps(torch, settings, dtype):
    mine, others = _parameters(torch, dtype)
    ours, theirs = SGD(mine, lr=0.1, **settings), torch.optim.SGD(others, lr=0.1, **settings)
    _compare(torch, ours, theirs, mine, others, dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("settings", ADAMW_SETTINGS.values(), ids=ADAMW_SETTINGS)
def test_adamw_takes_pytorchs_steps(torch, settings, dtype):
    mine, others = _parameters(torch, dtype)
    ours, theirs = AdamW(mine, lr=0.01, **settings), torch.optim.AdamW(others, lr=0.01, **settings)
    _compare(torch, ours, theirs, mine, others, dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("make", ["AdamW", "SGD"])
def test_narrow_steps_are_pytorchs(torch, make, dtype):
    """Tiny gradients among them: their squares are 0 in float16, as AdamW's eps is, and so the steps are not finite."""
    rng = np.random.default_rng(0)
    size = 500
    start = torch.tensor(rng.normal(size=size)).to(getattr(torch, dtype))
    gradient = torch.tensor(rng.normal(size=size) * 10.0 ** rng.uniform(-7, 1, size)).to(start.dtype)
    ours_is = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)

    def narrow(tensor):
        return tensor.float().numpy().astype(ours_is)

    mine, other = nn.Parameter(narrow(start)), torch.nn.Parameter(start.clone())
    ours, theirs = getattr(optim, make)([mine], lr=0.003), getattr(torch.optim, make)([other], lr=0.003)
    for _ in range(3):
        mine.grad, other.grad = narrow(gradient), gradient.clone()
        with np.errstate(all="ignore"):
            ours.step()
        theirs.step()
    expected = other.detach().float().numpy()
    assert np.isfinite(expected).all() == (make == "SGD" or dtype == "bfloat16")
    np.testing.assert_allclose(mine.data.astype(np.float32), expected, rtol=0.01, atol=1e-6)


def test_the_state_takes_as_many_bytes_as_pytorchs(torch):
    for ours, theirs in (
        (lambda p: SGD(p, 0.1), lambda p: torch.optim.SGD(p, 0.1)),
        (lambda p: SGD(p, 0.1, momentum=0.9), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
        (AdamW, torch.optim.AdamW),
    ):
        mine, others = _parameters(torch, "float32")
        optimizer, other = ours(mine), theirs(others)
        for q in others:
            q.grad = torch.zeros_like(q)
        other.step()  # which makes the state
        kept = [
            tensor
            for state in other.state.values()
            for name, tensor in state.items()
            if tensor is not None and name != "step"
        ]
        assert optimizer.state_bytes == sum(tensor.nbytes for tensor in kept)

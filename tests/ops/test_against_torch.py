"""Every op against PyTorch: values and gradients of the same calls, and what each decides where the op has a kink."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memback.op import REGISTRY
from tests.ops.cases import CASES, Call
from tests.ops.test_every_op import OPS, differentiable, pull_back, random_like, taped, with_inputs

pytestmark = pytest.mark.torch

TOLERANCES = {"float64": 1e-10, "float32": 2e-4}


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.mark.parametrize("dtype", list(TOLERANCES))
@pytest.mark.parametrize("name", OPS)
@settings(max_examples=15)
@given(data=st.data())
def test_values_and_gradients_are_those_of_pytorch(torch, name, dtype, data):
    op, call = REGISTRY[name], data.draw(CASES[name].calls).cast(np.dtype(dtype))
    places = differentiable(op, call)
    outs, tensors = taped(op, call, set(places))
    d_outs = random_like([out.data for out in outs])

    leaves: dict[int, Any] = {}

    def leaf(place: int, x: Any) -> Any:
        leaves[place] = torch.tensor(x, requires_grad=place in places)
        return leaves[place]

    theirs = equivalent(torch, name, call, leaf)
    for out, expected in zip(outs, theirs, strict=True):
        assert (out.shape, str(out.dtype)) == (tuple(expected.shape), str(expected.dtype).removeprefix("torch."))
        _close(out.data, expected, TOLERANCES[dtype])
    torch.autograd.backward(theirs, [torch.tensor(d) for d in d_outs])
    pull_back(outs, d_outs)
    for place, tensor in tensors.items():
        _close(tensor.grad, leaves[place].grad, TOLERANCES[dtype])


def equivalent(torch: Any, name: str, call: Call, leaf: Any) -> list[Any]:
    """PyTorch's outputs of a call, each of the op's inputs being replaced by ``leaf(place, input)``."""
    values = with_inputs(REGISTRY[name], call.copy(), leaf).map(torch.tensor)
    named = dict(zip(REGISTRY[name].parameters, values.args, strict=True))
    positional = [named.pop(parameter) for parameter in REGISTRY[name].parameters if parameter not in call.kwargs]
    out = CASES[name].torch(torch, *positional[: len(call.args)], **named)
    return list(out) if isinstance(out, (tuple, list)) else [out]


def _close(found: Any, expected: Any, tolerance: float) -> None:
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=tolerance, atol=tolerance)

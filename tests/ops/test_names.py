"""Arguments of ops and layers have PyTorch's names; those of earlier versions are accepted with a warning."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import numpy as np
import pytest

import memback as mb
from memback import nn, ops
from memback.engine.op import Op

OPS: dict[str, Op] = {name: op for name in ops.__all__ if isinstance(op := getattr(ops, name), Op)}
RENAMED = [(name, old) for name, op in OPS.items() for old in op.renamed]
LAYERS: dict[str, tuple[nn.Module, Any]] = {
    "Linear": (nn.Linear(3, 2), np.ones((4, 3), np.float32)),
    "Embedding": (nn.Embedding(5, 2), np.array([0, 4])),
    "ReLU": (nn.ReLU(), np.ones((4, 3), np.float32)),
    "Sequential": (nn.Sequential(nn.Linear(3, 2), nn.Tanh()), np.ones((4, 3), np.float32)),
    "MultiHeadAttention": (nn.MultiHeadAttention(4, 2), np.ones((1, 3, 4), np.float32)),
    "LSTM": (nn.LSTM(3, 2), np.ones((1, 4, 3), np.float32)),
}


@pytest.mark.parametrize("name", OPS)
def test_the_first_argument_is_called_as_in_pytorch(name: str) -> None:
    others = {"where": "condition", "concatenate": "tensors", "stack": "tensors"}
    others |= dict.fromkeys(("scaled_dot_product_attention", "tiled_attention"), "query")
    assert OPS[name].parameters[0] == others.get(name, "input")


@pytest.mark.parametrize(("name", "old"), RENAMED)
def test_an_op_accepts_an_old_name_and_warns_of_the_new_one(name: str, old: str) -> None:
    op = OPS[name]
    call = [np.full((2, 2), 0.5 + i) for i in range(len(op.inputs))]
    if name == "linear":
        call[2] = np.ones(2)
    given = dict(zip(op.parameters, call, strict=True))
    new = op.renamed[old]
    with pytest.warns(DeprecationWarning, match=rf"{name}\(\): the argument '{old}' is called '{new}' now") as caught:
        out = op(**{old if parameter == new else parameter: value for parameter, value in given.items()})
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(out, op(**given))


def test_an_argument_by_both_of_its_names_is_refused() -> None:
    with pytest.raises(mb.OpError, match=r"add\(\) got 'input' twice, once by its old name 'x'"):
        ops.add(input=1.0, x=2.0, other=3.0)
    with (
        pytest.warns(DeprecationWarning, match="'x' is called 'input' now"),
        pytest.raises(mb.OpError, match=r"add\(\) got 'input' twice, by place and by name"),
    ):
        ops.add(1.0, x=2.0)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_accepts_an_old_name_and_warns_of_the_new_one(name: str) -> None:
    layer, x = LAYERS[name]
    (old,) = (old for old, new in layer.renamed.items() if new == "input")
    with pytest.warns(DeprecationWarning, match=f"{name}: the argument '{old}' is called 'input' now") as caught:
        out = layer(**{old: mb.Tensor(x)})
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(out.data, layer(input=mb.Tensor(x)).data)


def test_every_layer_calls_its_first_argument_input() -> None:
    for name in nn.__all__:
        cls = getattr(nn, name)
        if inspect.isclass(cls) and issubclass(cls, nn.Module) and cls.forward is not nn.Module.forward:
            names = list(inspect.signature(cls.forward).parameters)
            assert names[1] == {"AttentionCore": "query", "LSTMLayer": "inputs"}.get(name, "input"), name


def test_a_layer_of_ones_own_keeps_the_names_of_its_own_forward() -> None:
    class Mine(nn.ReLU):
        def forward(self, x: Any) -> Any:
            return super().forward(x)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Mine()(x=mb.Tensor(-1.0)).item() == 0.0

from __future__ import annotations

import numpy as np
import pytest

import memback as mb
from memback import nn, ops
from memback.nn.policy import applied


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def recurrence(x, layer):
    """The textbook's equations, one step after the other."""
    weight_x, weight_h, bias = layer.weight_x.data, layer.weight_h.data, layer.bias.data
    h = c = np.zeros((len(x), layer.hidden_size))
    outputs = []
    for step in range(x.shape[1]):
        i, f, g, o = np.split(x[:, step] @ weight_x + h @ weight_h + bias, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs, axis=1)


def test_layers_are_the_recurrence():
    lstm = nn.LSTM(3, 4, num_layers=2, dtype="float64")
    x = np.random.default_rng(0).standard_normal((2, 5, 3))
    expected = x
    for layer in lstm.layers:
        expected = recurrence(expected, layer)
    np.testing.assert_allclose(lstm(mb.Tensor(x)).data, expected, rtol=1e-12, atol=1e-14)


def test_a_sequence_of_one_step_is_a_sequence():
    lstm = nn.LSTM(3, 4, dtype="float64")
    x = np.ones((2, 1, 3))
    np.testing.assert_allclose(lstm(mb.Tensor(x)).data, recurrence(x, lstm.layers[0]), rtol=1e-12)


def test_layers_have_paths():
    lstm = nn.LSTM(3, 4, num_layers=2)
    assert [layer.path for layer in lstm.layers] == ["layers.0", "layers.1"]
    assert [name for name, _ in lstm.named_parameters()][:3] == [
        "layers.0.weight_x",
        "layers.0.weight_h",
        "layers.0.bias",
    ]


@pytest.mark.parametrize("policy", ["every:1", "every:3", "sqrt", "all", "selective"])
def test_checkpointed_time_steps_give_the_same_bits(policy):
    mb.manual_seed(0)
    lstm = nn.LSTM(3, 4, num_layers=2)
    x = mb.Tensor(np.random.default_rng(0).standard_normal((2, 7, 3)).astype(np.float32), requires_grad=True)

    def gradients(name):
        lstm.zero_grad()
        x.grad = None
        with applied(lstm, name):
            out = lstm(x)
            ops.sum(ops.multiply(out, out)).backward()
        return [x.grad.tobytes(), *(p.grad.tobytes() for p in lstm.parameters())]

    assert gradients(policy) == gradients("none")


def test_a_policy_given_to_the_layer_is_used():
    lstm = nn.LSTM(2, 16, checkpoint="sqrt")
    plain = nn.LSTM(2, 16)
    x = mb.Tensor(np.ones((4, 36, 2), np.float32))

    def saved(module):
        with mb.Tape() as tape:
            loss = ops.sum(module(x))
        size = tape.saved_bytes
        loss.backward()
        return size

    assert saved(lstm) < saved(plain) / 2

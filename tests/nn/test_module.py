from __future__ import annotations

import numpy as np
import pytest

import memback as mb
from memback import nn, ops
from memback.engine.state import current
from memback.errors import MembackError
from memback.profiling.ledger import Ledger


class Tied(nn.Module):
    """Its second layer has the first one's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x))


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), Tied())
        self.norm = nn.BatchNorm1d(3)


def test_every_layer_knows_its_path_from_the_outermost_module():
    model = Nested()
    assert model.path == ""
    assert model.blocks[0][0].path == "blocks.0.0"
    assert model.blocks[1].second.path == "blocks.1.second"
    assert [(name, module.path) for name, module in model.named_modules()] == [
        (name, name)
        for name in (
            "",
            "blocks",
            "blocks.0",
            "blocks.0.0",
            "blocks.0.1",
            "blocks.1",
            "blocks.1.first",
            "blocks.1.second",
            "norm",
        )
    ]


def test_a_path_changes_when_its_module_becomes_part_of_another():
    inner = nn.Sequential(nn.Linear(2, 2))
    assert inner[0].path == "0"
    outer = nn.Sequential(inner)
    assert inner[0].path == "0.0"
    assert outer[0] is inner


def test_a_module_that_is_used_in_two_places_keeps_the_path_of_the_first():
    shared = nn.Linear(2, 2)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert shared.path == "0"
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias"]


def test_ops_are_charged_to_the_layer_that_called_them():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    ledger = Ledger()
    state = current()
    before, state.observer = state.observer, ledger
    try:
        ops.sum(model(mb.Tensor(np.ones((1, 2), np.float32))))
    finally:
        state.observer = before
    assert [(row.path, row.op) for row in ledger.rows] == [
        ("0", "linear"),
        ("1.0", "linear"),
        ("1.1", "relu"),
        ("", "sum"),
    ]


def test_a_failed_layer_leaves_no_path_behind():
    with pytest.raises(MembackError, match="layer '0'"):
        nn.Sequential(nn.Linear(2, 2))(mb.Tensor(np.ones((1, 3), np.float32)))
    assert current().path == ""


def test_parameters_have_the_names_of_their_attributes_and_a_tied_one_comes_once():
    model = Nested()
    assert [name for name, _ in model.named_parameters()] == [
        "blocks.0.0.weight",
        "blocks.0.0.bias",
        "blocks.1.first.weight",
        "blocks.1.first.bias",
        "norm.weight",
        "norm.bias",
    ]
    assert [name for name, _ in model.named_buffers()] == ["norm.running_mean", "norm.running_var"]


def test_the_gradient_of_a_tied_parameter_is_the_sum_over_its_uses():
    model = Tied()
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    ops.sum(model(mb.Tensor(x))).backward()
    weight, bias = model.first.weight, model.first.bias
    ones = np.ones((2, 3), np.float32)
    hidden = x @ weight.data + bias.data
    np.testing.assert_allclose(weight.grad, hidden.T @ ones + x.T @ (ones @ weight.data.T), rtol=1e-5)


def test_train_and_eval_reach_every_layer_below():
    model = Nested()
    assert all(module.training for module in model.modules())
    assert model.eval() is model
    assert not any(module.training for module in model.modules())
    assert model.train() is model
    assert all(module.training for module in model.modules())


def test_dropout_drops_in_training_only():
    layer = nn.Dropout(0.5)
    x = mb.Tensor(np.ones((100,), np.float32))
    assert 0 < np.count_nonzero(layer(x).data) < 100
    np.testing.assert_array_equal(layer.eval()(x).data, x.data)


def test_batch_norm_uses_its_running_statistics_in_evaluation_and_leaves_them():
    layer = nn.BatchNorm1d(2, eps=0.0).eval()
    layer.running_mean[...] = (1, 2)
    layer.running_var[...] = (4, 9)
    out = layer(mb.Tensor(np.array([[3.0, 5.0]], np.float32)))
    np.testing.assert_allclose(out.data, [[1, 1]], rtol=1e-6)
    np.testing.assert_array_equal(layer.running_mean, [1, 2])


def test_frozen_parameters_get_no_gradient_and_cost_no_saved_byte():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    x = mb.Tensor(np.ones((16, 8), np.float32))

    def saved():
        with mb.Tape() as tape:
            loss = ops.sum(model(x))
            size = tape.saved_bytes
            if loss.requires_grad:
                loss.backward()
            return size

    assert saved() == 16 * 8 * 4  # relu's output: the second linear layer and relu share it, and x is an argument
    model.zero_grad()
    model[2].requires_grad_(False)
    assert saved() == 16 * 8 * 4  # for relu's backward
    assert model[0].weight.grad is not None
    assert model[2].weight.grad is None
    model.requires_grad_(False)
    assert saved() == 0
    assert model.requires_grad_() is model
    assert all(p.requires_grad for p in model.parameters())


def test_zero_grad_drops_every_gradient():
    model = nn.Linear(2, 2)
    ops.sum(model(mb.Tensor(np.ones((1, 2), np.float32)))).backward()
    assert model.weight.grad is not None
    model.zero_grad()
    assert model.weight.grad is None
    assert model.bias.grad is None


def test_a_subclass_that_forgets_to_call_init_is_told_so():
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            self.layer = nn.ReLU()

    with pytest.raises(MembackError, match=r"Forgetful.__init__ must call super\(\).__init__\(\)"):
        Forgetful()


def test_a_module_without_forward_says_so():
    with pytest.raises(NotImplementedError, match="Module defines no forward"):
        nn.Module()(1)


def test_an_attribute_that_is_assigned_anew_replaces_what_was_registered():
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(np.zeros((2, 5), np.float32))
    assert dict(model.named_parameters())["weight"].shape == (2, 5)
    norm = nn.BatchNorm1d(2)
    norm.running_mean = np.ones(2, np.float32)
    assert dict(norm.named_buffers())["running_mean"] is norm.running_mean


def test_containers_are_lists_of_modules():
    layers = nn.ModuleList([nn.ReLU()])
    layers.append(nn.Tanh())
    assert len(layers) == 2
    assert [type(layer) for layer in layers] == [nn.ReLU, nn.Tanh]
    assert layers[1].path == "1"
    assert type(layers[-1]) is nn.Tanh


def test_a_chain_with_an_unknown_policy_is_refused():
    with pytest.raises(mb.UsageError, match="unknown checkpoint policy 'squirt'"):
        nn.Sequential(nn.ReLU(), checkpoint="squirt")


def test_the_seed_decides_the_parameters():
    def weights(seed):
        mb.manual_seed(seed)
        return nn.Linear(4, 4).weight.data

    np.testing.assert_array_equal(weights(1), weights(1))
    assert not np.array_equal(weights(1), weights(2))
    assert not np.array_equal(weights(2**64 - 1), weights(2**64 - 2))  # no float holds either

from __future__ import annotations

import numpy as np
import pytest

from memback import nn
from memback.errors import MembackError, UsageError


def model(dtype="float32", width=4):
    return nn.Sequential(nn.Linear(3, width, dtype=dtype), nn.BatchNorm1d(width, dtype=dtype), nn.ReLU())


def bits(module):
    return {name: (array.dtype, array.tobytes()) for name, array in module.state_dict().items()}


def test_the_state_is_the_arrays_themselves_by_name():
    module = model()
    state = module.state_dict()
    assert list(state) == ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"]
    assert state["0.weight"] is module[0].weight.data


def test_a_state_is_copied_into_another_model():
    first, second = model(), model()
    first[1].running_mean[...] = 3
    arrays = second.state_dict()
    second.load_state_dict(first.state_dict())
    assert bits(first) == bits(second)
    assert all(array is arrays[name] for name, array in second.state_dict().items())
    assert not np.shares_memory(first[0].weight.data, second[0].weight.data)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_saved_model_is_loaded_to_the_bit(dtype, tmp_path):
    first, second = model(dtype), model(dtype)
    first[1].running_var[...] = 0.3
    assert bits(first) != bits(second)
    first.save(tmp_path / "model.safetensors")
    second.load(tmp_path / "model.safetensors")
    assert bits(first) == bits(second)
    assert second[0].weight.dtype.name == dtype


def test_a_scalar_and_a_transposed_parameter_are_saved_by_value(tmp_path):
    class Odd(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.scale = nn.Parameter(np.array(value))
            self.matrix = nn.Parameter((value * np.arange(6.0).reshape(2, 3)).T)

    first, second = Odd(3.0), Odd(1.0)
    first.save(tmp_path / "odd")
    second.load(tmp_path / "odd")
    assert second.scale.data == 3
    np.testing.assert_array_equal(second.matrix.data, first.matrix.data)


def test_an_existing_file_is_only_overwritten_when_asked(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"precious")
    with pytest.raises(UsageError, match="already exists"):
        model().save(path)
    assert path.read_bytes() == b"precious"
    model().save(path, overwrite=True)
    model().load(path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_file_that_is_not_there_a_foreign_one_and_a_cut_one_are_told_apart_from_a_model(tmp_path):
    module = model()
    before = bits(module)
    with pytest.raises(UsageError, match="There is no file"):
        module.load(tmp_path / "missing")
    foreign = tmp_path / "foreign"
    foreign.write_text("not tensors")
    with pytest.raises(UsageError, match="foreign can't be read: it is no safetensors file, or not a whole one"):
        module.load(foreign)
    cut = tmp_path / "cut"
    module.save(cut)
    cut.write_bytes(cut.read_bytes()[:-5])
    with pytest.raises(UsageError, match="cut can't be read"):
        module.load(cut)
    cut.write_bytes(b"")
    with pytest.raises(UsageError, match="cut can't be read"):
        module.load(cut)
    assert bits(module) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("0.weight"), "misses 0.weight"),
        (lambda state: state.update(extra=np.zeros(1)), "unknown extra"),
        (lambda state: state.update({"1.bias": np.zeros(9)}), r"1.bias.*\(9,\).*\(4,\)"),
    ],
)
def test_a_state_of_another_model_is_refused_and_changes_nothing(change, message, tmp_path):
    module = model()
    before = bits(module)
    state = {name: array.copy() + 1 for name, array in module.state_dict().items()}
    change(state)
    with pytest.raises(MembackError, match=message):
        module.load_state_dict(state)
    assert bits(module) == before


def test_the_file_of_another_model_is_named_in_the_error(tmp_path):
    model(width=5).save(tmp_path / "wider")
    module = model()
    before = bits(module)
    with pytest.raises(MembackError, match=r"wider: .*0.weight.*\(3, 5\).*\(3, 4\)"):
        module.load(tmp_path / "wider")
    assert bits(module) == before


def test_a_loaded_parameter_counts_as_changed_in_place():
    import memback as mb
    from memback import ops

    layer, other = nn.Linear(2, 2), nn.Linear(2, 2)
    x = mb.Tensor(np.ones((1, 2), np.float32), requires_grad=True)
    loss = ops.sum(layer(x))
    layer.load_state_dict(other.state_dict())
    with pytest.raises(mb.TapeError, match="changed in place"):
        loss.backward()

from __future__ import annotations

import numpy as np
import pytest

import memback as mb
from memback import nn, ops

FORMS = ("plain", "fused", "tiled")


def attention(form, **arguments):
    mb.manual_seed(3)
    return nn.MultiHeadAttention(16, 4, attention=form, dtype="float64", **arguments)


def inputs(length=6):
    return np.random.default_rng(0).standard_normal((2, length, 16))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kv_heads", [None, 4, 2, 1])
@pytest.mark.parametrize("rotary", [False, True])
def test_the_output_has_the_inputs_shape(form, kv_heads, rotary):
    layer = attention(form, kv_heads=kv_heads, rotary=rotary)
    assert layer(mb.Tensor(inputs())).shape == (2, 6, 16)
    size = sum(p.size for name, p in layer.named_parameters() if not name.startswith("out"))
    heads = 4 + 2 * (kv_heads or 4)
    assert size == heads * 4 * (16 + 1)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"causal": True}, {"causal": True, "kv_heads": 2}, {"rotary": True, "kv_heads": 1}, {"bias": False}],
)
def test_every_form_computes_the_same_and_has_the_same_gradients(arguments):
    found = []
    for form in FORMS:
        layer = attention(form, **arguments)
        x = mb.Tensor(inputs(), requires_grad=True)
        out = layer(x)
        ops.sum(ops.multiply(out, out)).backward()
        found.append([out.data, x.grad, *(p.grad for p in layer.parameters())])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_causal_attention_does_not_look_ahead():
    layer = attention("plain", causal=True)
    x = inputs()
    changed = x.copy()
    changed[:, 4:] += 1
    before, after = layer(mb.Tensor(x)).data, layer(mb.Tensor(changed)).data
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert not np.allclose(before[:, 4:], after[:, 4:])


def test_without_positions_a_permutation_of_the_tokens_permutes_the_outputs():
    order = [3, 0, 5, 1, 4, 2]
    x = inputs()
    plain, rotated = attention("plain"), attention("plain", rotary=True)
    np.testing.assert_allclose(plain(mb.Tensor(x[:, order])).data, plain(mb.Tensor(x)).data[:, order], rtol=1e-9)
    assert not np.allclose(rotated(mb.Tensor(x[:, order])).data, rotated(mb.Tensor(x)).data[:, order])


def test_fewer_heads_of_keys_are_the_same_as_repeating_them():
    few, many = attention("plain", kv_heads=2), attention("plain")
    state = few.state_dict()
    for name, array in many.state_dict().items():
        if name.split(".")[0] in ("key", "value"):
            heads = state[name].reshape(*state[name].shape[:-1], 2, 4)
            array[...] = np.repeat(heads, 2, axis=-2).reshape(array.shape)
        else:
            array[...] = state[name]
    np.testing.assert_allclose(few(mb.Tensor(inputs())).data, many(mb.Tensor(inputs())).data, rtol=1e-9)


def test_the_cores_path_lets_a_policy_recompute_it_alone():
    assert attention("plain").core.path == "core"

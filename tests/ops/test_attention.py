"""Plain attention, and tiled attention that must equal it without ever making an L x S array."""

from __future__ import annotations

import ml_dtypes  # noqa: F401 - makes np.dtype know bfloat16
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import memback as mb
from memback import ops
from memback.dry.array import ShapeArray
from memback.dry.memory import dry_memory
from memback.engine.arrays import distinct_bytes, leaves
from memback.engine.op import OpError
from memback.engine.tensor import Tensor
from memback.ops.attention import scaled_dot_product_attention as attention
from memback.ops.attention import tiled_attention

FORMS = ("bool", "bits", "seed")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def three(rng, length=5, keys=7, heads=4, shared=2, width=6, dtype="float64"):
    shapes = (2, heads, length, width), (2, shared, keys, width), (2, shared, keys, 3)
    return [rng.normal(size=shape).astype(np.dtype(dtype)) for shape in shapes]


def saved(op, *args, **kwargs):
    """Distinct bytes that a call keeps where query, key and value are to be differentiated."""
    out = op(*(Tensor(a, requires_grad=True) for a in args), **kwargs)
    return distinct_bytes(leaf for _, value in out.node.saved() for leaf in leaves(value))


# -- the softmax


@pytest.mark.parametrize("shape", [(700, 300), (300, 700), (3, 300, 300), (2, 2, 200, 200)])
@pytest.mark.parametrize("is_causal", [False, True])
def test_a_softmax_in_pieces_is_that_of_the_whole(rng, shape, is_causal):
    scores = rng.normal(size=shape)
    hidden = np.triu(np.ones(shape[-2:], bool), 1) if is_causal else np.zeros(shape[-2:], bool)
    powers = np.where(hidden, 0, np.exp(0.5 * scores))
    expected = powers / powers.sum(-1, keepdims=True)
    x = Tensor(scores, requires_grad=True)
    out = ops.attention_softmax(x, 0.5, is_causal)
    np.testing.assert_allclose(out.data, expected, rtol=1e-12)
    d_out = rng.normal(size=shape)
    out.backward(d_out)
    slope = expected * (d_out - (d_out * expected).sum(-1, keepdims=True)) * 0.5
    np.testing.assert_allclose(x.grad, slope, rtol=1e-9, atol=1e-12)


def by_definition(q, k, v, mask, scale):
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.where(mask, q @ k.swapaxes(-1, -2) * scale, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True) @ v


@pytest.mark.parametrize("shared", [4, 2, 1])
def test_attention_is_its_definition_with_keys_shared_by_groups_of_heads(shared, rng):
    q, k, v = three(rng, shared=shared)
    mask = rng.random((5, 7)) < 0.7
    mask[:, 0] = True
    np.testing.assert_allclose(attention(q, k, v, scale=0.3), by_definition(q, k, v, True, 0.3))
    np.testing.assert_allclose(attention(q, k, v, mask), by_definition(q, k, v, mask, 6**-0.5))
    numbers = np.where(mask, 0.0, -np.inf)
    np.testing.assert_allclose(attention(q, k, v, numbers), attention(q, k, v, mask))


def test_a_causal_query_sees_itself_and_what_came_before(rng):
    q, k, v = three(rng, length=300, keys=300)
    np.testing.assert_allclose(
        attention(q, k, v, is_causal=True), attention(q, k, v, np.tri(300, dtype=bool)), atol=1e-14
    )


@pytest.mark.parametrize("op", [attention, tiled_attention])
def test_a_query_that_sees_nothing_gives_zero_and_has_no_gradient(op, rng):
    q, k, v = three(rng)
    mask = np.ones((5, 7), bool)
    mask[2] = False
    out = op(q, k, v, attn_mask=mask)
    assert not out[:, :, 2].any()
    assert np.isfinite(out).all()
    grads = op.backward(out, q, k, v, attn_mask=mask)
    assert not grads[0][:, :, 2].any()
    assert all(np.isfinite(g).all() for g in grads[:3])


def test_large_scores_do_not_overflow(rng):
    q, k, v = three(rng, dtype="float32")
    for op in (attention, tiled_attention):
        assert np.isfinite(op(q * np.float32(1e3), k * np.float32(1e3), v)).all()


# -- what is kept


def test_float16_keeps_two_bytes_a_probability_and_one_a_mask_element():
    # Korthikanti et al. 2022 count 5 a s^2 b; the product of the two is made again here
    a, s, b, width = 4, 32, 2, 8
    x = np.ones((b, a, s, width), "float16")
    assert saved(attention, x, x.copy(), x.copy(), dropout_p=0.1) == 3 * a * s * s * b + 3 * x.nbytes
    assert saved(attention, x, x.copy(), x.copy(), dropout_p=0.1, mask="bits") == 17 * a * s * s * b // 8 + 3 * x.nbytes
    assert saved(attention, x, x.copy(), x.copy(), dropout_p=0.1, mask="seed") == 2 * a * s * s * b + 3 * x.nbytes


def test_tiled_attention_keeps_bytes_that_grow_linearly_with_the_length():
    def kept(length):
        x = [np.ones((1, 2, length, 8), "float32") for _ in range(3)]
        return saved(tiled_attention, *x)

    assert kept(64) == 64 * (4 * 2 * 8 * 4 + 2 * 4)
    assert kept(192) == 3 * kept(64)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"attn_mask": "padding"}], ids=str)
def test_tiled_attention_never_makes_scores_of_full_length(options):
    length, width = 2**17, 64
    x = ShapeArray.argument((1, 1, length, width))
    if "attn_mask" in options:
        options = {"attn_mask": ShapeArray.argument((1, 1, 1, length), "bool")}
    memory = dry_memory()
    before = memory.live
    memory.reset_peak()
    out, lse = tiled_attention.forward(x, x, x, **options)
    assert memory.peak - before < out.nbytes + lse.nbytes + 2**20
    saving = tiled_attention.saving(0b111, 4)
    kept = tiled_attention.arguments(saving, tiled_attention.bind((x, x, x), options), out, (lse,))
    before = memory.live
    memory.reset_peak()
    grads = tiled_attention.vjp(ShapeArray.argument(out.shape), *kept)
    assert memory.peak - before < sum(g.nbytes for g in grads[:3]) + 2**20


def test_plain_attention_needs_the_scores_of_one_head_besides_what_it_keeps():
    x = ShapeArray.argument((4, 8, 256, 16))
    memory = dry_memory()
    head = 256 * 256 * 4
    before = memory.live
    memory.reset_peak()
    out, probabilities, kept = attention.forward(x, x, x, dropout_p=0.1, is_causal=True)
    held = out.nbytes + probabilities.nbytes + kept.nbytes
    assert memory.peak - before < held + head + 2**20
    memory.reset_peak()
    before = memory.live
    attention.forward(x, x, x, dropout_p=0.1, is_causal=True, keep=False)
    assert memory.peak - before < out.nbytes + head + 2**20


@pytest.mark.parametrize("op", [attention, tiled_attention])
def test_the_output_lies_in_memory_as_the_queries_do_so_that_joining_heads_is_free(op, rng):
    x = rng.normal(size=(2, 5, 4, 6)).swapaxes(1, 2)
    out = op(x, x, x)
    assert out.swapaxes(1, 2).flags.c_contiguous


# -- dropout


def test_all_forms_of_the_mask_give_the_same_bits_forward_and_backward(rng):
    q, k, v = three(rng, length=13, keys=11)  # 143 scores a head: no whole number of bytes
    results = []
    for form in FORMS:
        mb.manual_seed(5)
        out = attention(q, k, v, None, 0.3, mask=form)
        mb.manual_seed(5)
        results.append((out, *attention.backward(out, q, k, v, None, 0.3, mask=form)[:3]))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_heads_draw_different_masks():
    x = np.ones((1, 2, 40, 1))
    out = attention(x, x, x, None, 0.5)
    assert (out[0, 0] != out[0, 1]).any()


def test_dropping_everything_gives_zero(rng):
    assert not attention(*three(rng), None, 1.0).any()


# -- tiles


@given(
    length=st.integers(1, 40),
    keys=st.integers(1, 40),
    block=st.integers(1, 45),
    shared=st.sampled_from([1, 2, 4]),
    is_causal=st.booleans(),
)
def test_tiled_attention_equals_plain_attention_at_any_length(length, keys, block, shared, is_causal):
    rng = np.random.default_rng(0)
    q, k, v = three(rng, length, keys, shared=shared)
    out = tiled_attention(q, k, v, is_causal, block=block)
    np.testing.assert_allclose(out, attention(q, k, v, is_causal=is_causal), atol=1e-12)
    d_out = rng.normal(size=out.shape)
    tiled = tiled_attention.backward(d_out, q, k, v, is_causal, block=block)
    plain = attention.backward(d_out, q, k, v, is_causal=is_causal)
    for one, other in zip(tiled[:3], plain[:3], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


@given(
    length=st.integers(1, 20),
    keys=st.integers(1, 20),
    block=st.integers(1, 25),
    numbers=st.booleans(),
    spread=st.sampled_from([(2, 4), (2, 1), (1, 4), (), (1,)]),
    seed=st.integers(0, 100),
)
def test_masked_tiles_equal_plain_attention_whatever_they_hide(length, keys, block, numbers, spread, seed):
    rng = np.random.default_rng(seed)
    q, k, v = three(rng, length, keys)
    mask = rng.normal(size=(*spread, length, keys))
    if not numbers:
        mask = mask > 0.3  # some queries see nothing at all
    out = tiled_attention(q, k, v, attn_mask=mask, block=block)
    np.testing.assert_allclose(out, attention(q, k, v, mask), atol=1e-12)
    d_out = rng.normal(size=out.shape)
    tiled = tiled_attention.backward(d_out, q, k, v, attn_mask=mask, block=block)
    for one, other in zip(tiled[:3], attention.backward(d_out, q, k, v, mask)[:3], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_causal_tiles_that_see_nothing_are_not_computed(rng):
    x = rng.normal(size=(1, 1, 64, 4))

    def flops(is_causal):
        return tiled_attention.count_flops(tiled_attention.bind((x, x, x, is_causal), {"block": 16}), x)

    scores = 64 * 64
    assert flops(False) - flops(True) == (scores - (16 * (16 + 32 + 48 + 64))) * (4 * 4 + 4)


@pytest.mark.parametrize("op", [attention, tiled_attention])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_the_dtype_stays_forward_and_backward(op, dtype, rng):
    q, k, v = three(rng, dtype=dtype)
    out = op(q, k, v)
    assert {a.dtype for a in (out, *op.backward(out, q, k, v)[:3])} == {np.dtype(dtype)}


@pytest.mark.parametrize("op", [attention, tiled_attention])
def test_heads_and_batches_are_optional(op, rng):
    q, k, v = three(rng, shared=4)
    np.testing.assert_array_equal(op(q[0], k[0], v[0]), op(q, k, v)[0])
    np.testing.assert_array_equal(op(q[0, 0], k[0, 0], v[0, 0]), op(q, k, v)[0, 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda q, k, v: attention(q, k, v[..., :5, :]), r"attention needs query .* their shapes are"),
        (lambda q, k, v: tiled_attention(q[:, :3], k, v), r"heads \(=3\) must be divisible by the key's \(=2\)"),
        (lambda q, k, v: attention(q, k, v, np.ones((5, 7), bool), is_causal=True), "exclude each other"),
        (lambda q, k, v: tiled_attention(q, k, v, True, attn_mask=np.ones((5, 7), bool)), "exclude each other"),
        (lambda q, k, v: tiled_attention(q, k, v, attn_mask=np.ones((5, 6), bool)), r"\(5, ?6\)"),
        (lambda q, k, v: attention(q, k, v, dropout_p=2), r"probability \(=2\) must lie between 0 and 1"),
        (lambda q, k, v: tiled_attention(q, k, v, block=0), r"`block` \(=0\) must be at least 1"),
    ],
)
def test_a_wrong_call_names_value_and_remedy(call, message, rng):
    with pytest.raises(OpError, match=message):
        call(*three(rng))

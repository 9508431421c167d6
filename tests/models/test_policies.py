"""No checkpoint policy changes a bit of any model's gradients, or a side effect."""

from __future__ import annotations

import pytest

import memback as mb
from memback.nn.policy import Policy, applied
from tests.models.small import MODELS, batch

POLICIES = ("every:1", "every:2", "every:3", "sqrt", "all", "selective", "match:*.1*", "selective:attention")
WITH_ATTENTION = {"gpt", "gpt-fused-bits", "llama", "vit"}


def step(name, policy, seed=3):
    """Loss, saved bytes, gradients and buffers of one training step."""
    mb.manual_seed(seed)
    model = MODELS[name]("float32")
    x, y = batch(name, "float32")
    with applied(model, policy), mb.Tape() as tape:
        loss = model.loss(x, y)
        saved = tape.saved_bytes
    loss.backward()
    bits = {n: p.grad.tobytes() for n, p in model.named_parameters()}
    return loss.data.tobytes(), saved, bits, {n: b.tobytes() for n, b in model.named_buffers()}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", MODELS)
def test_a_policy_changes_no_bit(name, policy):
    if policy == "selective:attention" and name not in WITH_ATTENTION:
        with pytest.raises(mb.UsageError, match="nothing to checkpoint"):
            step(name, policy)
        return
    loss, _, gradients, buffers = step(name, "none")
    assert step(name, policy)[0] == loss
    assert step(name, policy)[2] == gradients
    assert step(name, policy)[3] == buffers


@pytest.mark.parametrize("name", [n for n in MODELS if n != "notes_network"])
def test_whole_segments_save_less_than_full_retention(name):
    assert step(name, "every:2")[1] < step(name, "none")[1]


def test_time_steps_of_an_lstm_keep_their_states_and_outputs_alone():
    """At every cut of a layer one c, and every output but the last one, which is only copied; the model's own: the
    embedding, the stacked outputs, the scores.
    """
    n, length, width, vocabulary, number = 3, 6, 5, 7, 4
    state = n * width * number
    around = 2 * length * state + n * length * vocabulary * number + number
    layers = (2 * length - 1) * state
    assert step("lstm", "all")[1] == around + layers + 2 * (length - 1) * state


def test_two_seeds_give_other_dropout_and_other_parameters():
    assert step("gpt", "none", seed=1)[0] != step("gpt", "none", seed=2)[0]


@pytest.mark.parametrize(
    "name", ["every:" + "9" * 5000, "every:0", "sqrt:" + "x" * 5000, "x" * 5000, "selective:" + "x" * 5000]
)
def test_a_policy_that_there_is_not_is_refused_shortly(name):
    with pytest.raises(mb.UsageError) as refused:
        Policy.parse(name)
    assert len(str(refused.value)) < 500

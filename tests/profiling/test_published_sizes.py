"""The profiles that are only predicted are the published models: their parameters are counted against the papers'."""

from __future__ import annotations

import pytest

from memback.profiling.definition import load, shipped
from memback.profiling.mode import Mode
from memback.profiling.step import Step
from memback.profiling.workload import Workload

POSITIONS = (32768 - 1024) * 768
"""What GPT-2 has more of with a context of 32,768."""
CLASS_TOKEN = 2 * 1024
"""The class token of ViT and its position: memback's averages the patches instead, as Zhai et al. 2022 also do."""

PARAMETERS = {
    "gpt2-small": 124_439_808,  # Radford et al. 2019, as released
    "gpt2-xl": 1_557_611_200,  # as released
    "gpt3-175b": 174_604_259_328,  # Brown et al. 2020, Table D.1: 174,600 million
    "llama-style": 8_030_261_248,  # Llama 3 8B as released
    "resnet50": 25_557_032,  # torchvision's resnet50
    "vit-l16": 304_326_632 - CLASS_TOKEN,  # torchvision's vit_l_16
    "long-32k-plain": 124_439_808 + POSITIONS,
    "long-32k-tiled": 124_439_808 + POSITIONS,
}
BATCHES = {"gpt2-small": (8, 1024), "resnet50": (256, 3, 224, 224), "long-32k-plain": (1, 32768)}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_profile_has_the_published_number_of_parameters(name: str) -> None:
    model = Workload.build(load(name), dry=True).model
    assert sum(p.size for p in model.parameters()) == PARAMETERS[name]


def test_every_profile_that_is_only_predicted_is_among_them() -> None:
    assert {name for name in shipped() if load(name).dry} == set(PARAMETERS)


@pytest.mark.parametrize("name", BATCHES)
def test_a_profile_has_the_promised_batch(name: str) -> None:
    x, _ = Workload.build(load(name), dry=True).batch(0)
    assert x.shape == BATCHES[name]


def test_resnet50_takes_the_published_multiply_adds_an_image() -> None:
    """4.09 billion for an image of 224 x 224 pixels, convolutions and the last layer (torchvision)."""
    work = Workload.build(load("resnet50").with_overrides({"data.batch": "1"}), dry=True)
    rows = Step(work.step(), work.model).predict(Mode("inference")).ledger.rows
    products = sum(row.flops for row in rows if row.op in ("conv2d", "linear"))
    assert products / 2 == pytest.approx(4.09e9, rel=0.005)


def test_tiled_attention_keeps_nothing_that_grows_with_the_square_of_32k_tokens() -> None:
    saved = {}
    for form in ("plain", "tiled"):
        work = Workload.build(load(f"long-32k-{form}"), dry=True)
        saved[form] = Step(work.step(), work.model).predict(Mode("full")).ledger.saved_at_end_of_forward or 0
    layers, heads, tokens, number = 12, 12, 32768, 4
    probabilities, log_sums = heads * tokens**2 * number, heads * tokens * number
    assert saved["plain"] - saved["tiled"] == layers * (probabilities - log_sums)

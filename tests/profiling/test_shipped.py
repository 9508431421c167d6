from __future__ import annotations

import pytest

from memback.profiling.definition import load, load_data, load_layout, shipped

EXPECTED = {
    "deep-mlp",
    "digits",
    "digits-resnet",
    "long-context",
    "lstm",
    "notes",
    "source-gpt",
    "unet",
    "vit",
}


def test_the_promised_profiles_are_shipped() -> None:
    assert set(shipped()) >= EXPECTED


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_profile_is_valid_and_says_what_it_is_in_a_line(name: str) -> None:
    profile = load(name)
    assert profile.name == name
    assert 20 < len(profile.description) < 100


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_profile_has_data_for_a_batch(name: str) -> None:
    profile = load(name)
    (x, _), (y, _) = load_layout(profile).batch(profile.data.batch)
    assert x[0] == y[0] == profile.data.batch
    if not profile.dry:
        data = load_data(profile)
        x, y = data.batch(profile.data.batch, profile.train.seed, step=0)
        assert len(x) == len(y) == profile.data.batch

"""The figures of shipped profiles are those that are stored; ``python -m tests.golden.figures`` writes them anew."""

from __future__ import annotations

import json

import pytest

from tests.golden.figures import FILE, blas, dry, profiles, real

pytestmark = pytest.mark.long

STORED = json.loads(FILE.read_text())


def stored(name, gradients):
    return {key: STORED[key] for key in STORED if key.split()[0] == name and ("gradients" in key.split()) == gradients}


def test_every_shipped_profile_is_stored_and_no_other():
    assert {key.split()[0] for key in STORED} == set(profiles(dry_ones=True))


@pytest.mark.parametrize("name", profiles(dry_ones=True))
def test_dry_runs_and_plans_give_the_stored_figures(name):
    assert dict(dry(name)) == stored(name, gradients=False)


@pytest.mark.parametrize("name", profiles(dry_ones=False))
def test_gradients_have_the_stored_bits_in_every_mode(name):
    found, wanted = dict(real(name)), stored(name, gradients=True)
    assert found.keys() == wanted.keys()
    assert len({figures["sha256"] for figures in found.values() if "sha256" in figures}) == 1
    if all(figures.get("blas", blas()) == blas() for figures in wanted.values()):
        assert found == wanted

from __future__ import annotations

import re
from importlib.metadata import entry_points
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

DOCS = (Path(__file__).parents[1] / "docs" / "ci.md").read_text(encoding="utf-8")
HEAD = """
import numpy as np
import pytest
import memback as mb
from memback import nn, ops

def step(profile_step, **options):
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    x, y = np.ones((128, 64), np.float32), np.zeros((128, 10), np.float32)
    return profile_step(model, step=lambda: ops.sqerr(model(mb.Tensor(x)), y), **options)
"""


def run(pytester: pytest.Pytester, body: str) -> pytest.RunResult:
    pytester.makepyfile(HEAD + body)
    installed = entry_points(group="pytest11", name="memback")
    return pytester.runpytest("-p", "no:cacheprovider", "--strict-markers", *([] if installed else PLUGIN))


PLUGIN = ["-p", "memback.pytest_plugin"]


def test_a_step_within_its_limits_passes(pytester: pytest.Pytester) -> None:
    body = """
@pytest.mark.limit_saved_bytes("133KiB")
@pytest.mark.limit_peak(411_692)
def test_it(profile_step):
    report = step(profile_step)
    assert report.runs[0].saved_bytes == 136_192
    assert report.runs[0].measured_peak_bytes is None
"""
    run(pytester, body).assert_outcomes(passed=1)


def test_a_broken_limit_names_the_layers_to_blame(pytester: pytest.Pytester) -> None:
    body = """
@pytest.mark.limit_saved_bytes("128KiB")
def test_saved(profile_step):
    step(profile_step)

@pytest.mark.limit_peak(411_691)
def test_peak(profile_step):
    step(profile_step)
"""
    result = run(pytester, body)
    result.assert_outcomes(failed=2)
    documented = re.search(r"```text\n(The saved bytes.*?)```", DOCS, re.DOTALL)
    assert documented is not None
    assert documented[1] in result.stdout.str()
    result.stdout.fnmatch_lines(
        ["The peak of mode full: 411,692 B * 1 B * more than 411,691 B *, at the *", "*1 relu, saved"]
    )


def test_a_marker_can_limit_another_mode(pytester: pytest.Pytester) -> None:
    body = """
@pytest.mark.limit_saved_bytes("1KiB", mode="inference")
@pytest.mark.limit_saved_bytes("1KiB", mode="retain-all")
def test_it(profile_step):
    step(profile_step)
"""
    result = run(pytester, body)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["The saved bytes of mode retain-all:*"])


def test_a_real_run_is_measured_on_demand(pytester: pytest.Pytester) -> None:
    body = """
@pytest.mark.limit_peak("1MiB")
def test_it(profile_step):
    assert step(profile_step, dry=False, rounds=1).runs[0].measured_peak_bytes > 0
"""
    run(pytester, body).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("marker", "test", "reason"),
    [
        ('limit_peak("1MiB")', "def test_it():\n    pass", "take it"),
        ('limit_peak("1MiB")', "def test_it(profile_step):\n    pass", "has profiled nothing"),
        ('limit_peak("much")', "def test_it(profile_step):\n    step(profile_step)", "is not a number with a unit"),
        ("limit_peak()", "def test_it(profile_step):\n    step(profile_step)", "is written as"),
        ('limit_peak("1MiB", mode="fast")', "def test_it(profile_step):\n    step(profile_step)", "is written as"),
    ],
)
def test_a_limit_that_would_check_nothing_is_no_success(
    marker: str, test: str, reason: str, pytester: pytest.Pytester
) -> None:
    result = run(pytester, f"@pytest.mark.{marker}\n{test}\n")
    assert result.ret != 0
    assert reason in result.stdout.str()


def test_the_example_in_the_docs_passes(pytester: pytest.Pytester) -> None:
    example = re.search(r"```python\n(.*?)```", DOCS, re.DOTALL)
    assert example is not None
    run(pytester, example[1]).assert_outcomes(passed=1)

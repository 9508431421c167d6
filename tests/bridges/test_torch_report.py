"""What a report of a PyTorch module says beside its figures, and which modules it refuses to be of."""

from __future__ import annotations

from functools import partial
from html import unescape

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from msgspec.structs import replace
from torch import nn

import memback.bridges.torch as bridge
from memback.errors import UsageError
from memback.reports.text import plain
from tests.bridges.test_torch_profile import Calls, X


def mean_of(y):
    return y.mean()


class Outcome(dict):
    """What models give that take their loss themselves."""

    loss = property(lambda self: self["loss"])


def test_the_report_says_which_loss_was_taken_and_in_which_mode_the_module_was():
    def told(module, **options):
        profile = bridge.profile(module, X, modes=["full"], dry=True, **options).profile
        return profile.data, profile.model["training"]

    linear = nn.Linear(8, 8)
    assert told(linear) == ({"loss": "the sum of what the module gives"}, True)
    assert told(linear.eval()) == ({"loss": "the sum of what the module gives"}, False)
    assert told(nn.Sequential(nn.Linear(8, 8), linear))[1] == "mixed"
    assert told(Calls(lambda m, x: m.first(x).mean()))[0]["loss"] == "the number that the module gives"
    assert told(Calls(lambda m, x: (m.first(x).mean(),)))[0]["loss"] == "the number that the module gives"
    assert told(Calls(lambda m, x: Outcome(loss=m.first(x).mean())))[0]["loss"] == "the output's own loss"
    assert told(linear, loss=mean_of)[0]["loss"] == f"{__name__}.mean_of"
    assert told(linear, loss=partial(mean_of))[0]["loss"] == f"{__name__}.mean_of"
    assert told(linear, loss=Calls(lambda m, y: y.sum()))[0]["loss"] == "Calls"
    assert told(linear, loss=torch.mean)[0]["loss"] == "torch.mean"
    unnamed = lambda y: y.mean()  # noqa: E731 - as people write losses
    line = unnamed.__code__.co_firstlineno
    assert told(linear, loss=unnamed)[0]["loss"] == f"<lambda> (test_torch_report.py:{line})"
    cast = told(linear, autocast=torch.bfloat16, about={"data": {"inputs": ["4x8"], "loss": "mine"}})[0]
    assert cast == {"loss": "mine", "inputs": ["4x8"], "autocast": "bfloat16"}


def test_the_first_lines_say_how_the_step_was_run_and_whose_figures_they_are(tmp_path):
    module = nn.Sequential(nn.Linear(8, 8), nn.Dropout())
    dry, real = (bridge.profile(module, X, modes=["full"], dry=flag, rounds=0) for flag in (True, False))
    how = "The module is in training mode. Loss: the sum of what the module gives."
    whose = "These are a CPU's figures: a GPU's kernels save other values, and its figures differ."
    for report, said in ((dry, [how, whose]), (real, [how])):
        assert plain(report.__rich__()).splitlines()[1 : len(said) + 2][:-1] == said
        for file in ("r.html", "r.md", "r.txt"):
            report.save(tmp_path / file, force=True)
            shown = unescape((tmp_path / file).read_text("utf-8"))
            assert [line in shown for line in (how, whose)] == [True, report is dry]
        assert how in unescape(report._repr_html_())


def test_the_table_of_memory_has_no_row_for_an_optimiser_that_is_not_there():
    report = bridge.profile(nn.Linear(8, 8), X, modes=["full"], dry=True)
    shown = plain(report.__rich__())
    assert not [line for line in shown.splitlines() if line.startswith("optimiser state")]
    assert "Optimiser state is not included: it comes on top (Adam keeps two numbers per parameter)" in shown


def test_what_prediction_and_measurement_differ_by_is_explained_where_they_do():
    report = bridge.profile(nn.Linear(8, 8), X, modes=["full"], rounds=0)
    (run,) = report.runs
    assert run.measured_peak_bytes == run.predicted_peak_bytes
    assert "Difference:" not in plain(report.__rich__())
    more = replace(report, runs=(replace(run, measured_peak_bytes=run.measured_peak_bytes + 1),))
    assert "Difference: measured minus predicted. The real step ran other ops than the dry run" in plain(
        more.__rich__()
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_modules_are_refused():
    module = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    scripted, traced = torch.jit.script(module), torch.jit.trace(module, X)
    for owner, name in ((scripted, "the module"), (traced, "the module"), (nn.Sequential(scripted), "submodule 0")):
        said = f"^{name} is scripted.*before torch.jit.script or torch.jit.trace$"
        for ask in (
            lambda: bridge.profile(owner, X),  # noqa: B023
            lambda: bridge.profile(owner, X, dry=True),  # noqa: B023
            lambda: bridge.plan(owner, X, budget="1MiB"),  # noqa: B023
            lambda: bridge.predict(lambda: owner, X, strategy="fsdp2", ranks=2),  # noqa: B023
        ):
            with pytest.raises(UsageError, match=said):
                ask()

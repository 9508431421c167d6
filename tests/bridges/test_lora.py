"""LoRA on a ResNet-50: what the page says of it is what a dry run gives, and what peft's own layers keep."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from torch import nn

import memback.bridges.torch as bridge
from tests.bridges.torch_models import ResNet

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "lora-activations.md").read_text(encoding="utf-8")
MIB = 2**20
CONVOLUTIONS = 53
TRAINED = 317_772
"""Numbers that LoRA trains, as peft counts them."""


class LoraConv2d(nn.Module):
    """What peft makes of a convolution: one to ``rank`` channels, and one of 1 × 1 back, beside the frozen one."""

    def __init__(self, base, rank, dropout):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.down = nn.Conv2d(base.in_channels, rank, base.kernel_size, base.stride, base.padding, bias=False)
        self.up = nn.Conv2d(rank, base.out_channels, 1, bias=False)
        self.scaling = 8 / rank

    def forward(self, x):
        return self.base(x) + self.up(self.down(self.dropout(x))) * self.scaling


def with_lora(dropout, model, rank=4):
    model.requires_grad_(False)
    owners = [(owner, name, part) for owner in model.modules() for name, part in owner.named_children()]
    found = [(owner, name, part) for owner, name, part in owners if isinstance(part, nn.Conv2d)]
    for owner, name, part in found:
        setattr(owner, name, LoraConv2d(part, rank, dropout))
    return model, len(found)


def by_op(run):
    """Saved bytes by op."""
    rows = Counter()
    for layer in run.layers:
        rows[layer.op] += layer.saved_bytes
    return rows


@cache
def reports():
    """Dry runs of all three, in the order of the page's table."""
    with torch.device("meta"):
        models = [ResNet(classes=1), *(with_lora(dropout, ResNet(classes=1))[0] for dropout in (0.1, 0.0))]
        return [bridge.profile(model, torch.empty(16, 3, 224, 224), modes=["full"]) for model in models]


def test_the_published_figures_come_out():
    with torch.device("meta"):
        model, convolutions = with_lora(0.1, ResNet(classes=1))
    assert convolutions == CONVOLUTIONS
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == TRAINED
    full, lora, _ = (report.runs[0].saved_bytes + report.arguments.input_bytes for report in reports())
    last_input = 16 * 2048 * 4  # freed by the moment that PyTorch's tracker shows
    assert (round((full - last_input) / MIB, 2), round(lora / MIB, 2)) == (1310.95, 2618.32)


def test_the_page_has_the_figures_of_the_dry_runs():
    totals = re.findall(r"^\| .* \| ([\d,]+) \| (\d+\.\d\d) \|$", PAGE, re.MULTILINE)
    found = [(report.runs[0].saved_bytes, report.arguments.input_bytes) for report in reports()]
    assert totals == [(f"{saved:,}", f"{(saved + given) / MIB:.2f}") for saved, given in found]
    rows = re.findall(r"^\| `(\w+)` \| .* \| ([\d,]+) \| ([\d,]+) \|$", PAGE, re.MULTILINE)
    dropped, plain = (by_op(report.runs[0]) for report in reports()[1:])
    assert rows == [(op, f"{dropped[op]:,}", f"{plain[op]:,}") for op in ("empty_like", "mul", "add", "convolution")]


def test_dropout_is_all_that_doubles():
    full, dropped, plain = (by_op(report.runs[0]) for report in reports())
    assert dropped - plain == {"empty_like": dropped["empty_like"], "mul": dropped["mul"]}
    assert (
        plain.total() - full.total() == plain["convolution"] - full["mean"]
    )  # and the frozen last layer keeps nothing
    assert dropped["mul"] - dropped["empty_like"] == 16 * 3 * 224 * 224 * 4  # as no gradient is asked for of the image


@pytest.mark.parametrize("dropout", [0.1, 0.0])
def test_a_real_step_keeps_what_the_dry_one_says(dropout):
    model, _ = with_lora(dropout, ResNet((1, 1, 1, 1), width=8, classes=1))
    real = bridge.profile(model, torch.randn(2, 3, 64, 64), modes=["full"], rounds=0).runs[0]
    dry = bridge.profile(model, torch.randn(2, 3, 64, 64), modes=["full"], dry=True).runs[0]
    assert by_op(real) == by_op(dry)
    assert real.measured_peak_bytes == dry.predicted_peak_bytes


def test_peft_s_own_layers_keep_the_same_and_the_page_s_code_says_so(capsys):
    pytest.importorskip("peft")
    pytest.importorskip("torchvision")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(code, "lora-activations.md", "exec"), {})
    expected = []
    for report in reports():
        (run,) = report.runs
        expected.append(f"{run.saved_bytes} {run.saved_bytes + report.arguments.input_bytes}")
        expected += [f"{op} {by_op(run)[op]}" for op in ("empty_like", "mul", "add", "convolution")]
    assert capsys.readouterr().out.splitlines() == expected

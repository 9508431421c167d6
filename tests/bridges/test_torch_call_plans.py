"""Plans over calls: their peak is what is measured, gradients have the same bits, and no Python runs twice."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from contextlib import nullcontext
from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

import msgspec
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import memback.bridges.torch as bridge
from memback.bridges.torch.planning.call_plan import CallPlanning
from memback.bridges.torch.recording.replay import Region
from memback.bridges.torch.recording.step import Step, sum_of_outputs
from memback.commands import main
from memback.errors import UsageError
from tests.bridges.torch_models import GPT, ResNet, UNet
from tests.device.plan_figures import EXPECTED, planned, predicted

PLANS = json.loads(EXPECTED.read_text(encoding="utf-8"))


def square(output):
    return output.float().square().mean()


class Cells(nn.Module):
    """A loop over a cell."""

    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(8, 16)

    def forward(self, x):
        h = c = x.new_zeros(x.shape[0], 16)
        found = []
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
            found.append(h)
        return torch.stack(found, 1)


class InPlace(nn.Module):
    """Writes to what it has made, to views of it, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(16, 64), nn.Linear(64, 16)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        hidden = self.one(x)
        hidden[:, :32].mul_(2)
        hidden[:, 32:].add_(1)
        hidden = hidden * 2
        hidden.relu_()
        return self.two(F.dropout(hidden, 0.2, self.training))


class OwnCheckpoints(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList(nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(3))

    def forward(self, x):
        for part in self.parts:
            x = F.silu(checkpoint(part, x, use_reentrant=False)) * 2
        return x


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


MODELS = {
    "gpt": lambda: (GPT(3, 32, 2, 50, 32, 0.1), torch.arange(64).reshape(2, 32) % 50),
    "resnet": lambda: (ResNet((2, 2), 8, 10), images(2, 3, 32, 32)),
    "unet": lambda: (UNet(8, 2), images(1, 3, 32, 32)),
    "transformer encoder": lambda: (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2, enable_nested_tensor=False),
        images(4, 16, 32),
    ),
    "lstm": lambda: (nn.LSTM(16, 32, 2, batch_first=True), images(4, 12, 16)),
    "lstm cells": lambda: (Cells(), images(4, 12, 8)),
    "norms and activations in place": lambda: (
        nn.Sequential(
            *(
                layer
                for _ in range(3)
                for layer in (nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU6(inplace=True))
            )
        ),
        images(2, 4, 16, 16),
    ),
    "in place": lambda: (nn.Sequential(*(InPlace() for _ in range(3))), images(64, 16)),
    "own checkpoints": lambda: (OwnCheckpoints(), images(64, 32)),
    "weight norm": lambda: (
        nn.Sequential(*(nn.utils.parametrizations.weight_norm(nn.Linear(32, 32)) for _ in range(3))),
        images(64, 32),
    ),
}


def built(name):
    torch.manual_seed(0)
    return MODELS[name]()


def loss(output):
    return square(output[0] if isinstance(output, tuple) else output)


def stepped(module, x):
    """One step's gradients, buffers afterwards, and the next random numbers."""
    torch.manual_seed(1)
    module.zero_grad()
    loss(module(x)).backward()
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return [*gradients, *(buffer.clone() for buffer in module.buffers()), torch.rand(3)]


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_fits_from_the_least_budget_upward_and_its_peak_is_the_measured_one(name):
    module, x = built(name)
    planning = CallPlanning(Step.of(module, (x,), None, loss, None))
    full, least = planning.full_peak_bytes(), planning.takes(planning.leanest)
    for budget in (least, (2 * least + full) // 3, (least + 2 * full) // 3):
        plan = planning.plan(budget)
        assert plan.peak_bytes + plan.reserve_bytes <= budget
        verdict = bridge.verify(plan, module, x, loss=loss)
        assert verdict.measured_peak_bytes == verdict.predicted_peak_bytes == plan.peak_bytes
        assert verdict.full_peak_bytes == full
        assert verdict.same_gradients


@pytest.mark.parametrize("name", MODELS)
def test_buffers_random_streams_and_modules_are_as_after_a_plain_step(name):
    module, x = built(name)
    plan = CallPlanning(Step.of(module, (x,), None, loss, None)).plan(2**40)
    funcs = plan.funcs
    plain = stepped(built(name)[0], x)
    with plan.apply(module):
        planned = stepped(module, x)
    assert all(map(torch.equal, plain, planned))
    module = built(name)[0]
    region = Region(funcs, range(len(funcs)))  # recompute whatever can be
    torch.manual_seed(1)
    with region:
        output = module(x)
    loss(output).backward()
    everything = [*(p.grad for p in module.parameters() if p.grad is not None), *module.buffers(), torch.rand(3)]
    assert region.lost is None
    assert all(map(torch.equal, plain, everything))


def test_products_are_recomputed_last():
    module, x = built("gpt")
    plan = bridge.plan(module, x, loss=square, budget="75%")
    assert plan.extra_flops == 0
    assert plan.again
    assert "least for this budget" in plan.optimality or plan.optimality.startswith("optimal")


def test_a_report_marks_the_calls_that_are_recomputed_and_no_others():
    module, x = built("gpt")
    plan = bridge.plan(module, x, loss=square, budget="75%")
    report = bridge.profile(module, x, loss=square, policy=plan, modes=["full"], dry=True)
    run = next(run for run in report.runs if run.mode == "checkpoint")
    assert run.predicted_peak_bytes == plan.peak_bytes
    marked = {(row.path, row.op) for row in run.layers if row.recomputed}
    wanted = {(one.path, one.op) for one in plan.recomputed}
    assert marked
    assert marked <= wanted


def test_the_frontier_rises_in_bytes_and_falls_in_flops():
    module, x = built("gpt")
    points = bridge.frontier(module, x, loss=square)
    assert points[-1].extra_flops == 0
    assert all(a.budget < b.budget and a.extra_flops > b.extra_flops for a, b in pairwise(points))


# -- what can happen to a graph


def recomputing(module, x):
    """A region in which whatever can be is recomputed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Region(CallPlanning(Step.of(module, (x,), None, sum_of_outputs, None)).recording.funcs, range(10**4))


def test_a_retained_graph_gives_the_same_gradients_again():
    module, x = built("gpt")
    with recomputing(module, x):
        torch.manual_seed(1)
        output = module(x)
    total = square(output)
    parameters = list(module.parameters())
    first = torch.autograd.grad(total, parameters, retain_graph=True)
    second = torch.autograd.grad(total, parameters)
    assert all(map(torch.equal, first, second))


def test_a_gradient_penalty_has_the_same_bits():
    def penalty(region):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Softplus(), nn.Linear(16, 1))
        x = images(4, 8).requires_grad_()
        if region is None:
            output = module(x)
        else:
            with region(module, x):
                output = module(x)
        (gradient,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        gradient.square().sum().backward()
        return [p.grad for p in module.parameters() if p.grad is not None]

    assert all(map(torch.equal, penalty(None), penalty(recomputing)))


def test_two_losses_over_one_trunk_have_the_same_bits():
    def both(planned):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 2), nn.Tanh())
        x = images(16, 8)
        if planned:
            with recomputing(module, x):
                output = module(x)
        else:
            output = module(x)
        output[:, 0].sum().backward(retain_graph=True)
        output[:, 1].square().sum().backward()
        return [p.grad for p in module.parameters()]

    assert all(map(torch.equal, both(False), both(True)))


def test_an_input_that_is_changed_in_place_after_the_forward_pass_is_an_error():
    module, x = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)), images(16, 8)
    with recomputing(module, x):
        output = module(x)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="was changed in place after the forward pass"):
        output.sum().backward()


class Twice(torch.autograd.Function):
    """Asks for its saved tensors twice."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx, grad):
        (first,), (second,) = ctx.saved_tensors, ctx.saved_tensors
        return grad * (first + second)


def differentiates(x):
    """Runs backward in its forward pass."""
    inner = x.detach().requires_grad_()
    hidden = F.gelu(inner * 2)
    (slope,) = torch.autograd.grad((hidden * hidden.sigmoid()).sum(), inner, create_graph=True)
    return F.gelu(x) * slope.detach()


def writes_out(x):
    """Writes to what it has made, by name."""
    made = F.gelu(x)
    with torch.no_grad():
        torch.add(made.detach(), 1.0, out=made.detach())
    return torch.tanh(made) * made


CODE = {
    "saved tensors asked for twice": Twice.apply,
    "backward in forward": differentiates,
    "written to by name": writes_out,
    "an inference tensor": lambda x: F.gelu(x + INFERRED).tanh(),
}
with torch.inference_mode():
    INFERRED = torch.full((16,), 0.5)


@pytest.mark.parametrize("name", CODE)
def test_gradients_of_unusual_code_have_the_same_bits(name):
    class Uses(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x):
            return F.gelu(self.two(CODE[name](F.gelu(self.one(x)))))

    def gradients(planned):
        torch.manual_seed(0)
        module, x = Uses(), images(8, 16)
        region = recomputing(module, x) if planned else nullcontext()
        with region:
            output = module(x)
        square(output).backward()
        return [p.grad for p in module.parameters()]

    assert all(map(torch.equal, gradients(False), gradients(True)))


def test_a_step_that_goes_another_way_keeps_what_follows_and_says_so():
    class Turns(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
            self.other = False

        def forward(self, x):
            for number, layer in enumerate(self.layers):
                x = torch.tanh(layer(x)) if self.other and number == 2 else F.gelu(layer(x))
            return x

    torch.manual_seed(0)
    module, x = Turns(), images(64, 32)
    plan = bridge.plan(module, x, loss=square, budget="80%")
    module.other = True
    plain = stepped(module, x)
    with plan.apply(module), pytest.warns(bridge.PlanWarning, match="takes another way .* from call"):
        planned = stepped(module, x)
    assert all(map(torch.equal, plain, planned))


def test_a_smaller_batch_runs_under_the_same_plan():
    module, x = built("resnet")
    plan = bridge.plan(module, x, loss=square, budget="80%")
    plain = stepped(built("resnet")[0], x[:1])
    with plan.apply(module), warnings.catch_warnings():
        warnings.simplefilter("error")
        planned = stepped(module, x[:1])
    assert all(map(torch.equal, plain, planned))


def test_python_runs_once():
    class Counted(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
            self.seen = []

        def forward(self, x):
            self.seen.clear()
            for part in self.parts:
                x = F.gelu(part(x))
                self.seen.append(tuple(x.shape))
            return x

    torch.manual_seed(0)
    module, x, hooked = Counted(), images(64, 32), []
    plan = bridge.plan(module, x, loss=square, budget="80%")
    module.parts[1].register_forward_hook(lambda *_: hooked.append(1))
    with plan.apply(module):
        square(module(x)).backward()
    assert len(module.seen) == 3
    assert hooked == [1]


# -- files, code, the command


def test_a_file_gives_the_same_plan():
    module, x = built("gpt")
    plan = bridge.plan(module, x, loss=square, budget="60%")
    assert bridge.TorchPlan.from_dict(msgspec.json.decode(msgspec.json.encode(plan.to_dict()))) == plan


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"again": [10**6]}, "'again' names calls that are not among its"),
        ({"calls": [10**6], "again": []}, "'calls' name ops that are not among its"),
        ({"again": "all"}, "again"),
        ({"peak_bytes": None}, "peak_bytes"),
    ],
)
def test_a_malformed_file_is_refused(change, said):
    module, x = built("lstm")
    data = {**msgspec.to_builtins(bridge.plan(module, x, loss=loss, budget="100%").to_dict()), **change}
    with pytest.raises(UsageError, match=said):
        bridge.TorchPlan.from_dict(data)


def test_the_code_runs_with_pytorch_alone(tmp_path):
    module, x = built("transformer encoder")
    plan = bridge.plan(module, x, loss=square, budget="70%")
    (tmp_path / "planned.py").write_text(plan.code(), encoding="utf-8")
    program = """
import sys
import torch
from torch import nn
import planned
torch.manual_seed(0)
make = lambda: nn.TransformerEncoder(
    nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2, enable_nested_tensor=False)
module = make()
x = torch.randn(4, 16, 32, generator=torch.Generator().manual_seed(0))
def gradients():
    torch.manual_seed(1)
    module.zero_grad()
    module(x).square().mean().backward()
    return [p.grad for p in module.parameters()]
plain = gradients()
revert = planned.apply(module)
assert all(map(torch.equal, plain, gradients()))
revert()
assert "memback" not in sys.modules
assert "forward" not in vars(module)
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, env={"PYTHONPATH": str(tmp_path)})


def test_a_card_is_planned_for_with_its_kernels_and_predicted_seconds():
    module, x = built("gpt")
    plan = bridge.plan(module, x, loss=square, budget="80%", device="cuda:a100")
    assert plan.extra_seconds > 0
    assert plan.reserve_bytes == 0
    assert any("native_dropout" in func for func in plan.funcs)


@pytest.mark.parametrize("budget", PLANS["plans"])
def test_a_planned_step_takes_to_the_byte_what_pytorchs_host_code_takes_for_it(budget):
    assert predicted(planned(budget)) == PLANS["plans"][budget]


def test_what_how_asks_for_and_other_options_must_agree():
    module, x = built("lstm")
    with pytest.raises(UsageError, match="how='magic' is unknown: plans are over calls or checkpoint"):
        bridge.plan(module, x, budget="80%", how="magic")
    with pytest.raises(UsageError, match="blocks and timed are for"):
        bridge.plan(module, x, budget="80%", how="calls", blocks=["*"])


def test_nothing_fits_says_what_would():
    module, x = built("gpt")
    with pytest.raises(bridge.NoPlanError) as caught:
        bridge.plan(module, x, loss=square, budget=64)
    least = caught.value.minimum_bytes
    assert bridge.plan(module, x, loss=square, budget=least).peak_bytes <= least


def test_the_command_shows_what_is_recomputed(capsys):
    assert (
        main(["torch", "tests.bridges.torch_models:small_gpt", "--input", "2x8:int64", "--dry", "--budget", "92%"]) == 0
    )
    shown = capsys.readouterr().out
    assert "Recomputed in backward" in shown
    assert "h.*" in shown

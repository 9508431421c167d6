"""Training steps of the user's own, predicted on a card: beside what PyTorch's host code took, and what they leave."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from functools import partial
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from msgspec.structs import replace
from torch import nn
from torch.nn import functional as F

import memback.bridges.torch as bridge
from memback.bridges.torch.recording.allocator import allocated
from memback.errors import MembackError, UsageError
from memback.profiling.report import Report
from memback.reports.text import plain
from memback.units import MIB
from tests.device.steps import STEPS

STORED = Path(__file__).parents[1] / "device" / "expected_steps.json"
EXPECTED = json.loads(STORED.read_text(encoding="utf-8"))["steps"]

predicted = partial(bridge.profile_step, device="cuda:h200")


def mlp(width=64):
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def trained(model, optimizer, x):
    """A step of the plainest kind."""
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss


@pytest.fixture
def parts():
    model = mlp()
    return model, torch.optim.AdamW(model.parameters()), torch.ones(8, 64)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_of_any_kind_takes_to_the_byte_what_pytorchs_host_code_takes(name):
    device = predicted(STEPS[name]("cpu"), device="cuda:h200").device
    expected = EXPECTED[name]
    assert device.static_bytes == expected["static_bytes"]
    for which in ("first", "steady"):
        found = getattr(device, which)
        assert found.allocated_peak_bytes == expected[which]["allocated_peak_bytes"]
        assert abs(found.reserved_peak_bytes - expected[which]["reserved_peak_bytes"]) <= 2 * MIB  # a small segment


def test_a_step_of_ones_own_is_the_one_that_profile_predicts(parts):
    model, _, x = parts
    square = lambda y: y.square().mean()  # noqa: E731
    options = {"modes": ["full"], "dry": True, "device": "cuda:h100", "optimizer": torch.optim.SGD}
    of_profile = bridge.profile(model, x, loss=square, **options).device
    optimizer = torch.optim.SGD(model.parameters())

    def step():
        square(model(x)).backward()
        optimizer.step()
        optimizer.zero_grad()

    device = predicted(step, device="cuda:h100").device
    of_profile_too = [replace(one, peak=None) for one in (of_profile.first, of_profile.steady)]  # what it is made up of
    assert [device.first, device.steady] == of_profile_too
    assert device.static_bytes == of_profile.static_bytes


HERE = [name for name in STEPS if name not in ("accumulated-and-clipped", "scaled", "two-networks")]
"""Those that do not name the card themselves."""


@pytest.mark.parametrize("name", HERE)
def test_without_a_card_a_step_takes_what_it_is_predicted_to_take(name):
    run = bridge.profile_step(STEPS[name]("cpu"), dry=False).runs[0]
    assert run.predicted_peak_bytes == run.measured_peak_bytes
    assert run.left_bytes == 0


@pytest.mark.parametrize("late", [False, True])
def test_without_a_card_a_step_takes_what_pytorchs_allocator_gives_out(parts, late):
    model, optimizer, x = parts

    def step():
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        if not late:
            optimizer.zero_grad()

    run = bridge.profile_step(step).runs[0]
    assert not optimizer.state
    step()
    given_out = allocated(step, torch.device("cpu")).peak_bytes
    assert 0 <= given_out - run.predicted_peak_bytes < 64  # numbers of Python's, which kernels have as tensors


def test_what_others_have_left_in_cycles_is_not_given_back_by_a_step():
    class Left:
        def __init__(self):
            self.me, self.held = self, torch.ones(1000)

    def step():
        before = [torch.ones(100) for _ in range(10)]
        garbage = [Left() for _ in range(3)]
        del garbage
        for _ in range(3000):  # enough objects for a collection
            before.append([before[0]])
        return torch.ones(5000)

    peaks = {allocated(step, torch.device("cpu")).peak_bytes for _ in range(4)}
    assert peaks == {4 * (1000 + 3000 + 5000)}


def test_a_step_that_has_run_for_real_has_left_everything_as_it_was(parts):
    model, optimizer, x = parts
    trained(model, optimizer, x)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    random = torch.get_rng_state()
    report = bridge.profile_step(lambda: trained(model, optimizer, x * torch.rand(8, 64)), dry=False)
    torch.testing.assert_close((model.state_dict(), optimizer.state_dict()), before, rtol=0, atol=0)
    assert torch.equal(random, torch.get_rng_state())
    assert model[0].weight.grad is None
    assert report.runs[0].measured_peak_bytes == report.runs[0].predicted_peak_bytes


def test_what_a_step_works_with_is_found_in_its_arguments_its_closure_and_its_globals(parts):
    model, optimizer, x = parts
    reports = [
        predicted(trained, model, optimizer, x),
        predicted(trained, model, kwargs={"optimizer": optimizer, "x": x}),
        predicted(lambda: trained(model, optimizer, x)),
    ]
    assert len({report.device.steady for report in reports}) == 1
    sizes = {name: size for name, size in reports[0].arguments.by_name().items() if size}
    parameters = 2 * 4 * (64 * 64 + 64)
    assert sizes == {"parameters": parameters, "inputs": 8 * 64 * 4, "optimiser state": 2 * parameters}


def test_afterwards_everything_is_as_before(parts):
    model, optimizer, x = parts
    trained(model, optimizer, x)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    averages = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    losses, counts = [], {"steps": 0}
    model[0].weight.grad = torch.ones(64, 64)

    def step():
        losses.append(trained(model, optimizer, x))
        schedule.step()
        counts["steps"] += 1
        for name, tensor in model.named_parameters():
            averages[name].lerp_(tensor.detach(), 0.1)

    objects = [model[0].weight, model[0].weight.grad, *averages.values(), x]
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), averages, schedule.state_dict()))
    random = torch.get_rng_state()
    predicted(step)
    after = (model.state_dict(), optimizer.state_dict(), averages, schedule.state_dict())
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert all(type(tensor) in (torch.Tensor, nn.Parameter) for tensor in objects)
    assert model[0].weight.grad is objects[1]
    assert (losses, counts) == ([], {"steps": 0})
    assert torch.equal(random, torch.get_rng_state())
    step()
    assert losses[0].item() > 0


def test_after_a_step_that_fails_everything_is_as_before_too(parts):
    model, optimizer, x = parts

    def step():
        trained(model, optimizer, x)
        raise RuntimeError("no more")

    with pytest.raises(MembackError, match="no more"):
        predicted(step)
    assert not optimizer.state
    assert trained(model, optimizer, x).item() > 0


def test_hooks_of_parameters_run_on_the_card_and_afterwards_as_before(parts):
    model, _, x = parts
    seen = []
    model[0].weight.register_hook(lambda gradient: seen.append(gradient.device.type))
    model[2].weight.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter.device.type))
    devices = set()

    def step():
        model(x).sum().backward()
        devices.update(seen)
        assert set(seen) == {"cuda"}

    predicted(step)
    assert not seen
    model(x).sum().backward()
    assert seen == ["cpu", "cpu"]


def test_the_update_is_a_phase_of_the_timeline_and_of_the_peak(parts):
    model, optimizer, _ = parts
    run = predicted(trained, model, optimizer, torch.ones(1, 64)).runs[0]
    assert [phase for phase in ("forward", "backward", "update") if phase in {e.phase for e in run.timeline}] == [
        "forward",
        "backward",
        "update",
    ]
    parameters = 2 * 4 * (64 * 64 + 64)
    assert run.peak.phase == "update"
    assert run.peak.gradients == parameters  # they are there while the update makes as much again
    assert run.peak.total_bytes >= 2 * parameters
    assert run.gradient_bytes == parameters


def test_gradients_that_outlive_a_step_are_there_before_the_next(parts):
    model, optimizer, x = parts

    def step():
        model(x).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    run = predicted(step).runs[0]
    assert run.timeline[0].category == "gradients"
    assert run.peak.gradients >= 2 * 4 * (64 * 64 + 64)
    assert run.left_bytes == 0


def test_a_number_that_a_step_reads_is_taken_to_be_one_and_the_report_says_where(parts):
    model, optimizer, x = parts
    read = []

    def step():
        loss = trained(model, optimizer, x)
        if not torch.isfinite(loss) or loss.item() > 2:
            raise AssertionError
        read.append(loss.item())

    device = predicted(step).device
    assert len(device.assumed) == 2
    assert all("test_torch_profile_step.py:" in place for place in device.assumed)
    report = predicted(step)
    assert "taken to be 1" in " ".join(plain(report).split())
    assert Report.from_json(json.dumps(report.to_dict())) == report


def test_a_batch_that_the_step_moves_itself_is_not_on_the_card_before(parts):
    model, optimizer, x = parts
    there = predicted(trained, model, optimizer, x).device
    moved = predicted(lambda: trained(model, optimizer, x.to("cuda"))).device
    assert there.static_bytes - moved.static_bytes == x.nbytes
    assert moved.steady.allocated_peak_bytes <= there.steady.allocated_peak_bytes


class Making(OrderedDict):
    """Makes what it is asked for, as tables of classes do."""

    def __getitem__(self, name):
        raise TypeError(f"{name} takes an argument")


def test_tables_that_make_what_they_are_asked_for_are_only_looked_at(parts):
    model, optimizer, x = parts
    table = Making(relu=F.relu)

    def step():
        assert len(table) == 1
        trained(model, optimizer, x)

    assert predicted(step).runs


def test_a_module_without_memory_is_trained(parts):
    with torch.device("meta"):
        model = mlp(4096)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    with torch.device("meta"):
        x = torch.empty(16, 4096)
    device = predicted(trained, model, optimizer, x, device="cuda:a100-80gb").device
    parameters = 2 * 4 * (4096 * 4096 + 4096)
    assert device.steady.allocated_peak_bytes > 4 * parameters
    assert model[0].weight.is_meta


def test_an_optimiser_that_runs_forward_and_backward_itself():
    model, x = mlp(), torch.ones(8, 64)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)

    def closure():
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    run = predicted(lambda: optimizer.step(closure)).runs[0]
    assert {event.phase for event in run.timeline} == {"forward", "backward", "update"}


def test_a_module_is_called_as_the_step_calls_it(parts):
    student, optimizer, x = parts
    teacher = nn.Sequential(nn.Linear(64, 64))

    def step():
        with torch.no_grad():
            wanted = teacher(x)
        F.mse_loss(student(x), wanted).backward()
        optimizer.step()
        optimizer.zero_grad()

    paths = {layer.path for layer in predicted(step).runs[0].layers}
    assert {"student.0", "student.2"} <= paths


def test_a_scaler_that_is_switched_off_is_no_secret(parts):
    model, optimizer, x = parts
    scaler = torch.amp.GradScaler("cuda", enabled=False)

    def step():
        scaler.scale(model(x).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    with pytest.warns(UserWarning, match="switched off"):
        predicted(step)


@pytest.mark.parametrize(
    ("step", "options", "message"),
    [
        (lambda: None, {}, "trains no module, optimiser or tensor that can be found"),
        (3, {}, "is no function that trains once"),
        (lambda: None, {"device": "cuda:h10"}, "card 'cuda:h10' is not known"),
        (lambda: None, {"dry": False}, "leave out dry=False"),
    ],
)
def test_what_can_not_be_predicted_is_refused_with_a_remedy(step, options, message):
    with pytest.raises(UsageError, match=message):
        predicted(step, **options)


def test_a_step_that_decides_on_values_says_so(parts):
    model, optimizer, x = parts

    def step():
        loss = trained(model, optimizer, x)
        if (model[0].weight > 0).any():
            loss.detach()

    with pytest.raises(MembackError, match="takes a decision on values"):
        predicted(step)

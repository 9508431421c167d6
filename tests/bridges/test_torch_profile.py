from __future__ import annotations

import functools
import hashlib
import warnings
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

import memback.bridges.torch as bridge
from memback.bridges.torch.recording.tracking import Tracker
from memback.errors import MembackError, UsageError
from memback.profiling.report import Report
from tests.bridges.torch_models import Calls, on_values

X = torch.ones(4, 8)
BYTES = 4 * 8 * 4


def profile(module: Any, *inputs: Any, **options: Any) -> Report:
    """A real profile whose every prediction holds, and a dry one that says the same."""
    report = bridge.profile(module, *inputs, rounds=1, **options)
    dry = bridge.profile(module, *inputs, dry=True, **options)
    for run, predicted in zip(report.runs, dry.runs, strict=True):
        assert run.measured_peak_bytes == run.predicted_peak_bytes == predicted.predicted_peak_bytes
        assert [layer.saved_bytes for layer in run.layers] == [layer.saved_bytes for layer in predicted.layers]
    return report


def full(module: Any, *inputs: Any, **options: Any) -> Any:
    return profile(module, *inputs, modes=("full",), **options).runs[0]


def saved(run: Any) -> list[tuple[str, str, str]]:
    return [(layer.path, layer.op, value.name) for layer in run.layers for value in layer.saved]


# -- rows


def test_a_row_says_which_module_and_line_keeps_what_from_where():
    run = full(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)), X)
    assert [(layer.path, layer.op) for layer in run.layers] == [
        ("0", "addmm"),
        ("1", "relu"),
        ("2", "addmm"),
        ("", "sum"),
    ]
    relu, last = run.layers[1], run.layers[2]
    assert relu.saved_bytes == BYTES == last.shared_bytes
    assert last.saved_bytes == 0
    assert last.saved[0].origin == "output of relu (1)"
    assert last.saved[0].source.startswith("test_torch_profile.py:")
    assert last.parameter_bytes == (8 * 8 + 8) * 4
    assert last.flops == 2 * 4 * 8 * 8
    assert (relu.output_shape, relu.dtype) == ((4, 8), "float32")


def test_views_are_charged_to_the_storage_that_they_look_into():
    run = full(Calls(lambda m, x: m.first(x).view(2, 2, 8).transpose(0, 1)[:, :1].exp().sin()), X)
    assert saved(run) == [("", "exp", "result"), ("", "sin", "self")]
    run = full(Calls(lambda m, x: m.first(x)[:1].sin()), X)
    assert run.saved_bytes == BYTES  # a row of it keeps all
    assert run.layers[0].op == "addmm"
    assert run.layers[0].saved_bytes == BYTES


def test_what_nobody_uses_is_not_saved():
    run = full(Calls(lambda m, x: (m.first(x).tanh().exp(), m.second(x))[1]), X)
    assert run.saved_bytes == 0


def test_frozen_parameters_need_no_inputs():
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    assert full(module, X).saved_bytes == 2 * BYTES
    module[1].weight.requires_grad = False
    assert full(module, X).saved_bytes == BYTES


def test_tied_weights_are_one_parameter():
    module = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False))
    module[2].weight = module[0].weight
    report = profile(module, X)
    assert report.arguments.parameter_bytes == report.runs[1].gradient_bytes == 8 * 8 * 4


def test_ops_in_place_make_nothing():
    run = full(Calls(lambda m, x: F.relu(m.first(x).mul_(2).add_(1), inplace=True)), X)
    assert run.saved_bytes == run.layers[0].saved_bytes == BYTES
    assert saved(run) == [("", "relu_", "result")]


def test_a_saved_tensor_that_is_changed_in_place_is_an_error_in_a_dry_run_too():
    module = Calls(lambda m, x: m.first(x).exp().add_(1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        bridge.profile(module, X)
    with pytest.raises(MembackError, match=r"what exp \(layer \(top\)\) keeps.*was changed in place"):
        bridge.profile(module, X, dry=True)


def test_inputs_may_be_nested_named_and_no_tensors():
    def function(m: Any, pair: Any, scale: float, *, mask: Any, names: Any) -> Any:
        assert names == ["a"]
        return {"y": m.first(pair["x"][0]) * mask * scale}

    module = Calls(function)
    report = profile(module, {"x": [X]}, 2.0, kwargs={"mask": torch.ones(4, 8), "names": ["a"]})
    assert report.arguments.input_bytes == 2 * BYTES
    assert report.runs[1].saved_bytes == 0  # the mask and the input are arguments


def test_an_input_that_wants_a_gradient_gets_one_that_is_no_parameters():
    x = X.clone().requires_grad_()
    run = full(nn.Linear(8, 8), x)
    assert run.gradient_bytes == (8 * 8 + 8) * 4
    assert x.grad is None


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        twice = x * 2
        ctx.save_for_backward(x, twice)
        return twice.exp()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, twice = ctx.saved_tensors
        return gradients[0] * x * twice


def test_a_custom_function_has_a_row_of_its_own():
    run = full(Calls(lambda m, x: m.second(Doubled.apply(m.first(x)))), X)
    row = next(layer for layer in run.layers if layer.op == "Doubled")
    assert [value.origin for value in row.saved] == ["output of addmm (first)", "output of mul"]
    assert run.saved_bytes == 3 * BYTES


def test_gradients_of_gradients_are_saved_too():
    def penalty(m: Any, x: Any) -> Any:
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            y = m.first(x).tanh().sum()
            return y + torch.autograd.grad(y, x, create_graph=True)[0].square().sum()

    run = full(Calls(penalty), X)
    assert {"first", ""} == {path for path, _, _ in saved(run)}
    assert ("", "pow", "self") in saved(run)
    assert not any(layer.recomputed for layer in run.layers)


def test_inputs_that_were_computed_are_inputs_all_the_same_and_stay_as_they_were():
    x = torch.ones(4, 8, requires_grad=True).mul(2)
    module = Calls(lambda m, x: m.first(x.detach().add_(1)))
    run = full(module, x)
    assert torch.equal(x, torch.full((4, 8), 2.0))
    assert run.loss == pytest.approx(module(x).sum().item())


def test_what_the_loss_compares_with_is_an_input_too():
    y = torch.ones(4, 8)
    report = profile(nn.Linear(8, 8), X, loss=lambda out: F.mse_loss(out, y))
    assert report.arguments.input_bytes == 2 * BYTES
    assert report.arguments.parameter_bytes == (8 * 8 + 8) * 4


@pytest.mark.parametrize("loss", ["mse_loss", "smooth_l1_loss", "binary_cross_entropy", "soft_margin_loss"])
def test_a_loss_that_was_many_numbers_has_room_for_all_of_them(loss):
    run = full(nn.Sequential(nn.Linear(8, 8), nn.Sigmoid()), X, loss=lambda y: getattr(F, loss)(y, torch.ones(4, 8)))
    made = {event.buffer: event.bytes for event in run.timeline}
    assert made[next(buffer.buffer for buffer in run.buffers if buffer.op == loss)] == BYTES
    assert run.layers[-1].output_shape == ()


# -- checkpoints


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_a_checkpoint_computes_again_is_told(reentrant):
    x = torch.ones(400, 8, requires_grad=True)
    inside = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())

    def function(m: Any, x: Any) -> Any:
        return m.second(checkpoint(inside, m.first(x), use_reentrant=reentrant))

    module = Calls(function)
    module.inside = inside
    run = full(module, x)
    assert {layer.path for layer in run.layers if layer.recomputed} == {f"inside.{n}" for n in range(4)}
    assert run.saved_bytes == 200 * BYTES  # what goes into the checkpoint, and what comes out
    assert run.recomputed_flops == 2 * 2 * 400 * 8 * 8
    # The results of tanh; without reentrance it is there where the last one is being computed, from a third value.
    assert run.peak.recomputed == (200 if reentrant else 300) * BYTES
    assert run.seconds.recompute > 0


def test_an_op_outside_of_a_checkpoint_does_not_run_again_for_one_inside_of_it():
    def inside(x: Any) -> Any:
        return x.sin().exp()

    module = Calls(lambda m, x: checkpoint(inside, m.first(x).sin(), use_reentrant=False))
    run = full(module, X)
    assert saved(run)[-1] == ("", "checkpoint", "saved")
    assert [(layer.op, layer.recomputed) for layer in run.layers] == [
        ("addmm", False),
        ("sin", False),
        ("checkpoint", False),
        ("sin", True),
        ("exp", True),
        ("sum", False),
    ]


def test_what_a_checkpoints_policy_puts_aside_counts_as_saved():
    inside = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8))

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> Any:
        keep = op == torch.ops.aten.addmm.default
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    module = Calls(lambda m, x: checkpoint(inside, x, use_reentrant=False, context_fn=contexts))
    module.inside = inside
    run = full(module, X.clone().requires_grad_())
    assert saved(run) == [("inside.0", "addmm", "kept"), ("inside.2", "addmm", "kept")]
    assert run.saved_bytes == 2 * BYTES
    assert run.recomputed_flops == 0


# -- modes


def test_retain_all_keeps_whatever_an_op_gives():
    module = Calls(lambda m, x: (m.first(x) + 1).tanh() * 2)
    retained, kept, inference = profile(module, X).runs
    assert retained.saved_bytes == 4 * BYTES + 4  # and the loss
    assert kept.saved_bytes == BYTES
    assert retained.gradient_sha256 == kept.gradient_sha256
    assert retained.loss == kept.loss == inference.loss
    assert retained.seconds is None


def test_the_digest_is_over_the_gradients_in_the_order_of_names():
    module = Calls(lambda m, x: m.first(m.second(x).tanh()))
    run = full(module, X)
    module(X).sum().backward()
    digest = hashlib.sha256()
    for name in ("first.bias", "first.weight", "second.bias", "second.weight"):
        digest.update(module.get_parameter(name).grad.numpy().tobytes())
    assert run.gradient_sha256 == digest.hexdigest()


@pytest.mark.parametrize("dry", [False, True])
def test_the_module_is_afterwards_as_it_was(dry):
    module = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(), Calls(_caching))
    module[0].weight.grad = gradient = torch.ones(8, 8)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    parameters, attributes = list(module.parameters()), set(vars(module[3]))
    torch.manual_seed(3)
    bridge.profile(module, X, dry=dry, rounds=1)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(now is then for now, then in zip(module.parameters(), parameters, strict=True))
    assert module[0].weight.grad is gradient
    assert module[0].bias.grad is None
    if dry:
        assert set(vars(module[3])) == attributes
    assert type(module(X)) is torch.Tensor


def _caching(m: Any, x: Any) -> Any:
    """As modules keep the angles of positions that they have computed once."""
    if not hasattr(m, "angles"):
        m.angles = torch.arange(8.0).cos()
    return m.first(x) * m.angles


def test_a_module_without_memory_is_profiled_dry():
    with torch.device("meta"):
        module, x = nn.Linear(2**20, 2**20), torch.empty(2**20, 2**20)
    run = bridge.profile(module, x, modes=("full",)).runs[0]
    assert run.measured_peak_bytes is None
    assert run.predicted_peak_bytes > 2**42


def test_a_module_that_was_made_and_copied_without_memory_is_profiled_as_a_real_one():
    def make() -> nn.Module:
        return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)

    x = torch.ones(2, 3, 8)
    expected = full(make(), x)
    with warnings.catch_warnings(action="ignore"), FakeTensorMode():
        module, fake = make(), torch.ones(2, 3, 8)
    found = bridge.profile(module, fake)
    assert found.runs[1].saved_bytes == expected.saved_bytes
    assert found.runs[1].predicted_peak_bytes == expected.measured_peak_bytes
    assert found.arguments.input_bytes == x.nbytes


def test_mixed_precision_saves_what_it_casts():
    run = full(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), X, autocast=torch.bfloat16)
    casts = [layer for layer in run.layers if layer.op == "_to_copy"]
    assert {layer.dtype for layer in casts} == {"bfloat16"}
    assert (
        run.saved_bytes == 2 * BYTES // 2 + 8 * 8 * 2
    )  # both inputs, and the weight that the second one's input needs


@pytest.mark.parametrize("suffix", ["json", "html", "md", "csv", "txt", "svg", "trace.json", "speedscope.json"])
def test_a_report_is_written_in_every_format(suffix, tmp_path):
    report = bridge.profile(nn.Linear(8, 8), X, rounds=1)
    report.save(tmp_path / f"report.{suffix}")
    assert (tmp_path / f"report.{suffix}").stat().st_size > 200
    if suffix == "json":
        assert Report.load(tmp_path / "report.json").to_dict() == report.to_dict()


# -- any step


def test_any_step_can_be_tracked():
    module = Calls(lambda m, x: m.second(m.first(x).tanh()))
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    with Tracker({f"parameter {name}": p for name, p in module.named_parameters()} | {"input": X}, module) as tracker:
        for _ in range(2):
            module(X).sum().backward()
        optimizer.step()
    tracker.finish()
    assert tracker.saved_at_end_of_forward == BYTES
    assert tracker.peak.bytes == sum(tracker.peak.parts.values())
    assert tracker.parameter_gradient_bytes == tracker.live_bytes == 2 * (8 * 8 + 8) * 4
    assert {event.phase for event in tracker.events} == {"forward", "backward"}


# -- what can't be told


def test_a_step_that_looks_at_values_is_measured_without_a_prediction():
    run = bridge.profile(on_values(), torch.ones(4, 4), modes=("full",), rounds=1).runs[0]
    assert run.predicted_peak_bytes is None
    assert run.peak.total_bytes == run.measured_peak_bytes
    with pytest.raises(MembackError, match=r"decision on values \(aten._local_scalar_dense.default\).*run it for real"):
        bridge.profile(on_values(), torch.ones(4, 4), dry=True)


def test_a_dry_run_says_where_the_size_of_something_is_not_known():
    with warnings.catch_warnings(action="ignore"):
        sparse = nn.Embedding(9, 4, sparse=True), torch.zeros(3, dtype=torch.int64)
        with pytest.warns(bridge.DryRunWarning, match="a sparse tensor.*too low") as said:
            bridge.profile(*sparse, dry=True)
    assert {warning.filename for warning in said if warning.category is bridge.DryRunWarning} == {__file__}
    run = bridge.profile(*sparse, modes=("full",), rounds=1).runs[0]
    assert run.predicted_peak_bytes is None
    assert run.measured_peak_bytes > 0


def test_compiled_modules_are_refused():
    module = nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(UsageError, match=r"the module is compiled.*_orig_mod"):
        bridge.profile(torch.compile(module, backend="eager"), X)
    module[0].compile(backend="eager")
    with pytest.raises(UsageError, match=r"submodule 0 is compiled.*before its compile\(\) was called") as refused:
        bridge.profile(module, X)
    assert "_orig_mod" not in str(refused.value)
    module[0]._compiled_call_impl = None  # which is what it says undoes that
    assert bridge.profile(module, X, rounds=0).runs


def test_compiled_functions_run_as_they_are_written():
    calls = []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append(graph)
        return graph.forward

    compiled = torch.compile(lambda x: x.sin().cos(), backend=backend)
    run = full(Calls(lambda m, x: compiled(m.first(x))), X)
    assert [name for _, _, name in saved(run)] == ["self", "self"]
    assert not calls


def test_wrong_requests_are_refused():
    with pytest.raises(UsageError, match="parameter weight has no shape yet"):
        bridge.profile(nn.LazyLinear(3), X)
    with pytest.raises(UsageError, match="the loss must be a tensor of one number, not a tensor of shape \\(4, 8\\)"):
        bridge.profile(nn.Linear(8, 8), X, loss=lambda y: y)
    with pytest.raises(UsageError, match="must be a tensor of one number, not 3"):
        bridge.profile(nn.Linear(8, 8), X, loss=lambda y: 3)
    with pytest.raises(UsageError, match="gives no floating-point tensor"):
        bridge.profile(nn.Identity(), torch.ones(3, dtype=torch.int64))
    with pytest.raises(UsageError, match="depends on no parameter or input that requires a gradient"):
        bridge.profile(nn.Identity(), X)
    with pytest.raises(UsageError, match="is no torch.nn.Module"):
        bridge.profile(3, X)
    with pytest.raises(UsageError, match="unknown mode 'half'"):
        bridge.profile(nn.Linear(8, 8), X, modes=("half",))

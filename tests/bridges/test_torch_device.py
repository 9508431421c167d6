"""Training steps on cards that are not there: predicted on a CPU, beside what PyTorch's own host code took for them."""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from torch import nn
from torch.nn import functional as F

import memback.bridges.torch as bridge
from memback.bridges.torch.device.autocast import LISTS
from memback.bridges.torch.device.cards import card
from memback.bridges.torch.device.exchange import on_card
from memback.errors import UsageError
from memback.profiling.report import Report
from memback.reports.text import plain
from memback.units import MIB
from tests.device.cases import CASES

EXPECTED = json.loads((Path(__file__).parents[1] / "device" / "expected.json").read_text(encoding="utf-8"))["cases"]
EXACT = [
    f"mlp {how} h200"
    for how in (
        "fp32 adamw",
        "amp adamw",
        "bf16 adamw",
        "fp32 adamw-fused",
        "fp32 adamw-loop",
        "fp32 sgd",
        "fp32 adafactor",
    )
]
CLOSE = [
    f"{model} {how} adamw h200" for model in ("transformer-encoder", "transformer") for how in ("fp32", "amp", "bf16")
]
X = torch.ones(4, 8)


@contextmanager
def cudnn_attention(allowed):
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(allowed)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def predicted(name):
    """A case's figures in the order in which they are stored."""
    case = CASES[name]
    step = case.build()
    with cudnn_attention(case.cudnn_attention):
        device = bridge.profile(
            step.module,
            *step.args,
            kwargs=step.kwargs,
            loss=step.loss,
            modes=["full"],
            dry=True,
            autocast=torch.bfloat16 if step.autocast else None,
            device=f"cuda:{case.card}",
            optimizer=step.optimizer,
        ).device
    assert not device.unmodelled
    figures = ("forward_bytes", "allocated_peak_bytes", "reserved_peak_bytes")
    found = {of: {f: getattr(getattr(device, of), f) for f in figures} for of in ("first", "steady")}
    return {"static_bytes": device.static_bytes, **found}


@pytest.mark.parametrize("name", EXACT)
def test_a_step_takes_to_the_byte_what_pytorchs_host_code_takes(name):
    assert predicted(name) == EXPECTED[name]


@pytest.mark.parametrize("name", CLOSE)
def test_a_step_takes_what_pytorchs_host_code_takes_but_for_its_allocators_leavings(name):
    found, expected = predicted(name), EXPECTED[name]
    for step in ("first", "steady"):
        for figure in ("forward_bytes", "allocated_peak_bytes"):
            difference = found[step][figure] - expected[step][figure]
            assert abs(difference) <= expected[step][figure] * 0.001 + 2 * MIB, (step, figure, difference)
        assert found[step]["reserved_peak_bytes"] == pytest.approx(expected[step]["reserved_peak_bytes"], rel=0.02)


def test_dropout_keeps_a_mask_of_a_byte_for_each_number():
    report = bridge.profile(nn.Dropout(0.5), X.clone().requires_grad_(), dry=True, modes=["full"], device="cuda:a100")
    assert report.runs[0].saved_bytes == X.numel()


def kernel_of(capability, dtype, size=64, **how):
    """The attention kernel that a card takes."""
    names = {(9, 0): "h100", (8, 0): "a100", (7, 5): "t4"}
    with on_card(card(names[capability]), nn.Identity(), ()):
        query = torch.empty(2, 4, 128, size, dtype=dtype, device="cuda", requires_grad=True)
        if "mask" in how:
            how["attn_mask"] = torch.ones(128, 128, dtype=torch.bool, device="cuda").tril() if how.pop("mask") else None
        name = F.scaled_dot_product_attention(query, query, query, **how).grad_fn.name()
    found = [kind for kind in ("Flash", "Efficient", "Cudnn") if kind in name]
    return found[0].lower() if found else "math"


@pytest.mark.parametrize(
    ("capability", "dtype", "how", "kernel"),
    [
        ((8, 0), torch.float32, {}, "efficient"),
        ((8, 0), torch.bfloat16, {}, "flash"),
        ((8, 0), torch.bfloat16, {"mask": True}, "efficient"),
        ((8, 0), torch.bfloat16, {"size": 72}, "flash"),
        ((8, 0), torch.float32, {"size": 66}, "math"),
        ((8, 0), torch.float64, {}, "math"),
        ((9, 0), torch.bfloat16, {}, "cudnn"),
        ((9, 0), torch.float16, {"dropout_p": 0.1}, "flash"),
        ((7, 5), torch.bfloat16, {}, "math"),
        ((7, 5), torch.float16, {}, "efficient"),
    ],
)
def test_attention_runs_in_the_kernel_that_the_card_would_take(capability, dtype, how, kernel):
    assert kernel_of(capability, dtype, **how) == kernel


def test_the_users_choice_of_attention_kernels_holds():
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        assert kernel_of((8, 0), torch.bfloat16) == "math"
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        assert kernel_of((9, 0), torch.bfloat16) == "efficient"


def test_every_op_that_pytorch_autocasts_on_cuda_is_in_a_list():
    refused = {"binary_cross_entropy"}
    ops = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")}
    autocast = {n[6:] for n in ops if torch._C._dispatch_has_kernel_for_dispatch_key(n, "AutocastCUDA")}
    assert autocast - refused <= {name for names in LISTS.values() for name in names.split()}


def test_autocast_on_a_card_casts_what_it_multiplies_and_adds_up_in_float32():
    with on_card(card("h100"), nn.Identity(), ()), torch.autocast("cuda", torch.bfloat16):
        x = torch.empty(4, 8, device="cuda")
        product = x @ x.t()
        assert (product.dtype, product.softmax(1).dtype, product.exp().dtype) == (
            torch.bfloat16,
            torch.float32,
            torch.float32,
        )


def test_afterwards_nothing_of_pytorch_is_other_than_before():
    available, tensor = torch.cuda.is_available, torch.tensor
    linear = nn.Linear(8, 8)
    weight = linear.weight
    bridge.profile(linear, X, dry=True, device="cuda:t4", optimizer=torch.optim.SGD)
    assert (torch.cuda.is_available, torch.tensor) == (available, tensor)
    assert linear.weight is weight
    assert weight.grad is None
    assert linear(X).sum().backward() is None


def test_integers_keep_their_values_on_the_card():
    class Chosen(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(8, 4)

        def forward(self, indices):
            return self.table(indices[: int(indices.max())][indices.nonzero()[0].item() :])

    report = bridge.profile(Chosen(), torch.tensor([0, 2, 3, 1]), dry=True, modes=["full"], device="cuda:h100")
    assert report.runs[0].layers[-1].saved_bytes >= 0


def test_an_optimizer_is_a_class_an_instance_or_a_function_of_the_parameters():
    linear = nn.Linear(64, 64)
    x = torch.ones(4, 64)
    instance = torch.optim.AdamW(linear.parameters())
    reports = [
        bridge.profile(linear, x, dry=True, modes=["full"], device="cuda:h100", optimizer=optimizer)
        for optimizer in (torch.optim.AdamW, instance, lambda parameters: torch.optim.AdamW(parameters, lr=1e-4))
    ]
    assert {report.arguments.optimizer_bytes for report in reports} == {2 * 4 * (64 * 64 + 64)}
    assert len({report.device.steady for report in reports}) == 1
    assert not instance.state


def test_the_report_says_what_a_step_takes_and_is_read_back():
    report = bridge.profile(nn.Linear(8, 8), X, dry=True, device="cuda:a100-80gb", optimizer=torch.optim.AdamW)
    text = " ".join(plain(report).split())
    assert "It fits on cuda:a100-80gb (NVIDIA A100-SXM4-80GB): a training step with AdamW needs" in text
    assert "to spare" in text
    assert "a CPU's figures" not in text
    read = Report.from_json(json.dumps(report.to_dict()))
    assert read.device == report.device
    assert read.device.capability == (8, 0)


def test_without_a_device_a_dry_run_says_whose_figures_they_are():
    report = bridge.profile(nn.Linear(8, 8), X, dry=True, modes=["full"])
    assert report.device is None
    assert report.to_dict()["device"] is None
    assert "These are a CPU's figures" in plain(report)


def test_what_a_library_alone_knows_is_named():
    report = bridge.profile(nn.Conv2d(3, 4, 3), torch.ones(1, 3, 8, 8), dry=True, modes=["full"], device="cuda:h100")
    assert report.device.unmodelled == {"convolution": "what cuDNN takes as workspace"}
    assert "Not known of convolution: what cuDNN takes as workspace." in plain(report)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:h10", "dry": True}, "card 'cuda:h10' is not known; write cuda:NAME with one of"),
        ({"device": "cuda:h100"}, "give dry=True"),
        ({"optimizer": torch.optim.SGD, "dry": True}, "give device="),
        ({"device": "cuda:h100", "dry": True, "optimizer": lambda parameters: 3}, "is no optimiser"),
    ],
)
def test_what_can_not_be_predicted_is_refused_with_a_remedy(options, message):
    with pytest.raises(UsageError, match=message):
        bridge.profile(nn.Linear(8, 8), X, modes=["full"], **options)


def test_an_optimizer_of_another_module_is_refused():
    other = torch.optim.SGD(nn.Linear(3, 3).parameters())
    with pytest.raises(UsageError, match="none of the module's"):
        bridge.profile(nn.Linear(8, 8), X, dry=True, modes=["full"], device="cuda:h100", optimizer=other)


def test_a_recurrent_layer_runs_and_is_said_not_to_be_modelled():
    report = bridge.profile(nn.LSTM(8, 16), torch.ones(3, 2, 8), dry=True, modes=["full"], device="cuda:h100")
    assert report.device.unmodelled == {"lstm": "cuDNN's recurrent layer, which is taken to run cell by cell"}


# -- what a peak is made up of


class Checkpointed(nn.Sequential):
    def forward(self, x):
        return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)


@pytest.mark.parametrize("kind", [nn.Sequential, Checkpointed])
def test_a_peak_is_made_up_of_what_is_known_of_each(kind):
    width, batch = 512, 4096
    module = kind(*(layer for _ in range(4) for layer in (nn.Linear(width, width, bias=False), nn.GELU())))
    x = torch.empty(batch, width, device="meta")
    report = bridge.profile(module, x, dry=True, modes=["full"], device="cuda:a100", optimizer=torch.optim.AdamW)
    parameters = [p.numel() * 4 for p in module.parameters()]
    first, steady = report.device.first.peak, report.device.steady.peak
    assert steady.parameters == first.parameters == sum(parameters)
    assert steady.inputs == batch * width * 4
    assert (first.optimizer_state, steady.optimizer_state) == (0, 2 * sum(parameters))
    each = batch * width * 4
    assert steady.activations == 6 * each + 2 * 512  # the last GELU's is not kept, its argument gone; and two sums
    assert steady.gradients == 2 * each + parameters[0]  # in the last product's backward
    assert steady.libraries > 0
    report.validate()


def test_what_a_card_lacks_is_said_as_pytorch_says_it():
    module, x = nn.Sequential(nn.Linear(4096, 4096), nn.ReLU()), torch.empty(2**19, 4096, device="meta")
    device = bridge.profile(module, x, dry=True, modes=["full"], device="cuda:t4").device
    assert device.needed_bytes > device.memory_bytes
    assert device.out_of_memory.startswith(
        "CUDA out of memory. Tried to allocate 8.00 GiB. GPU 0 has a total capacity of"
    )
    fitting = bridge.profile(nn.Linear(8, 8), X, dry=True, modes=["full"], device="cuda:t4").device
    assert fitting.out_of_memory is None


def test_segments_hold_what_is_reserved_at_the_peak():
    module, x = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512)), torch.ones(512, 512)
    device = bridge.profile(module, x, dry=True, modes=["full"], device="cuda:t4", optimizer=torch.optim.SGD).device
    assert sum(segment.bytes for segment in device.segments) <= device.steady.reserved_peak_bytes
    held = sum(size for segment in device.segments for kind, size in segment.blocks if kind != "free")
    assert held == device.steady.allocated_peak_bytes

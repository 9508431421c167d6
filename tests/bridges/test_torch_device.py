"""Training steps on cards that are not there: predicted on a CPU, beside what PyTorch's own host code took for them."""

from __future__ import annotations

import json
import re
import warnings
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
from memback.bridges.torch.device.recurrent import reserve_bytes
from memback.bridges.torch.recording import leftovers
from memback.errors import MembackError, UsageError
from memback.profiling.report import Report
from memback.reports import html, markdown
from memback.reports.text import plain
from memback.units import MIB
from tests.device.cases import CASES, MODELS

STORED = Path(__file__).parents[1] / "device"
EXPECTED = json.loads((STORED / "expected.json").read_text(encoding="utf-8"))["cases"]
PREDICTED = json.loads((STORED / "predicted.json").read_text(encoding="utf-8"))
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


def predicted(name, unmodelled=False):
    """A case's figures in the order in which they are stored; ``unmodelled``: whether something is said not to be."""
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
    assert bool(device.unmodelled) == unmodelled
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


OF_LIBRARIES = ("gpt2-4 fp32 adamw h200", "t5 bf16 adamw checkpointing h200", "resnet18 amp adamw h200")


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*:FutureWarning")
@pytest.mark.parametrize("name", OF_LIBRARIES)
def test_stored_predictions_are_those_of_today(name):
    recipe = MODELS[CASES[name].model]
    pytest.importorskip(recipe.library)
    stored = {of: figures for of, figures in PREDICTED[name].items() if of != "unmodelled"}
    assert predicted(name, unmodelled=bool(PREDICTED[name]["unmodelled"])) == stored


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


def test_nobody_is_asked_who_holds_what_a_dry_run_made_if_nothing_of_it_is_alive(monkeypatch):
    monkeypatch.setattr(leftovers, "_holder", lambda mode: pytest.fail("all objects are walked over"))
    bridge.profile(nn.Linear(8, 8), X, dry=True, device="cuda:t4", optimizer=torch.optim.AdamW)


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


def test_with_an_optimizer_mode_full_ends_with_its_update():
    linear, x = nn.Linear(64, 64), torch.ones(1, 64)
    parameters = 4 * (64 * 64 + 64)
    options = {"dry": True, "modes": ["full", "inference"], "optimizer": torch.optim.AdamW}
    for device in ("cuda:h100", None):
        report = bridge.profile(linear, x, device=device, **options)
        full, inference = report.runs
        assert full.peak.phase == "update"
        assert {event.phase for event in full.timeline} == {"forward", "backward", "update"}
        assert full.peak.gradients == full.gradient_bytes == parameters
        assert full.left_bytes == 0
        assert inference.peak.phase == "forward"
        assert report.arguments.optimizer_bytes - 2 * parameters in (0, 2 * 4)  # the CPU has the numbers of steps, too
    assert report.device is None


def test_accumulating_and_clipping_are_part_of_a_step():
    linear, x = nn.Linear(256, 256), torch.ones(512, 256)
    options = {"dry": True, "modes": ["full"], "device": "cuda:h100", "optimizer": torch.optim.SGD}
    plain_step = bridge.profile(linear, x, **options).device.steady
    accumulated = bridge.profile(linear, x, accumulate=3, **options).device.steady
    clipped = bridge.profile(linear, x, clip=1.0, **options).device.steady
    gradients = 4 * (256 * 256 + 256)
    assert accumulated.allocated_peak_bytes - plain_step.allocated_peak_bytes == gradients
    assert clipped.allocated_peak_bytes >= plain_step.allocated_peak_bytes


def test_hooks_of_parameters_are_run_on_a_card():
    model, x = nn.Sequential(*(nn.Linear(256, 256) for _ in range(4))), torch.ones(4, 256)
    options = {"dry": True, "modes": ["full"], "device": "cuda:h100"}
    kept = bridge.profile(model, x, **options).device.steady

    def free(parameter):
        parameter.grad = None

    handles = [parameter.register_post_accumulate_grad_hook(free) for parameter in model.parameters()]
    freed = bridge.profile(model, x, **options).device.steady
    assert kept.allocated_peak_bytes - freed.allocated_peak_bytes >= 2 * 4 * 256 * 256
    for handle in handles:
        handle.remove()
    optimizers = {parameter: torch.optim.SGD([parameter]) for parameter in model.parameters()}
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda parameter: optimizers[parameter].step())
    with pytest.raises(MembackError, match="take bridge.profile_step"):
        bridge.profile(model, x, **options)


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
    header = html.render(report).partition("</header>")[0]
    firsts = (plain(report).splitlines()[:3], markdown.render(report).splitlines()[:6], header.splitlines())
    for lines in firsts:
        assert re.search("These are a CPU.{1,5}s figures: a GPU.{1,5}s kernels save other values", "\n".join(lines))


def takes(make, *shapes, dtype=torch.float32, card_name="h100"):
    """The bytes that each request asks a card's allocator for while ``make`` runs on tensors of these shapes."""
    asked = []
    with on_card(card(card_name), nn.Identity(), ()) as (there, _):
        given = [torch.empty(shape, dtype=dtype, device="cuda", requires_grad=True) for shape in shapes]
        there.mode.memory.told = lambda block, size: asked.append(size) if size >= 0 else None
        make(*given)
        there.mode.memory.told = None
        del given
    return asked


def test_a_roll_over_two_dimensions_goes_through_one():
    assert takes(lambda x: x.roll((1, 1), (0, 1)), (8, 16)) == [512, 512]
    assert takes(lambda x: x.roll(1, 0), (8, 16)) == [512]


def test_the_gradient_of_a_softmax_takes_a_product_of_its_size():
    assert takes(lambda x: torch.autograd.grad(x.softmax(1), x, torch.empty_like(x)), (8, 16)) == [512] * 4


def test_attention_without_a_kernel_looks_for_rows_of_nothing():
    asked = takes(lambda x: torch._safe_softmax(x, -1), (4, 8, 16))
    assert asked == [4 * 8 * 16 * 4, 4 * 8 * 16, 4 * 8]


@pytest.mark.parametrize(("turned", "node"), [(False, "ViewBackward0"), (True, "AddBackward0")])
def test_a_linear_layer_adds_its_bias_in_the_product_wherever_its_input_lies_in_order(turned, node):
    def run(x, weight, bias):
        nodes.append(F.linear(x.transpose(0, 1) if turned else x, weight, bias).grad_fn.name())

    nodes = []
    takes(run, (2, 3, 4, 8), (16, 8), (16,))
    run(torch.ones(2, 3, 4, 8), torch.ones(16, 8, requires_grad=True), torch.ones(16))
    assert nodes == [node, node]


def test_a_gradient_that_is_added_up_by_indices_is_sorted_by_them():
    chosen = torch.zeros(1000, dtype=torch.int64)
    asked = takes(lambda x: x[chosen].sum().backward(), (50, 4))
    assert asked.count(1000 * 8) >= 5  # places, twice; those in order, whose they are, and their numbers
    assert asked.count(50 * 4 * 4) == 1  # which is filled in place
    added = takes(lambda x, y: x.index_put((chosen,), y, accumulate=True), (50, 4), (1000, 4))
    assert added[0] == 50 * 4 * 4  # the copy that is added to
    assert added.count(1000 * 8) >= 5


def test_a_convolution_lays_its_weight_out_after_its_result_is_made():
    def run(x, weight):
        F.conv2d(x.to(memory_format=torch.channels_last), weight)

    image, weight, out = 2 * 3 * 8 * 8 * 4, 5 * 3 * 3 * 3 * 4, 2 * 5 * 6 * 6 * 4
    assert takes(run, (2, 3, 8, 8), (5, 3, 3, 3)) == [image, out, weight]


def test_convolutions_in_bfloat16_are_not_cudnns_on_cards_that_do_not_compute_in_it():
    module = nn.Conv2d(3, 4, 3).to(torch.bfloat16)
    image = torch.ones(1, 3, 8, 8, dtype=torch.bfloat16)
    report = bridge.profile(module, image, dry=True, modes=["full"], device="cuda:t4")
    assert report.device.unmodelled == {"convolution": "what it takes without cuDNN"}


def test_an_op_of_which_nothing_is_known_is_named():
    class Sorted(nn.Module):
        def forward(self, x):
            return torch.bucketize(x, torch.linspace(0, 1, 5)).float() + x.sort(1).values + x.tanh()

    report = bridge.profile(Sorted(), X.clone().requires_grad_(), dry=True, modes=["full"], device="cuda:h100")
    assert report.device.unmodelled == {
        "bucketize": "whether its kernel takes memory of its own",
        "sort": "its scratch memory",
    }


def test_what_a_library_alone_knows_is_named():
    report = bridge.profile(nn.Conv2d(3, 4, 3), torch.ones(1, 3, 8, 8), dry=True, modes=["full"], device="cuda:h100")
    assert report.device.unmodelled == {"convolution": "what cuDNN takes as workspace"}
    assert "Not known of convolution: what cuDNN takes as workspace." in plain(report)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:h10", "dry": True}, "card 'cuda:h10' is not known; write cuda:NAME with one of"),
        ({"device": "cuda:h100"}, "give dry=True"),
        ({"optimizer": torch.optim.SGD}, "give dry=True"),
        ({"dry": True, "accumulate": 0}, "once at least"),
        ({"dry": True, "clip": 0.0}, "more than 0"),
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


RECURRENT = {"lstm": (nn.LSTM, 4), "gru": (nn.GRU, 3), "rnn_tanh": (nn.RNN, 1)}


def recurrent(kind, **options):
    """A report of a recurrent layer, for two sequences of three steps."""
    layer = RECURRENT[kind][0](8, 16, **options)
    with warnings.catch_warnings(action="error", category=bridge.DryRunWarning):
        return bridge.profile(
            layer,
            torch.ones(3, 2, 8),
            loss=lambda out: out[0].sum(),
            dry=True,
            modes=["full"],
            device="cuda:h100",
            optimizer=torch.optim.SGD,
        )


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_recurrent_layer_is_one_op_whose_reserve_is_said_to_be_an_estimate(kind):
    report = recurrent(kind, num_layers=2, bidirectional=True)
    (what,) = report.device.unmodelled.values()
    assert list(report.device.unmodelled) == [kind]
    assert "of which an estimate is counted" in what
    assert [row.op for row in report.runs[0].layers if row.saved_bytes > 512] == ["_cudnn_rnn"]


@pytest.mark.parametrize(("kind", "published"), [("lstm", 736_000_000), ("gru", 864_000_000)])
def test_what_cudnn_keeps_of_a_recurrent_layer_is_what_was_published(kind, published):
    assert reserve_bytes(kind, inputs=25_000, hidden=320, layers=4, directions=1, itemsize=4) == published


def test_sequences_end_to_end_and_projections_run_as_recurrent_layers():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.LSTM(8, 16, proj_size=4, batch_first=True, dropout=0.1, num_layers=2)

        def forward(self, x):
            packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 2]), batch_first=True)
            return nn.utils.rnn.pad_packed_sequence(self.layer(packed)[0])[0]

    shapes = []
    report = bridge.profile(
        Packed(),
        torch.ones(2, 3, 8),
        loss=lambda out: shapes.append(tuple(out.shape)) or out.sum(),
        dry=True,
        modes=["full"],
        device="cuda:h100",
    )
    assert set(shapes) == {(3, 2, 4)}
    assert list(report.device.unmodelled) == ["lstm"]


def test_without_cudnn_a_recurrent_layer_runs_cell_by_cell():
    with torch.backends.cudnn.flags(enabled=False):
        report = recurrent("gru")
    assert report.device.unmodelled == {"gru": "a recurrent layer without cuDNN, which is taken to run cell by cell"}


def test_weights_of_a_recurrent_layer_lie_in_one_buffer():
    layer = nn.LSTM(8, 16)
    before = list(layer.parameters())
    with on_card(card("h100"), layer, ()) as (there, _):
        (whole,) = {parameter.untyped_storage()._cdata for parameter in layer.parameters()}
        assert [there.known[id(old)][1] is new for old, new in zip(before, layer.parameters(), strict=True)] == [
            True
        ] * 4
        assert whole
    assert all(old is new for old, new in zip(before, layer.parameters(), strict=True))


@pytest.mark.parametrize("name", [f"{kind} {how} adamw h200" for kind in ("lstm", "gru") for how in ("fp32", "amp")])
def test_a_recurrent_layer_takes_to_the_byte_what_pytorchs_host_code_takes_around_cudnn(name):
    assert predicted(name, unmodelled=True) == EXPECTED[name]


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

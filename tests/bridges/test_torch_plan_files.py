"""A plan for a PyTorch module as a file, and as code to paste."""

from __future__ import annotations

import copy
import json
from functools import cache

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from torch import nn

import memback.bridges.torch as bridge
from memback.bridges.torch.planning.blocks import BlockPlanning
from memback.bridges.torch.recording.step import Step
from memback.errors import UsageError
from memback.profiling.mode import Mode
from tests.bridges import torch_models as twins


def resnet():
    torch.manual_seed(0)
    return twins.ResNet((2, 1, 2, 1), width=8, classes=10), torch.randn(2, 3, 48, 48)


def gpt():
    torch.manual_seed(0)
    return twins.GPT(5, 32, 4, 50, 32, dropout=0.1), torch.randint(0, 50, (2, 32))


def unet():
    torch.manual_seed(0)
    return twins.UNet(width=8, depth=2), torch.randn(1, 3, 32, 32)


BODIES = {
    resnet: (0, (1, 2, (3, 4), 5), 6, (7, 8), 9, 10),
    gpt: (0, 1, (2,), ((3, 4), 5, 6), 7, (8,), 9),
    unet: None,
}


@cache
def made(make):
    """A model, its input, and a plan with segments in segments."""
    module, x = make()
    planning = BlockPlanning(Step(module, (x,), {}, twins.cross_entropy))
    body = BODIES[make]
    if body is None:
        return module, x, planning.by_policy("every:2")
    last = max(i for i in range(len(planning.blocks.units)))
    body = tuple(item for item in body if not isinstance(item, int) or item <= last)
    while list(flat(body))[-1] < last:
        body = (*body, list(flat(body))[-1] + 1)
    return module, x, planning.realise(body, 2**30, "chosen by hand")


def flat(body):
    for item in body:
        if isinstance(item, int):
            yield item
        else:
            yield from flat(item)


@pytest.mark.parametrize("make", BODIES)
def test_a_plan_is_the_same_after_a_file(make, tmp_path):
    module, x, plan = made(make)
    path = tmp_path / "plan.json"
    plan.save(path)
    loaded = bridge.TorchPlan.load(path)
    assert loaded == plan
    assert json.loads(json.dumps(loaded.to_dict())) == json.loads(path.read_bytes())
    verdict = bridge.verify(loaded, module, x, loss=twins.cross_entropy)
    assert verdict.same_gradients
    assert verdict.measured_peak_bytes == plan.peak_bytes < verdict.full_peak_bytes
    with pytest.raises(UsageError, match="already exists, will not overwrite"):
        plan.save(path)


@pytest.mark.parametrize("make", BODIES)
def test_the_code_runs_the_plan_without_memback(make):
    module, x, plan = made(make)
    code = plan.code()
    assert "memback" not in code
    assert max(map(len, code.splitlines())) <= 120
    names = {}
    exec(code, names)
    pasted = names["checkpointed"](copy.deepcopy(module))
    assert list(pasted.state_dict()) == list(module.state_dict())
    steps = [Step(m, (x,), {}, twins.cross_entropy) for m in (module, pasted)]
    plain, again = (step.account(Mode("full")) for step in steps)
    assert (again.loss, again.gradient_sha256) == (plain.loss, plain.gradient_sha256)
    assert again.tracker.recomputed_flops == plan.extra_flops
    assert again.tracker.peak.bytes <= plan.peak_bytes + 4096  # buffers of whole segments are put aside while they run
    for m in (module, pasted):
        torch.manual_seed(1)
        before = [buffer.clone() for buffer in m.buffers()]
        twins.cross_entropy(m(x)).backward()
        m.found = [buffer.clone() for buffer in m.buffers()]
        with torch.no_grad():
            for buffer, was in zip(m.buffers(), before, strict=True):
                buffer.copy_(was)
    assert all(map(torch.equal, module.found, pasted.found))


def test_there_is_no_code_for_nothing():
    module, x = gpt()
    with pytest.raises(UsageError, match="runs nothing again"):
        bridge.plan(module, x, budget="1GiB", how="checkpoint").code()


def test_a_plan_is_for_the_model_that_it_was_made_for():
    plan = made(gpt)[2]
    other = twins.GPT(5, 16, 4, 50, 32)
    with pytest.raises(
        UsageError, match=r"another model: wte.weight has shape \(50, 32\) in it, in this GPT \(50, 16\)"
    ):
        plan.apply(other)
    plain = nn.Sequential()
    for name, parameter in made(gpt)[0].named_parameters():
        owner = plain
        for part in name.split(".")[:-1]:
            if not hasattr(owner, part):
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.register_parameter(name.rpartition(".")[2], parameter)
    with pytest.raises(UsageError, match="another model: there is no drop in this Sequential"):
        plan.apply(plain)


def changed(change):
    def edit(data):
        data = json.loads(json.dumps(data))
        change(data)
        return data

    return edit


def deep(data, *path):
    for part in path[:-1]:
        data = data[part]
    return data, path[-1]


def put(*path, value):
    def change(data):
        owner, name = deep(data, *path)
        owner[name] = value

    return changed(change)


REFUSED = {
    "no-object": (lambda data: [], "its 'schema' is None"),
    "other-schema": (put("schema", value="memback.plan/1"), "it is one for a profile of memback's"),
    "newer": (put("schema", value="memback.torch-plan/3"), "'memback.torch-plan/3', not 'memback.torch-plan/1'"),
    "field": (put("peak_bytes", value="many"), r"malformed: Expected `int`, got `str` - at `\$.peak_bytes`"),
    "unknown-field": (put("more", value=1), "malformed: Object contains unknown field `more`"),
    "body-kind": (put("body", 0, value="0"), "'0' in its 'body' is neither a block nor a list"),
    "body-order": (put("body", 0, value=1), "does not name its 10 blocks in order"),
    "body-empty": (put("body", 0, value=[]), "neither a block nor a list of some"),
    "bounds": (put("bounds", value=[0, 3]), "do not make units of its blocks"),
    "unlinked": (put("body", value=[[0, 1], *range(2, 10)]), "wpe is in a segment with wte, of which it is not known"),
    "flow": (
        put("calls", 5, "arguments", value=["call", "os.system"]),
        "h.2 in this plan has arguments .* means nothing",
    ),
    "size": (put("stages", 1, "saved_bytes", value=-1), "saved_bytes of a stage must be a whole number of bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plan_is_refused_with_the_reason(name, tmp_path):
    edit, message = REFUSED[name]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(edit(made(gpt)[2].to_dict())))
    with pytest.raises(UsageError, match=message) as refused:
        bridge.TorchPlan.load(path)
    assert str(refused.value).startswith(str(path))


def test_what_is_no_json_is_refused(tmp_path):
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(UsageError, match="is no JSON"):
        bridge.TorchPlan.load(tmp_path / "plan.json")
    with pytest.raises(UsageError, match="can't be read: No such file"):
        bridge.TorchPlan.load(tmp_path / "none.json")

from __future__ import annotations

import sys

import numpy as np
import psutil
import pytest

from memback import nn, ops
from memback.engine.tensor import Tensor
from memback.errors import MembackError
from memback.profiling.guard import Available, available_memory, check_fits
from memback.profiling.mode import Mode
from memback.profiling.step import Step
from memback.units import format_bytes_short


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(np.ones((64, 64), np.float32) / 64)

    def forward(self, x):
        return ops.relu(ops.linear(x, self.weight))


@pytest.fixture
def step():
    model = nn.Sequential(*[Layer() for _ in range(36)])
    x = np.ones((1024, 64), np.float32)
    return Step(lambda: ops.sqerr(model(Tensor(x)), np.zeros_like(x)), model)


def cgroup(tmp_path, version, limit, used, cache=0):
    """A control group tree as Linux shows it, for a process in /pod/task, limited at /pod."""
    root = tmp_path / "cgroup"
    folder = root / "pod" if version == 2 else root / "memory" / "pod"
    (folder / "task").mkdir(parents=True)
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    for name, value in zip(names, (limit, used), strict=True):
        (folder / name).write_text(f"{value}\n")
    key = "inactive_file" if version == 2 else "total_inactive_file"
    (folder / "memory.stat").write_text(f"anon 1\n{key} {cache}\n")
    listing = tmp_path / "self"
    listing.write_text("0::/pod/task\n" if version == 2 else "7:cpu:/\n9:memory,misc:/pod/task\n")
    return root, listing


@pytest.mark.parametrize("version", [1, 2])
def test_a_control_groups_limit_counts_what_is_used_but_not_the_page_cache(tmp_path, version):
    root, listing = cgroup(tmp_path, version, limit=1_000_000, used=400_000, cache=100_000)
    available = available_memory(root, listing)
    assert available.bytes == 700_000
    assert "control group" in available.limit


def test_without_a_limit_the_machines_free_memory_counts(tmp_path):
    root, listing = cgroup(tmp_path, 2, limit="max", used=10)
    assert available_memory(root, listing).limit == "free memory of the machine"
    assert available_memory(root, tmp_path / "missing").limit == "free memory of the machine"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not limit address spaces")
def test_a_limit_of_the_address_space_counts_less_what_is_taken(tmp_path, monkeypatch):
    import resource

    root, listing = cgroup(tmp_path, 2, limit="max", used=10)
    taken = psutil.Process().memory_info().vms
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (taken + 2**22, resource.RLIM_INFINITY))
    available = available_memory(root, listing)
    assert abs(available.bytes - 2**22) < 2**21
    assert "address space" in available.limit
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1, 1))
    assert available_memory(root, listing).bytes == 0


def test_a_step_that_fits_passes(step):
    check_fits(step, [Mode("full"), Mode("inference")], available=Available(2**40, "test"))


def test_a_step_that_does_not_fit_names_prediction_limit_and_policies_that_do(step):
    need = step.predict(Mode("full")).peak.bytes
    smaller = step.predict(Mode("checkpoint", "sqrt")).peak.bytes
    with pytest.raises(MembackError) as error:
        check_fits(step, [Mode("full")], available=Available((need + smaller) // 2, "limit of the test"))
    message = str(error.value)
    assert f"{format_bytes_short(need)} ({need:,} B) in mode full" in message
    assert "limit of the test" in message
    assert f"--mode checkpoint --policy sqrt with {format_bytes_short(smaller)} ({smaller:,} B)" in message
    assert "--force" in message


def test_arguments_that_are_still_to_be_made_count(step):
    need = step.predict(Mode("inference")).peak.bytes
    check_fits(step, [Mode("inference")], available=Available(need, "test"))
    with pytest.raises(MembackError, match="No checkpoint policy"):
        check_fits(step, [Mode("inference")], extra_bytes=1, available=Available(need, "test"))


def test_all_modes_that_do_not_fit_are_named_and_those_that_would(step):
    modes = [Mode("retain-all"), Mode("full"), Mode("inference")]
    needs = [step.predict(mode).peak.bytes for mode in modes]
    with pytest.raises(MembackError) as error:
        check_fits(step, modes, available=Available(needs[-1], "limit of the test"), option="--policy")
    message = str(error.value)
    assert f"({needs[0]:,} B) in mode retain-all" in message
    assert f"({needs[1]:,} B) in mode full" in message
    assert f"--mode inference with {format_bytes_short(needs[2])}" in message
    assert "No checkpoint policy makes it fit" in message
    assert "\n" not in message


def test_a_step_that_takes_decisions_on_values_is_let_through():
    model = Layer()

    def decide():
        out = model(Tensor(np.ones((4, 64), np.float32)))
        return ops.sum(out) if ops.sum(out) > 0 else ops.mean(out)

    check_fits(Step(decide, model), [Mode("full")], available=Available(1, "test"))


def test_a_control_group_that_is_used_up_leaves_nothing(tmp_path):
    root, listing = cgroup(tmp_path, 2, limit=1000, used=5000)
    assert available_memory(root, listing).bytes == 0

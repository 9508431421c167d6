"""A step on several ranks, in as many processes over gloo: what is predicted is what every rank shows."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.torch, pytest.mark.xdist_group("ranks")]

import memback.bridges.torch as bridge
from memback.errors import MembackError, UsageError
from memback.profiling.ranks import merge
from memback.profiling.report import Report
from tests.bridges import ranks_of_a_step as job

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
RANKS = (2, 4)


@pytest.fixture(scope="module", autouse=True)
def _no_group_is_left():
    yield
    assert not torch.distributed.is_initialized()


@cache
def ran(ranks):
    """The folder with what each rank of the job left."""
    folder = Path(mkdtemp(prefix="memback-ranks-"))
    done = subprocess.run(
        [sys.executable, job.__file__, str(ranks), str(folder)], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder


def reports(ranks, name):
    return [Report.load(ran(ranks) / f"{name}.rank{rank}.json") for rank in range(ranks)]


def told(ranks, name):
    return [torch.load(ran(ranks) / f"{name}.rank{rank}.pt") for rank in range(ranks)]


@cache
def predicted(ranks, name):
    strategy, make, options = job.VARIANTS[name]
    modes = job.MODES if name == "fsdp2" else job.MODES[1:]
    return bridge.predict(
        make, job.inputs(0), strategy=strategy, ranks=ranks, options=options, loss=job.loss, modes=modes
    )


def without_lines(layers):
    """Rows but for the line of the source, which is the profile's own call where there is none in the model."""
    return [
        (row.path, row.op, row.call, row.saved_bytes, row.shared_bytes, row.recomputed, row.flops)
        + tuple((value.name, value.bytes, value.origin, value.buffer) for value in row.saved)
        for row in layers
    ]


@pytest.mark.parametrize("name", job.VARIANTS)
@pytest.mark.parametrize("ranks", RANKS)
def test_what_is_predicted_in_one_process_is_what_every_rank_shows(ranks, name):
    dry = predicted(ranks, name)
    assert dry.distributed.world_size == ranks
    assert [rank.rank for rank in dry.distributed.ranks] == list(range(ranks))
    for report, rank in zip(reports(ranks, name), dry.distributed.ranks, strict=True):
        assert rank.arguments == report.arguments
        for real, alone, totals in zip(report.runs, dry.runs, rank.runs, strict=True):
            assert real.measured_peak_bytes == real.predicted_peak_bytes == totals.predicted_peak_bytes
            assert real.peak == totals.peak
            assert real.saved_bytes == totals.saved_bytes
            assert real.gradient_bytes == totals.gradient_bytes
            assert without_lines(real.layers) == without_lines(alone.layers)
            assert real.timeline == alone.timeline


@pytest.mark.parametrize("name", job.VARIANTS)
@pytest.mark.parametrize("ranks", RANKS)
def test_parameters_shards_and_buckets_are_as_pytorch_and_arithmetic_have_them(ranks, name):
    _, make, options = job.VARIANTS[name]
    parameters = list(make().parameters())
    for report, known in zip(reports(ranks, name), told(ranks, name), strict=True):
        arguments = report.arguments
        if name.startswith("ddp"):
            trained = [p for p in parameters if p.requires_grad]
            assert arguments.parameter_bytes == 4 * sum(p.numel() for p in parameters)
            assert arguments.bucket_bytes == known["buckets"] == 4 * sum(p.numel() for p in trained)
            assert arguments.sharded_parameter_bytes == 0
        else:
            rows = [4 * math.ceil(shape[0] / ranks) * math.prod(shape[1:]) for shape in known["shapes"]]
            assert arguments.sharded_parameter_bytes == sum(rows)
            assert (arguments.parameter_bytes, arguments.bucket_bytes) == (0, 0)


@pytest.mark.parametrize("ranks", RANKS)
def test_whole_parameters_are_gathered_for_as_long_as_the_policy_says(ranks):
    whole = sum(p.numel() for p in job.Net().parameters()) * 4
    by_name = {
        name: {run.mode: run for run in reports(ranks, name)[0].runs} for name in ("fsdp2", "fsdp2-kept", "fsdp2-mixed")
    }
    assert by_name["fsdp2-kept"]["inference"].peak.gathered >= whole  # with the padding, and what is gathered last
    assert by_name["fsdp2"]["inference"].peak.gathered < whole
    assert by_name["fsdp2"]["full"].peak.gathered < by_name["fsdp2-kept"]["full"].peak.gathered
    assert by_name["fsdp2-mixed"]["inference"].peak.gathered < by_name["fsdp2"]["inference"].peak.gathered
    assert all(layer.saved_bytes == 0 for layer in by_name["fsdp2"]["full"].layers if layer.op == "all_gather")


def test_views_of_buckets_need_no_memory_besides():
    apart, views = (reports(2, name)[0] for name in ("ddp", "ddp-views"))
    difference = apart.reference.peak.gradients - views.reference.peak.gradients
    assert difference > 0.5 * apart.arguments.bucket_bytes
    assert views.reference.gradient_bytes == views.arguments.bucket_bytes


@pytest.mark.parametrize("name", ["ddp", "ddp-views", "ddp-small-buckets", "fsdp2", "fsdp2-kept"])
@pytest.mark.parametrize("ranks", RANKS)
def test_gradients_are_those_of_one_process_on_the_whole_batch(ranks, name):
    _, make, _ = job.VARIANTS[name]
    alone = make()
    job.loss(alone(torch.cat([job.inputs(rank) for rank in range(ranks)]))).backward()
    expected = job.gradients(alone)
    for known in told(ranks, name):
        assert known["gradients"].keys() == expected.keys()
        for key, grad in expected.items():
            torch.testing.assert_close(known["gradients"][key], grad)


@pytest.mark.parametrize("ranks", RANKS)
def test_under_ddp_all_ranks_have_the_same_bits_of_gradients(ranks):
    for name in ("ddp", "ddp-views"):
        hashes = {run.gradient_sha256 for report in reports(ranks, name) for run in report.runs if run.gradient_sha256}
        assert len({report.reference.gradient_sha256 for report in reports(ranks, name)}) == 1, hashes


@pytest.mark.parametrize("ranks", RANKS)
def test_a_profile_leaves_no_gradients_behind(ranks):
    for rank in range(ranks):
        assert (ran(ranks) / f"left.rank{rank}.json").read_text() == "[]"


@pytest.mark.parametrize("ranks", RANKS)
def test_the_rank_that_needs_the_most_leads_the_merged_report(ranks):
    merged = merge(reports(ranks, "uneven"))
    sizes = [rank.memory_bytes for rank in merged.distributed.ranks]
    assert [rank.rank for rank in merged.distributed.ranks] == list(reversed(range(ranks)))
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == ranks
    assert merged.runs == reports(ranks, "uneven")[-1].runs


def test_the_strategies_are_checked():
    with pytest.raises(UsageError, match="unknown strategy 'tensor'; there are ddp, fsdp2"):
        bridge.predict(job.Net, job.inputs(0), strategy="tensor", ranks=2)
    with pytest.raises(UsageError, match="no submodule's path matches 'layers.*'; there are blocks, blocks.0"):
        bridge.predict(job.Net, job.inputs(0), strategy="fsdp2", ranks=2, shard=["layers.*"])
    with pytest.raises(UsageError, match="belongs to fsdp2"):
        bridge.predict(job.Net, job.inputs(0), strategy="ddp", ranks=2, shard=["blocks.*"])


def test_what_is_sharded_by_itself_is_gathered_by_itself():
    whole, blocks = (
        bridge.predict(job.Net, job.inputs(0), strategy="fsdp2", ranks=2, shard=shard, modes=("inference",))
        for shard in (["head"], ["blocks.?", "head"])
    )
    assert blocks.runs[0].peak.gathered < whole.runs[0].peak.gathered
    assert blocks.arguments == whole.arguments


def test_a_prediction_allocates_nothing():
    def wide():
        return torch.nn.Sequential(*[torch.nn.Linear(60_000, 60_000, bias=False) for _ in range(4)])

    x = torch.empty(2, 60_000)
    for strategy, share in (("ddp", 1), ("fsdp2", 8)):
        report = bridge.predict(wide, x, strategy=strategy, ranks=8, modes=("full",))
        held = report.arguments.parameter_bytes + report.arguments.sharded_parameter_bytes
        assert held == 4 * 4 * 60_000**2 // share  # 58 GB in all

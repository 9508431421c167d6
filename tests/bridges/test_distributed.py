"""A step on several ranks, in as many processes over gloo: what is predicted is what every rank shows."""

from __future__ import annotations

import json
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
from memback.commands import main
from memback.errors import MembackError, UsageError
from memback.profiling.ranks import merge
from memback.profiling.report import Report
from tests.bridges import ranks_of_a_step as job

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]])}
RANKS = (2, 4)
ON_RANKS = [(ranks, name) for ranks, names in job.VARIANTS_ON.items() for name in names]


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
        (
            *(row.path, row.op, row.call, row.saved_bytes, row.shared_bytes, row.recomputed, row.flops),
            *((value.name, value.bytes, value.origin, value.buffer) for value in row.saved),
        )
        for row in layers
    ]


def without_numbers(timeline):
    """Events but for the numbers of buffers, of which DDP's buckets have some, as many as there are."""
    return [event._replace(buffer=0) for event in timeline]


@pytest.mark.parametrize(("ranks", "name"), ON_RANKS)
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
            assert without_numbers(real.timeline) == without_numbers(alone.timeline)


@pytest.mark.parametrize(("ranks", "name"), ON_RANKS)
def test_parameters_shards_and_buckets_are_as_pytorch_and_arithmetic_have_them(ranks, name):
    make = job.VARIANTS[name][1]
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


def test_whole_parameters_are_gathered_for_as_long_as_the_policy_says():
    net = job.Net()
    block, head = (gathered(part, 2) for part in (net.blocks[0], net.head))
    freed, kept = (reports(2, name)[0].runs[-1] for name in ("fsdp2", "fsdp2-kept"))
    assert freed.mode == kept.mode == "inference"
    # What was gathered for the block before is freed after the copy, of what has just been gathered, into whole
    # parameters; those of the outermost group stay, as do those of the blocks where they are kept.
    assert freed.peak.gathered == head + 3 * block
    assert kept.peak.gathered == head + 5 * block


def test_shards_for_a_smaller_group_are_gathered_parameters_and_no_activations():
    whole, halves = (reports(4, name)[0].reference for name in ("fsdp2", "fsdp2-halves"))
    assert halves.saved_bytes == whole.saved_bytes
    kept = [event for event in halves.timeline if event.op == "reshard" and event.kind == "new"]
    assert sum(event.bytes for event in kept) == gathered(job.Net(), 4) // 2
    assert {event.category for event in kept} == {"gathered"}


def gathered(module, ranks):
    """Bytes of a module's parameters, the first length of each filled up so that all ranks have as many."""
    shapes = [tuple(p.shape) for p in module.parameters()]
    return sum(4 * ranks * math.ceil(shape[0] / ranks) * math.prod(shape[1:]) for shape in shapes)


def test_whole_parameters_are_no_activations():
    for report in reports(2, "fsdp2"):
        for run in report.runs:
            origins = {value.origin for layer in run.layers for value in layer.saved}
            assert not any("all_gather" in origin for origin in origins)


def test_views_of_buckets_need_no_memory_besides():
    apart, views = (reports(2, name)[0] for name in ("ddp", "ddp-views"))
    difference = apart.reference.peak.gradients - views.reference.peak.gradients
    assert difference > 0.5 * apart.arguments.bucket_bytes
    assert views.reference.gradient_bytes == views.arguments.bucket_bytes


@pytest.mark.parametrize(
    ("ranks", "name"), [pair for pair in ON_RANKS if pair[1] not in ("ddp-buffers", "fsdp2-mixed")]
)
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
    assert len({report.reference.gradient_sha256 for report in reports(ranks, "ddp")}) == 1


@pytest.mark.parametrize("ranks", RANKS)
def test_a_profile_leaves_gradients_as_they_were(ranks):
    for rank in range(ranks):
        assert (ran(ranks) / f"kept.rank{rank}.json").read_text() == "[true, true]"
        assert (ran(ranks) / f"left.rank{rank}.json").read_text() == "[]"


def test_a_step_with_its_update_takes_what_it_is_predicted_to_take():
    for rank in range(2):
        for name, how, (predicted, measured) in json.loads((ran(2) / f"trained.rank{rank}.json").read_text()):
            assert predicted == measured, (rank, name, how)


def test_predictions_for_ranks_have_the_optimisers_state_sharded_or_whole():
    options = {"ranks": 2, "modes": ["full"], "optimizer": torch.optim.AdamW}
    x = torch.ones(4, 64)
    make = lambda: torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))  # noqa: E731
    parameters, steps = 2 * 4 * (64 * 64 + 64), 4 * 4
    for strategy, share in (("ddp", 1), ("fsdp2", 2)):
        report = bridge.predict(make, x, strategy=strategy, **options)
        assert report.arguments.optimizer_bytes == 2 * parameters // share + steps
        assert {event.phase for event in report.runs[0].timeline} == {"forward", "backward", "update"}


@pytest.mark.parametrize("ranks", RANKS)
def test_the_rank_that_needs_the_most_leads_the_merged_report(ranks):
    merged = merge(reports(ranks, "uneven"))
    sizes = [rank.memory_bytes for rank in merged.distributed.ranks]
    assert [rank.rank for rank in merged.distributed.ranks] == list(reversed(range(ranks)))
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == ranks
    assert merged.runs == reports(ranks, "uneven")[-1].runs


class Resizing(torch.nn.Module):
    """Has memory for as long as it runs, given and taken as FSDP2 does it."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(19, 19)

    def forward(self, x):
        storage = torch.empty(0).untyped_storage()
        storage.resize_(2**20)
        y = self.linear(x)
        storage.resize_(0)
        return y


def test_memory_that_a_storage_is_given_without_an_op_is_part_of_the_peak():
    for run in bridge.profile(Resizing(), job.inputs(0), rounds=0).runs:
        assert 2**20 <= run.measured_peak_bytes == run.predicted_peak_bytes < 2**20 + 4096


# -- under torchrun


def torchrun(folder, factory, *options, ranks=2):
    command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", "memback", "torch"]
    command += [f"tests.bridges.ranks_of_a_step:{factory}", "--input", "6x19", "-o", str(folder / "out.json")]
    return subprocess.run(
        [sys.executable, *command, *options], env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True
    )


def test_the_command_runs_the_ranks_and_merges_their_reports(tmp_path):
    done = torchrun(tmp_path, "net", "--distributed", "fsdp2", "--mode", "full", "--rounds", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Ranks, the worst first: full") == 1  # rank 0 alone shows it
    merged = Report.load(tmp_path / "out.json")
    singles = [Report.load(tmp_path / f"out.rank{rank}.json") for rank in range(2)]
    assert merge(singles) == merged
    assert merged.runs[0].measured_peak_bytes == merged.runs[0].predicted_peak_bytes
    dry = bridge.predict(job.Net, job.inputs(0), strategy="fsdp2", ranks=2, modes=("full",))
    assert dry.runs[0].predicted_peak_bytes == merged.runs[0].measured_peak_bytes


@pytest.mark.parametrize(
    ("factory", "reason"),
    [("killed", "it was not heard of after its dry run"), ("failing", "ValueError: rank 1 has had enough")],
)
def test_a_rank_that_dies_takes_no_report_with_it(tmp_path, factory, reason):
    done = torchrun(tmp_path, factory, "--distributed", "ddp", "--mode", "full", "--rounds", "1")
    assert done.returncode == 1
    merged = Report.load(tmp_path / "out.json")
    stopped = {rank.rank: rank.stopped for rank in merged.distributed.ranks}
    assert reason in stopped[1]
    assert stopped[0]  # which could not go on without it
    assert all(rank.runs[0].predicted_peak_bytes for rank in merged.distributed.ranks)
    title, first = done.stdout.split("! ", 1)
    assert title.count("\n") <= 2
    assert first.startswith("Rank ")
    assert "there are not all reports of all ranks" in done.stderr


def command(*arguments):
    return main(["torch", "tests.bridges.ranks_of_a_step:net", "--input", "6x19", *arguments])


def test_the_command_predicts_for_many_ranks_in_one_process(tmp_path, capsys):
    file = str(tmp_path / "dry.json")
    assert command("--distributed", "fsdp2", "--ranks", "3", "--dry", "--mode", "full", "-o", file) == 0
    assert "fsdp2 on 3 ranks" in " ".join(capsys.readouterr().out.split())
    assert [rank.rank for rank in Report.load(file).distributed.ranks] == [0, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--distributed", "ddp", "--dry"], "--distributed with --dry needs --ranks N"),
        (["--distributed", "ddp", "--ranks", "2"], "--ranks belongs to --dry"),
        (["--distributed", "ddp"], "-o FILE is needed"),
        (["--distributed", "ddp", "-o", "x.json"], "there is one process and no torchrun"),
        (["--ranks", "2"], "--ranks and --shard belong to --distributed"),
        (["--distributed", "ddp", "--ranks", "2", "--dry", "--shard", "head"], "belongs to fsdp2"),
        (["--distributed", "zero", "--ranks", "2", "--dry"], "unknown strategy 'zero'"),
    ],
)
def test_wrong_requests_are_refused_with_the_remedy(arguments, complaint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    assert command(*arguments) == 2
    assert complaint in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


# -- what can't be


def test_the_strategies_are_checked():
    with pytest.raises(UsageError, match="unknown strategy 'tensor'; there are ddp, fsdp2"):
        bridge.predict(job.Net, job.inputs(0), strategy="tensor", ranks=2)
    with pytest.raises(UsageError, match="no submodule's path matches 'layers.*'; there are blocks, blocks.0"):
        bridge.predict(job.Net, job.inputs(0), strategy="fsdp2", ranks=2, shard=["layers.*"])
    with pytest.raises(UsageError, match="belongs to fsdp2"):
        bridge.predict(job.Net, job.inputs(0), strategy="ddp", ranks=2, shard=["blocks.*"])


def test_ddp_of_what_is_not_trained_and_ddp_that_decides_by_values_are_refused_with_the_reason():
    with pytest.raises(UsageError, match="no parameter of the module requires a gradient"):
        bridge.predict(torch.nn.Identity, job.inputs(0), strategy="ddp", ranks=2)
    for option in ("find_unused_parameters", "static_graph"):
        with pytest.raises(MembackError, match="decides by values"):
            bridge.predict(job.Net, job.inputs(0), strategy="ddp", ranks=2, options={option: True})
    assert not torch.distributed.is_initialized()


def test_what_is_sharded_by_itself_is_gathered_by_itself():
    whole, blocks = (
        bridge.predict(job.Net, job.inputs(0), strategy="fsdp2", ranks=2, shard=shard, modes=("inference",))
        for shard in (["head"], ["blocks.?", "head"])
    )
    assert blocks.runs[0].peak.gathered < whole.runs[0].peak.gathered
    assert blocks.arguments == whole.arguments


def test_patterns_match_part_by_part_and_parts_within_others_are_sharded_first():
    def predicted_of(*shard):
        return bridge.predict(job.Net, job.inputs(0), strategy="fsdp2", ranks=2, shard=shard, modes=("inference",))

    lists, blocks = predicted_of(), predicted_of("blocks.*")
    assert lists.runs[0].peak == blocks.runs[0].peak
    once, twice = predicted_of("blocks.*.one", "blocks.*"), predicted_of("blocks.*", "blocks.?", "blocks.*.one")
    assert once.runs[0].peak == twice.runs[0].peak
    assert once.runs[0].peak.gathered < blocks.runs[0].peak.gathered


def test_what_can_t_be_sharded_is_refused_with_the_remedy():
    for shard, said in (["blocks"], "write blocks.*"), (["norm"], "no submodule's path matches 'norm'"):
        with pytest.raises(UsageError) as refused:
            bridge.predict(job.Net, job.inputs(0), strategy="fsdp2", ranks=2, shard=shard)
        assert said in str(refused.value)
    with pytest.raises(UsageError, match="reshard_after_forward=3 does not divide the 4 ranks"):
        bridge.predict(job.Net, job.inputs(0), strategy="fsdp2", ranks=4, options={"reshard_after_forward": 3})


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_what_is_called_by_name_is_predicted_by_name(strategy):
    given = {"strategy": strategy, "ranks": 2, "modes": ["full"], "loss": job.loss}
    by_name = bridge.predict(job.Net, kwargs={"x": job.inputs(0)}, **given)
    by_position = bridge.predict(job.Net, job.inputs(0), **given)
    assert by_name.distributed.ranks == by_position.distributed.ranks
    assert by_name.arguments.input_bytes == job.inputs(0).nbytes
    half = bridge.predict(lambda: job.Net().bfloat16(), job.inputs(0).bfloat16(), **given)
    assert 2 * half.runs[0].gradient_bytes == by_name.runs[0].gradient_bytes


def test_a_prediction_allocates_nothing():
    def wide():
        return torch.nn.Sequential(*[torch.nn.Linear(60_000, 60_000, bias=False) for _ in range(4)])

    x = torch.empty(2, 60_000)
    for strategy, share in (("ddp", 1), ("fsdp2", 8)):
        report = bridge.predict(wide, x, strategy=strategy, ranks=8, modes=("full",))
        held = report.arguments.parameter_bytes + report.arguments.sharded_parameter_bytes
        assert held == 4 * 4 * 60_000**2 // share  # 58 GB in all

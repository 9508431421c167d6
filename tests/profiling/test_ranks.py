from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

import memback as mb
from memback import nn, ops
from memback.commands import main
from memback.errors import UsageError
from memback.profiling.ranks import merge, rank_file
from memback.profiling.report import Distributed, Report
from memback.reports import tables
from memback.reports.diff import compare
from memback.reports.html import render as html
from memback.reports.markdown import render as markdown
from memback.reports.text import render as text
from tests.reports.strategies import reports


def of_rank(report, rank, world_size, more=0, **fields):
    """A rank's report; ``more`` bytes of parameters tell it from the others."""
    arguments = replace(report.arguments, parameter_bytes=report.arguments.parameter_bytes + more)
    told = Distributed(strategy="ddp", backend="gloo", world_size=world_size, rank=rank, **fields)
    return replace(report, arguments=arguments, distributed=told)


@given(reports, st.lists(st.integers(0, 10**12), min_size=1, max_size=6), st.randoms())
def test_the_rank_that_needs_the_most_leads_in_whatever_order_they_come(report, sizes, random):
    ranks = [of_rank(report, rank, len(sizes), more) for rank, more in enumerate(sizes)]
    random.shuffle(ranks)
    merged = merge(ranks)
    assert merged.distributed.rank == max(range(len(sizes)), key=lambda rank: (sizes[rank], -rank))
    assert [rank.rank for rank in merged.distributed.ranks] == sorted(
        range(len(sizes)), key=lambda rank: (-sizes[rank], rank)
    )
    assert merged.distributed.missing == []
    assert Report.from_json(json.dumps(merged.to_dict())) == merged


@pytest.fixture(scope="module")
def one():
    x, y = np.ones((4, 8), np.float32), np.zeros((4, 2), np.float32)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    return mb.profile(model, step=lambda: ops.sqerr(model(mb.Tensor(x)), y), rounds=1)


def test_missing_and_stopped_ranks_are_named_at_the_top_of_every_format(one):
    merged = merge([of_rank(one, 2, 4, 10), of_rank(one, 0, 4, stopped="it fell over")])
    assert merged.distributed.missing == [1, 3]
    missing, stopped = tables.warnings(merged)
    assert missing == "No report of ranks 1, 3, of 4 ranks: the worst is the worst of the others."
    assert stopped == "Rank 0 stopped, and its figures are those of its dry run: it fell over"
    for render, modes in ((text, "Modes"), (markdown, "#### Modes"), (html, 'id="modes-title"')):
        shown = " ".join(render(merged).split())
        assert shown.index("No report of ranks 1, 3") < shown.index(modes)
        assert "Ranks, the worst first" in shown
    single = of_rank(one, 0, 4, stopped="it fell over")
    assert tables.warnings(single) == [stopped]


def test_the_table_says_in_what_ranks_differ(one):
    same = tables.ranks(merge([of_rank(one, 0, 2), of_rank(one, 1, 2)]))
    other = tables.ranks(merge([of_rank(one, 0, 2), of_rank(one, 1, 2, 5)]))
    assert "All ranks have the same figures." in same.notes
    assert "The ranks differ in: memory, parameters." in other.notes
    assert [row.cells[0].text for row in other.rows] == ["1", "0"]


def test_gradients_that_ddp_has_reduced_and_that_differ_are_told(one):
    runs = tuple(replace(run, gradient_sha256="0" * 64) for run in one.runs)
    table = tables.ranks(merge([of_rank(one, 0, 2), of_rank(replace(one, runs=runs), 1, 2)]))
    assert any("the gradients of the ranks DIFFER" in note for note in table.bad)


def test_what_does_not_belong_together_is_refused(one):
    other = replace(one, profile=replace(one.profile, name="other"))
    with pytest.raises(UsageError, match="is not of one of several ranks"):
        merge([one])
    with pytest.raises(UsageError, match="several reports of rank 1"):
        merge([of_rank(one, 1, 2), of_rank(one, 1, 2)])
    with pytest.raises(UsageError, match="merged already"):
        merge([merge([of_rank(one, 0, 2)]), of_rank(one, 1, 2)])
    with pytest.raises(UsageError, match="of different jobs"):
        merge([of_rank(one, 0, 2), of_rank(other, 1, 2)])
    with pytest.raises(UsageError, match="of different jobs"):
        merge([of_rank(one, 0, 2), of_rank(one, 1, 3)])
    with pytest.raises(UsageError, match="no reports"):
        merge([])


def test_a_merged_report_that_contradicts_itself_is_refused(one):
    merged = merge([of_rank(one, 0, 2, 5), of_rank(one, 1, 2)])
    first, second = merged.distributed.ranks
    for ranks, why in (
        ((second, first), "not the first of its ranks"),
        ((first, first), "not all different"),
        ((first, replace(second, rank=7)), "a rank 7, of 2 ranks"),
        ((replace(first, arguments=second.arguments), second), "not what its runs say"),
    ):
        broken = replace(merged, distributed=replace(merged.distributed, ranks=ranks))
        with pytest.raises(UsageError, match=f"contradicts itself: .*{why}"):
            Report.from_json(json.dumps(broken.to_dict()))


def test_reports_without_ranks_are_read_as_before(one):
    content = one.to_dict()
    del content["distributed"]
    for run in content["runs"]:
        del run["peak"]["gathered"], run["peak"]["buckets"]
    del content["arguments"]["sharded_parameter_bytes"], content["arguments"]["bucket_bytes"]
    assert Report.from_json(json.dumps(content)) == one


def test_merged_reports_can_be_compared(one):
    before, after = (merge([of_rank(one, 0, 2), of_rank(one, 1, 2, more)]) for more in (0, 5))
    assert all(not run.peak.difference for run in compare(before, after).runs)


def test_the_report_command_merges(one, tmp_path, capsys):
    files = [str(tmp_path / f"out.rank{rank}.json") for rank in range(2)]
    for rank, file in enumerate(files):
        of_rank(one, rank, 3, rank).save(file)
    assert main(["report", *files, "-o", str(tmp_path / "all.json"), "-o", str(tmp_path / "all.html")]) == 0
    assert Report.load(tmp_path / "all.json") == merge([Report.load(file) for file in files])
    assert main(["report", *files]) == 0
    assert "No report of rank 2, of 3 ranks" in " ".join(capsys.readouterr().out.split())
    one.save(tmp_path / "plain.json")
    assert main(["report", files[0], str(tmp_path / "plain.json")]) == 2
    assert "is not of one of several ranks" in capsys.readouterr().err


def test_files_of_ranks_lie_beside_the_merged_one():
    assert rank_file("runs/out.json", 3) == "runs/out.rank3.json"
    assert rank_file("out.trace.json", 0) == "out.rank0.json"
    names = {rank_file("a.html", rank) for rank in range(12)}
    assert all(a != b for a, b in itertools.combinations(names, 2))

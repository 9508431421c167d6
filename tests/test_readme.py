"""What the README shows can be run as it stands."""

from __future__ import annotations

import html
import re
from pathlib import Path

from memback.dry.mode import dry_run
from memback.profiling.definition import load
from memback.profiling.mode import MODES
from memback.profiling.run import profile
from memback.profiling.workload import Workload

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_python_of_the_readme_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert capsys.readouterr().out.split()[0].isdigit()


def test_the_figures_of_the_readme_and_of_its_picture_are_those_of_a_run():
    work = Workload.build(load("deep-mlp"), dry=True)
    with dry_run():
        report = profile(
            work.model,
            step=work.step(),
            modes=MODES,
            policy=work.profile.checkpoint.policy,
            optimizer=work.optimizer,
        )
    picture = (Path(__file__).parents[1] / "docs" / "images" / "session.svg").read_text(encoding="utf-8")
    drawn = html.unescape(re.sub(r"<[^>]*>", "", picture))
    for run in report.runs:
        assert re.search(rf"^{run.label} +{run.saved_bytes:,} ", README, re.MULTILINE), run.label
        assert re.search(rf"^{run.label} +{run.predicted_peak_bytes:,} ", README, re.MULTILINE), run.label
        assert re.search(rf"{run.label}\s+{run.saved_bytes:,}", drawn), run.label
        assert re.search(rf"\s{run.predicted_peak_bytes:,}\s", drawn), run.label

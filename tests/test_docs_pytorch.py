"""What the guide to PyTorch models shows can be run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[1] / "docs" / "pytorch.md"


@pytest.mark.torch
def test_the_python_of_the_guide_runs(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), flags=re.S)
    assert len(blocks) > 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(GUIDE), "exec"), names)
    printed = capsys.readouterr().out
    assert printed.startswith("retain-all ")
    exec(printed[printed.index("# plan:") :], names)
    names["apply"](names["model"])()
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "plan.json"}

"""The commands that docs/pytorch.md shows are commands: their options are known, and what is whole in them runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from memback.commands import main

PAGE = (Path(__file__).parents[2] / "docs" / "pytorch.md").read_text(encoding="utf-8")
LINES = [line.split("  #")[0] for line in re.findall(r"^\$ memback (torch .*)$", PAGE, re.MULTILINE)]
PLACEHOLDERS = {
    "package.module:factory": "tests.bridges.torch_models:small_gpt",
    "package.module:loss": "tests.bridges.torch_models:cross_entropy",
    "8x3x224x224": "8x8:int64",
    "8x1024:int64": "8x8:int64",
}
WITH_ARGUMENTS = PLACEHOLDERS | {
    "package.module:factory": "tests.bridges.torch_models:with_arguments",
    "n_layer=4": "layers=4",
    "mask=8x1024:int64=1": "mask=8x8:int64=1",
}


@pytest.mark.parametrize("line", LINES)
def test_its_commands_run(line, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    monkeypatch.chdir(tmp_path)
    names = WITH_ARGUMENTS if "--arg" in line else PLACEHOLDERS
    words = [names.get(word, word) for word in shlex.split(line)]
    assert main([*words, "--rounds", "1"]) == 0, capsys.readouterr().err

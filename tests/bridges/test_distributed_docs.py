"""What docs/distributed.md shows can be run as it stands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from memback.commands import REGISTRY, main

PAGE = (Path(__file__).parents[2] / "docs" / "distributed.md").read_text(encoding="utf-8")


def test_its_python_runs(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    exec(compile(block, "distributed.md", "exec"), {})
    shards, peak = capsys.readouterr().out.split(maxsplit=1)
    assert int(shards) == (8 * (256 * 256 + 256) + 10 * 256 + 2 * 256 + 12) * 4 // 4
    assert "gathered=" in peak


@pytest.mark.filterwarnings("ignore::UserWarning")  # PyTorch copies a Transformer's layers without memory
def test_its_commands_run_and_those_for_torchrun_have_options_that_there_are(capsys):
    (line,) = re.findall(r"^\$ (memback .*)$", PAGE, flags=re.M)
    assert main(shlex.split(line)[1:]) == 0
    capsys.readouterr()
    for name, rest in re.findall(r"memback (torch|report) (.* -o .*)$", PAGE, flags=re.M):
        assert name in REGISTRY
        assert main([name, "--help"]) == 0
        shown = capsys.readouterr().out
        assert all(option in shown for option in re.findall(r" (--?[a-z-]+)", rest))


@pytest.mark.parametrize("pattern", re.findall(r"`--shard '(.*?)'`", PAGE))
def test_its_pattern_shards_blocks_with_modules_in_them(pattern, capsys):
    line = ["tests.bridges.ranks_of_a_step:net", "--input", "6x19", "--mode", "full", "--dry", "--ranks", "2"]
    assert main(["torch", *line, "--distributed", "fsdp2", "--shard", pattern]) == 0
    assert "gathered" in capsys.readouterr().out

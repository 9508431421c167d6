"""How long 10,000 points of a model like GPT-2 small take: ``python -m benchmarks.sweep`` writes ``SWEEP.md``.

Two grids of 10,000 points: one whose points differ in policy and budget too, and share what they can; and one of 10,000
different models, where nothing can be shared. Each is a whole run of ``memback sweep`` with its start, its journal and
its file. ``--tenth`` runs every tenth of the batches alone, for a machine that is free for a minute only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("SWEEP.md")

BATCHES = {
    "policies and budgets of 400 models": (1, 2, 3, 4, 6, 8, 12, 16, 24, 32),
    "10,000 models": tuple(range(1, 51)),
}
GRIDS = {
    "policies and budgets of 400 models": (
        "sequence=128,256,512,768,1024",
        "model.width=384,576,768,960",
        "dtype=float32,float16",
        "policy=sqrt,all,selective,selective:attention,every:2",
        "budget=2GiB,4GiB,8GiB,16GiB,32GiB",
    ),
    "10,000 models": (
        f"sequence={','.join(str(64 * n) for n in range(1, 26))}",
        "model.width=384,576,768,960",
        "dtype=float32,float16",
    ),
}


def measure(tenth: bool) -> dict[str, Any]:
    """Seconds by the clock and of the processor, and what became of the points, by grid."""
    with tempfile.TemporaryDirectory() as folder:
        return {name: _once(_axes(name, tenth), Path(folder) / f"{name}.csv") for name in GRIDS}


def _axes(name: str, tenth: bool) -> list[str]:
    batches = BATCHES[name][5::10] if tenth else BATCHES[name]
    return [f"batch={','.join(map(str, batches))}", *GRIDS[name]]


def _once(axes: list[str], file: Path) -> dict[str, Any]:
    found = file.with_suffix(".json")
    words = [word for axis in axes for word in ("--grid", axis)]
    command = [sys.executable, "-m", "memback", "sweep", "gpt2-small", *words]
    command += ["--quiet", "--output", str(file), "--json", str(found)]
    before, began = os.times(), time.perf_counter()
    subprocess.run(command, check=True)
    seconds, after = time.perf_counter() - began, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "seconds": seconds,
        "processor_seconds": used,
        "load": os.getloadavg()[0],
        **json.loads(found.read_text())["summary"],
    }


COLUMNS = ("grid", "points", "plans asked for", "seconds", "processor seconds", "10,000 points, minutes", "load")


def section(data: dict[str, Any]) -> str:
    """The table."""
    lines = [
        "# A sweep of 10,000 points",
        "",
        *(__doc__ or "").strip().splitlines()[2:],
        "",
        f"On {len(os.sched_getaffinity(0))} cores, Python {sys.version.split()[0]}. The load is the machine's, over a"
        " minute at the end: what is above the number of cores was the work of others.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|---|{'---:|' * (len(COLUMNS) - 1)}",
        *(f"| {name} | {' | '.join(_cells(found))} |" for name, found in data.items()),
        "",
    ]
    return "\n".join(lines)


def _cells(found: dict[str, Any]) -> list[str]:
    minutes = found["seconds"] / found["points"] * 10_000 / 60
    return [
        *(f"{count:,}" for count in (found["points"], found["plans_fit"] + found["no_plan_fits"])),
        *(f"{seconds:,.0f}" for seconds in (found["seconds"], found["processor_seconds"])),
        f"{minutes:.1f}",
        f"{found['load']:.1f}",
    ]


if __name__ == "__main__":
    PAGE.write_text(section(measure("--tenth" in sys.argv[1:])))
    print(PAGE.read_text())

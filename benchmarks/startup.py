"""How long it takes until memback is there: ``import memback`` beyond ``import numpy``, and ``memback --help``."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

COMMANDS = {
    "python": ["-c", "pass"],
    "import numpy": ["-c", "import numpy"],
    "import memback": ["-c", "import memback"],
    "memback --help": ["-m", "memback", "--help"],
    "memback --version": ["-m", "memback", "--version"],
}


def measure(rounds: int) -> dict[str, Any]:
    """Medians in milliseconds, by the clock and of the processor; with compiled files, as where it is installed."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    with tempfile.TemporaryDirectory() as folder:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment["PYTHONPYCACHEPREFIX"] = folder
        environment["OPENBLAS_NUM_THREADS"] = "1"  # threads that NumPy starts and that wait would take processor time
        for _ in range(rounds + 1):
            for name, arguments in COMMANDS.items():
                taken[name].append(_once(arguments, environment))
    return {name: {"clock_ms": _median(times, 0), "processor_ms": _median(times, 1)} for name, times in taken.items()}


def _median(times: list[tuple[float, float]], which: int) -> float:
    return statistics.median(t[which] for t in times[1:]) * 1e3  # the first one compiled and filled the caches


def _once(arguments: list[str], environment: dict[str, str]) -> tuple[float, float]:
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
    seconds, after = time.perf_counter() - began, os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, used


def section(data: dict[str, Any]) -> str:
    """The table."""
    beyond = {
        clock: data["import memback"][clock] - data["import numpy"][clock] for clock in ("clock_ms", "processor_ms")
    }
    rows = [f"| `{name}` | {t['clock_ms']:.0f} | {t['processor_ms']:.0f} |" for name, t in data.items()]
    return "\n".join(
        [
            "## Start",
            "",
            "A new process each, medians.",
            "",
            "| | ms | processor ms |",
            "|---|---:|---:|",
            *rows,
            "",
            f"`import memback` takes {beyond['clock_ms']:.0f} ms beyond NumPy, {beyond['processor_ms']:.0f} of the"
            " processor.",
            "",
        ]
    )

"""Runs the benchmarks and writes their page, ``benchmarks/RESULTS.md``, with its charts.

    python -m benchmarks.page [--only PART ...] [--rounds N] [--threads N]

What was measured goes into ``benchmarks/results.json``; parts that are not run again stay on the page as they were.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import goals
from memback._version import __version__

FOLDER = Path(__file__).parent
PARTS = {"speed": "speed", "single": "speed", "startup": "startup", "costs": "costs", "growth": "growth"}
"""The module of each part; ``single`` is the comparison with one thread an engine."""


def main() -> None:
    """Measure, then write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=[*PARTS], metavar="PART", help=f"of {', '.join(PARTS)}"
    )
    parser.add_argument(
        "--rounds", type=int, default=15, help="how often the engines take turns (default: %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of each engine (default: %(default)s)")
    options = parser.parse_args()
    path = FOLDER / "results.json"
    data: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in options.only:
        data[name] = _measure(name, options) | {"machine": _machine()}
        path.write_text(json.dumps(data, indent=1) + "\n")
    _write(data)
    print(f"written: {FOLDER / 'RESULTS.md'}")


def _module(name: str) -> Any:
    return importlib.import_module(f"benchmarks.{PARTS[name]}")


def _measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    print(f"{name} ...", flush=True)
    threads = {"speed": [options.threads], "single": [1]}.get(name, [])
    return {"data": _module(name).measure(options.rounds, *threads)}


def _machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    versions = {"memback": __version__}
    for package in ("numpy", "numba", "torch", "jax", "autograd", "mygrad"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}, {' '.join(platform.libc_ver())}",
        "python": platform.python_version(),
        "versions": versions,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _write(data: dict[str, Any]) -> None:
    out = ["# Results", "", "Written by `make benchmark`; the numbers are in `results.json`.", ""]
    out.append(goals.section(data))
    for name in PARTS:
        if name not in data:
            continue
        module, part = _module(name), data[name]
        out += [module.section(part["data"]), _measured_on(part["machine"]), ""]
        if hasattr(module, "chart"):
            (FOLDER / f"{name}.svg").write_text(module.chart(part["data"]))
    (FOLDER / "RESULTS.md").write_text("\n".join(out))


def _measured_on(machine: dict[str, Any]) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in machine["versions"].items())
    busy = ""
    if machine["load"] is not None and machine["load"] > 1.5 * machine["cores"]:
        busy = (
            f" **Other programs were running (load {machine['load']:.1f} on {machine['cores']} cores): trust the ratios"
            " of processor time more than those of the clock.**"
        )
    return (
        f"*{machine['processor']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']};"
        f" {versions}; {machine['date']}.*{busy}"
    )


if __name__ == "__main__":
    main()

"""How long a dry run takes beside PyTorch's FakeTensorMode and its MemTracker, on the same GPT.

    python benchmarks/dry_run.py [--rounds N] [--write]

The sides take turns in one process; medians over the rounds are printed, and ratios (MemTracker takes a minute for 96
layers, and has one turn there). memback's figure includes the full per-layer report as a dict; FakeTensorMode's is
forward and backward alone; MemTracker adds PyTorch's account of memory by module. All models are built before. The
resident memory is the highest of a fresh process that does the same. ``--write`` puts the table into dry_run.md beside
this file. Needs the extra `torch`.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

import memback as mb
from memback.files import write_atomically

MODELS = {"gpt2-small": (12, 768, 12, 8, 1024), "gpt3-175b": (96, 12288, 96, 1, 2048)}
"""Layers, width, heads, batch and tokens, as in the profiles of these names; without dropout, in float16."""
SIDES = ("memback", "processor", "FakeTensorMode", "MemTracker")
"""``processor`` is memback's again, in processor time: what a machine without other work would take."""
VOCABULARY = 50257


class Block(nn.Module):
    """A GPT block of PyTorch's own layers, with attention in separate ops."""

    def __init__(self, width: int, heads: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, dtype=dtype), nn.LayerNorm(width, dtype=dtype)
        self.qkv, self.out = nn.Linear(width, 3 * width, dtype=dtype), nn.Linear(width, width, dtype=dtype)
        self.inner, self.outer = nn.Linear(width, 4 * width, dtype=dtype), nn.Linear(4 * width, width, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        shape = (n, length, self.heads, width // self.heads)
        q, k, v = (part.reshape(shape).transpose(1, 2) for part in self.qkv(self.norm1(x)).split(width, dim=-1))
        scores = q @ k.transpose(-2, -1) * shape[-1] ** -0.5
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        attended = scores.masked_fill(later, float("-inf")).softmax(-1) @ v
        x = x + self.out(attended.transpose(1, 2).reshape(n, length, width))
        return x + self.outer(nn.functional.gelu(self.inner(self.norm2(x)), approximate="tanh"))


class TorchGPT(nn.Module):
    """The same model as memback's GPT."""

    def __init__(self, layers: int, width: int, heads: int, context: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width, dtype=dtype)
        self.positions = nn.Embedding(context, width, dtype=dtype)
        self.blocks = nn.ModuleList([Block(width, heads, dtype) for _ in range(layers)])
        self.norm = nn.LayerNorm(width, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.tokens(x) + self.positions.weight[: x.shape[1]]
        for block in self.blocks:
            h = block(h)
        return self.norm(h) @ self.tokens.weight.T


def torch_step(layers: int, width: int, heads: int, batch: int, length: int, tracked: bool) -> float:
    """Seconds of forward and backward under FakeTensorMode."""
    with FakeTensorMode():
        model = TorchGPT(layers, width, heads, length, torch.float16)
        x = torch.zeros(batch, length, dtype=torch.int64)
        began = time.perf_counter()
        if tracked:
            tracker = MemTracker()
            tracker.track_external(model)
            with tracker:
                run(model, x)
            tracker.get_tracker_snapshot("peak")
        else:
            run(model, x)
        return time.perf_counter() - began


def run(model: nn.Module, x: torch.Tensor) -> None:
    """One step without the optimiser."""
    scores = model(x)
    nn.functional.cross_entropy(scores.flatten(0, 1), x.flatten()).backward()


def memback_step(
    layers: int,
    width: int,
    heads: int,
    batch: int,
    length: int,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of forward and backward on arrays without memory, with the whole report."""
    with mb.dry_run():
        model = mb.models.GPT(layers, width, heads, VOCABULARY, length, dtype="float16")
        x = mb.ShapeArray((batch, length), "int64")
        began = clock()
        mb.profile(model, step=lambda: model.loss(x, x), modes=("full",)).to_dict()
        return clock() - began


def seconds(size: tuple[int, ...], rounds: int, tracked_rounds: int) -> dict[str, float]:
    """The median of each side, which take turns."""
    steps: dict[str, Callable[[], float]] = {
        "memback": lambda: memback_step(*size),
        "processor": lambda: memback_step(*size, clock=time.process_time),
        "FakeTensorMode": lambda: torch_step(*size, tracked=False),
        "MemTracker": lambda: torch_step(*size, tracked=True),
    }
    for side in ("memback", "FakeTensorMode"):
        steps[side]()  # what only the first call takes time for
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in range(rounds):
        for side in SIDES:
            if side != "MemTracker" or number < tracked_rounds:
                times[side].append(steps[side]())
    return {side: statistics.median(taken) for side, taken in times.items()}


RESIDENT = """
import re
import memback as mb
with mb.dry_run():
    model = mb.models.GPT(*{sizes}, dtype="float16")
    x = mb.ShapeArray({shape}, "int64")
    mb.profile(model, step=lambda: model.loss(x, x), modes=("full",)).to_dict()
print(1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1]))
"""
"""Linux alone tells the peak of a process without that of its parent, from which it was forked."""


def resident(layers: int, width: int, heads: int, batch: int, length: int) -> str:
    """The most resident memory of a process that does what :func:`memback_step` does."""
    if not Path("/proc/self/status").exists():
        return "–"
    code = RESIDENT.format(sizes=(layers, width, heads, VOCABULARY, length), shape=(batch, length))
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return f"{int(done.stdout) / 2**20:.0f} MiB"


def machine() -> str:
    """What the figures were taken on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        processor = platform.processor() or platform.machine()
    return (
        f"{processor}, {os.cpu_count()} cores, {platform.system()}; Python {platform.python_version()},"
        f" NumPy {np.__version__}, PyTorch {torch.__version__}, memback {mb.__version__}"
    )


def table(rounds: int) -> list[str]:
    """The results as a table in Markdown, line by line."""
    lines = [
        "| model | memback | its processor time | FakeTensorMode | MemTracker | memback's resident memory |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, size in MODELS.items():
        found = seconds(size, rounds, tracked_rounds=1 if name == "gpt3-175b" else 3)
        ours = found["memback"]
        others = " | ".join(f"{found[side]:.3f} s ({found[side] / ours:.1f} ×)" for side in SIDES[2:])
        row = f"| {name} | {ours:.3f} s | {found['processor']:.3f} s | {others} | {resident(*size)} |"
        print(row, flush=True)
        lines.append(row)
    return lines


def main() -> None:
    """Print the table, and write it where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="write dry_run.md")
    arguments = parser.parse_args()
    print(machine(), flush=True)
    lines = table(arguments.rounds)
    if arguments.write:
        write_atomically(Path(__file__).with_suffix(".md"), page(lines, arguments.rounds), overwrite=True)


def page(lines: list[str], rounds: int) -> str:
    """The results with what they are."""
    return "\n".join(
        [
            "# A dry run beside PyTorch's",
            "",
            "Forward and backward of a GPT in float16 without allocating anything: memback with its report of every",
            "layer, FakeTensorMode alone, and FakeTensorMode under MemTracker, which accounts for memory by module.",
            f"Seconds (and how many times memback's): medians of {rounds} rounds in which the sides take turns",
            "(MemTracker: 3, and 1 for gpt3-175b).",
            "",
            *lines,
            "",
            f"{machine()}; load average {os.getloadavg()[1]:.1f} when it was over.",
            "",
            "Written by `python benchmarks/dry_run.py --write`.",
            "",
        ]
    )


if __name__ == "__main__":
    main()

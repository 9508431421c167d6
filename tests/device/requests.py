"""What a case asks the allocator for, request by request, with the code that asked: to see where a prediction differs.

    python tests/device/stub/launch.py PYTHON -m tests.device.requests CASE [--step steady] [--least BYTES]

prints a line for each request and release of the step: what is allocated then, the bytes, and the innermost calls.
Requests of backward have no Python code.
"""

from __future__ import annotations

import argparse
import os
import warnings
from typing import Any

import torch

from tests.device.cases import CASES
from tests.device.figures import import_libraries, stub_of, train


def entries(name: str, steady: bool) -> list[dict[str, Any]]:
    """Train a case one step or two, and return what the allocator did in the last."""
    case = CASES[name]
    os.environ.update(stub_of(case.card))
    torch.backends.cuda.enable_cudnn_sdp(case.cudnn_attention)
    step = case.build().to("cuda")
    optimizer = step.optimizer([parameter for parameter in step.module.parameters() if parameter.requires_grad])
    if steady:
        train(step, optimizer)
    torch.cuda.memory._record_memory_history("all", stacks="python", max_entries=10_000_000)
    train(step, optimizer)
    return torch.cuda.memory._snapshot()["device_traces"][0]


def calls(entry: dict[str, Any], most: int) -> str:
    """Return the innermost calls that led to a request."""
    shown = [f"{os.path.basename(frame['filename'])}:{frame['line']} {frame['name']}" for frame in entry["frames"]]
    return " < ".join(shown[:most])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES, metavar="CASE")
    parser.add_argument("--step", choices=("first", "steady"), default="steady")
    parser.add_argument("--least", type=int, default=0, metavar="BYTES", help="leave out requests of fewer bytes")
    parser.add_argument("--calls", type=int, default=4, metavar="NUMBER")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    import_libraries()
    allocated = 0
    for entry in entries(options.case, options.step == "steady"):
        sign = {"alloc": 1, "free_completed": -1}.get(entry["action"], 0)
        allocated += sign * entry["size"]
        if sign and entry["size"] >= options.least:
            print(f"{allocated:>16,} {sign * entry['size']:>+16,}  {calls(entry, options.calls)}")


if __name__ == "__main__":
    main()

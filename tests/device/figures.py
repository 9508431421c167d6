"""What PyTorch's own host code says that each case takes on a GPU: written to expected.json, or compared with it.

    python tests/device/stub/launch.py PYTHON -m tests.device.figures [--write] [--print] [CASE ...]

runs on the stub; without launch.py on a real GPU, whatever card a case names. A CASE is a name, or how some begin.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import importlib.metadata
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from memback.bridges.torch.device.cards import card
from tests.device.cases import CASES, Case, Step

EXPECTED = Path(__file__).with_name("expected.json")
LIBRARIES = ("torch", "torchvision", "transformers", "peft")
STEPS = 3
"""The first makes the optimiser's state; the last is a steady one."""


def run(case: Case, steps: int = STEPS) -> dict[str, Any]:
    """Train ``case`` a few steps on the GPU, and return the figures of the first and of a steady step, in bytes."""
    torch.backends.cuda.enable_cudnn_sdp(case.cudnn_attention)
    step = case.build().to("cuda")
    parameters = [parameter for parameter in step.module.parameters() if parameter.requires_grad]
    optimizer = step.optimizer(parameters)
    gc.collect()
    static = torch.cuda.memory_allocated()
    figures = [train(step, optimizer) for _ in range(steps)]
    return {"static_bytes": static, "first": figures[0], "steady": figures[-1]}


def train(step: Step, optimizer: Any) -> dict[str, int]:
    """Carry out one training step, and return what it took."""
    torch.cuda.reset_peak_memory_stats()
    forward_bytes = 0
    for _ in range(step.accumulate):
        before = torch.cuda.memory_allocated()
        loss = forward(step)
        forward_bytes = max(forward_bytes, torch.cuda.memory_allocated() - before)
        if step.zeroed_late:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        del loss
    optimizer.step()
    if not step.zeroed_late:
        optimizer.zero_grad(set_to_none=True)
    return {
        "forward_bytes": forward_bytes,
        "allocated_peak_bytes": torch.cuda.max_memory_allocated(),
        "reserved_peak_bytes": torch.cuda.max_memory_reserved(),
    }


def forward(step: Step) -> Any:
    """Run forward, and return the loss."""
    with torch.autocast("cuda", torch.bfloat16) if step.autocast else contextlib.nullcontext():
        return step.loss(step.module(*step.args, **step.kwargs))


def in_child(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do it in a process of its own, because what is left in the allocator's cache is found by the next."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        with open(reading, encoding="utf-8") as answers:
            answer = answers.read()
        os.waitpid(child, 0)
        return json.loads(answer) if answer else {"error": "the process died"}
    os.close(reading)
    try:
        answer = json.dumps(work())
    except BaseException as error:
        traceback.print_exc()
        answer = json.dumps({"error": f"{type(error).__name__}: {error}"})
    with open(writing, "w", encoding="utf-8") as answers:
        answers.write(answer)
    sys.stderr.flush()
    os._exit(0)


def on_card(case: Case) -> dict[str, Any]:
    """Run a case on the card that it names; a real GPU is what it is."""
    os.environ.update(stub_of(case.card))
    return run(case)


def stub_of(name: str) -> dict[str, str]:
    """Return the variables under which the stub stands for a card, if they are set before CUDA is initialised."""
    properties = card(name)
    return {
        "STUB_BYTES": str(properties.memory_bytes),
        "STUB_SM": "{}{}".format(*properties.capability),
        "STUB_PROCESSORS": str(properties.multiprocessors),
        "STUB_THREADS": str(properties.threads),
    }


def chosen(names: list[str]) -> list[Case]:
    """Return the cases whose names begin so; all of them where no name is given."""
    found = [case for name, case in CASES.items() if not names or name.startswith(tuple(names))]
    if not found:
        sys.exit(f"no case's name begins with any of {', '.join(map(repr, names))}; there are: {', '.join(CASES)}")
    return found


def settings() -> dict[str, Any]:
    """Return what the figures were made with."""
    versions = {name: importlib.metadata.version(name) for name in LIBRARIES}
    return {
        "versions": versions | {"torch": torch.__version__, "cuda": torch.version.cuda},
        "steps": STEPS,
        "zero_grad": "set_to_none=True, after the update, but in the cases that name another moment",
        "autocast": "bfloat16, around forward and loss",
        "cudnn_attention": "off, but in the cases that name it",
        "alloc_conf": os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or os.environ.get("PYTORCH_ALLOC_CONF") or "",
    }


def differences(expected: dict[str, Any], observed: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each figure of a case that isn't what is expected."""
    for part in sorted(expected.keys() | observed.keys()):
        one, other = expected.get(part), observed.get(part)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from (f"{part}.{line}" for line in differences(one, other))
        elif one != other:
            yield f"{part}: expected {one}, observed {other}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--write", action="store_true", help="write expected.json instead of comparing with it")
    parser.add_argument("--print", action="store_true", help="print each case's figures as a line of JSON")
    return parser.parse_args()


def import_libraries() -> None:
    """Import what cases need before any process is forked, because it takes seconds."""
    import peft  # noqa: F401
    import torchvision  # noqa: F401
    import transformers

    transformers.logging.set_verbosity_error()


def main() -> int:
    options = arguments()
    warnings.filterwarnings("ignore")
    import_libraries()
    stored = json.loads(EXPECTED.read_text(encoding="utf-8")) if EXPECTED.exists() else {"cases": {}}
    here, wrong = settings(), 0
    if not options.write and stored.get("settings") != here:
        print(*differences(stored.get("settings", {}), here), sep="\n")
    if options.write and options.cases and stored.get("settings", here) != here:
        sys.exit("the stored figures were made with other settings: write all of them, or none")
    for case in chosen(options.cases):
        observed = in_child(functools.partial(on_card, case))
        if options.print:
            print(json.dumps({"case": case.name} | observed), flush=True)
        if "error" in observed:
            print(f"{case.name}: {observed['error']}", flush=True)
            wrong += 1
        elif options.write:
            stored["cases"][case.name] = observed
            write(stored["cases"], here)
        elif lines := list(differences(stored["cases"].get(case.name, {}), observed)):
            print(f"{case.name}: {'; '.join(lines)}", flush=True)
            wrong += 1
    print(f"{len(chosen(options.cases))} cases, {wrong} with a difference or an error")
    return min(wrong, 1)


def write(cases: dict[str, Any], here: dict[str, Any]) -> None:
    """Write expected.json, a line a case, in the order of the cases; figures of cases that are gone are dropped."""
    lines = [f"    {json.dumps(name)}: {json.dumps(cases[name])}" for name in CASES if name in cases]
    text = f'{{\n  "settings": {json.dumps(here)},\n  "cases": {{\n' + ",\n".join(lines) + "\n  }\n}\n"
    EXPECTED.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())

"""docs/how-true-is-it.md: what was predicted beside what was observed, out of the stored figures.

    python -m tests.device.page [--write]

compares the page with expected.json, predicted.json and published.json, or writes it.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from memback.units import MIB
from tests.device.cases import CASES

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "how-true-is-it.md"
STEPS = ("first", "steady")
EXACT = ("forward_bytes", "allocated_peak_bytes")
RESERVED = "reserved_peak_bytes"

INTRODUCTION = """\
# How true is it?

What a training step takes on a card that isn't there is *predicted*: forward, backward and update are run on tensors
without memory, as CUDA would run them, and every request goes through PyTorch's caching allocator, written again. This
page has every case in which that was compared with something else.

**Observed** is what PyTorch's own code for CUDA says of the same step: a CUDA build of PyTorch {torch} runs over a
stub of the CUDA runtime (`tests/device/stub`, `make test-device`), which answers as the card would and runs no kernel.
All that decides about memory is then the real thing: which kernel is taken, what autograd keeps, what
`torch.cuda.max_memory_allocated()` and `torch.cuda.max_memory_reserved()` give. What PyTorch does not decide itself is
not in it: see [what is not known](#what-is-not-known). Models are those of torchvision {torchvision}, transformers
{transformers}, peft {peft} and `torch.nn`, none written for this. The first step makes the optimiser's state; the
steady one is the third.

**Goals.** What forward keeps, and the highest allocation of the whole step: within 0.1 % and 2 MiB, in the first and in
a steady step. What is reserved: within 2 %. **{good} of {cases} cases meet them all**, {exact} of them to the byte in
every figure.
"""

CASES_HEAD = """
## Every case

In MiB, of a steady step, and the peak of the first one; predicted, and behind it by how much that is more or less than
what was observed. `=` says that it is the same to the byte. A case in **bold** misses a goal.
"""

TABLE = """
| case | forward keeps | peak of the first step | peak | reserved |
|---|---:|---:|---:|---:|
"""

PUBLISHED = """
## Figures that others have published

Measured by others on hardware, and predicted with the settings that they give.

| what | settings | measured | predicted | |
|---|---|---:|---:|---|
"""

UNKNOWN = """
## What is not known

A report names each op of which something is not modelled ("Not known of ..."). In the cases above these are:

| op | not known | cases |
|---|---|---:|
"""

REST = """
Besides:

- **cuDNN's workspace for convolutions.** cuDNN estimates which algorithm is quickest, and its workspace goes through
  PyTorch's allocator for as long as the convolution runs. Neither the stub nor a prediction has it: on a card the peak
  of a convolutional model can be higher by what its largest convolution is given.
- **What cuDNN keeps of recurrent layers.** Only cuDNN knows. Observed and predicted figures of `lstm` and `gru` count
  the same estimate, which is read off two published figures of an older version (the table above), so that they show
  that all else is right.
- **The context.** What the driver, cuBLAS, cuDNN and NCCL hold beside the allocator is an estimate in the report
  (512 MiB, from messages of real cards), never part of *allocated* or *reserved*.
- **What depends on values.** A mixture of experts is routed by what it computes. A prediction has no values of
  floating-point numbers, and no stub has them.
- **Other versions of PyTorch.** Figures are those of the versions above. Another one may take other kernels.
- **Hardware.** None of the observed figures is of a GPU; what others have measured on one is in the table above.
"""


def stored() -> dict[str, Any]:
    """The three files of figures."""
    names = ("expected", "predicted", "published")
    return {name: json.loads((HERE / f"{name}.json").read_text(encoding="utf-8")) for name in names}


def misses(predicted: dict[str, Any], observed: dict[str, Any]) -> list[str]:
    """The figures of a case that miss their goals."""
    found = []
    for step in STEPS:
        for figure in (*EXACT, RESERVED):
            one, other = predicted[step][figure], observed[step][figure]
            allowed = other * 0.02 if figure == RESERVED else other * 0.001 + 2 * MIB
            if abs(one - other) > allowed:
                found.append(f"{step}.{figure}")
    return found


def page() -> str:
    """The page's text."""
    figures = stored()
    expected, predicted = figures["expected"]["cases"], figures["predicted"]
    good = [name for name in CASES if not misses(predicted[name], expected[name])]
    exact = sum(all(predicted[n][step] == expected[n][step] for step in STEPS) for n in CASES)
    versions = figures["expected"]["settings"]["versions"]
    head = INTRODUCTION.format(good=len(good), cases=len(CASES), exact=exact, **versions)
    lines = [head, PUBLISHED, *(_published(one) for one in figures["published"]), CASES_HEAD]
    for family, names in _families().items():
        lines.append(f"\n### {family}\n{TABLE}")
        lines += [_row(name, predicted[name], expected[name]) for name in names]
    lines.append(UNKNOWN)
    lines += _unknown(predicted)
    lines.append(REST)
    return "".join(lines)


def _families() -> dict[str, list[str]]:
    """Names of cases, by what is special about them."""
    titles = {
        "": "Models in float32, under autocast and in bfloat16",
        "optimizer": "Optimisers",
        "lora": "With LoRA",
        "checkpointing": "With checkpoints of the model's own",
        "cudnn-attention": "With attention by cuDNN",
        "accumulation": "Two micro-batches a step",
        "zeroed-late": "Gradients set to None between forward and backward",
        "card": "Other cards",
    }
    found: dict[str, list[str]] = defaultdict(list)
    for name, case in CASES.items():
        kind = case.variation or ("card" if case.card != "h200" else "" if case.optimizer == "adamw" else "optimizer")
        found[titles[kind]].append(name)
    return {title: found[title] for title in titles.values()}


def _row(name: str, predicted: dict[str, Any], observed: dict[str, Any]) -> str:
    wanted = (("steady", EXACT[0]), ("first", EXACT[1]), ("steady", EXACT[1]), ("steady", RESERVED))
    cells = [_cell(predicted[step][figure], observed[step][figure]) for step, figure in wanted]
    shown = name.replace(" h200", "")
    title = f"**{shown}**" if misses(predicted, observed) else shown
    return f"| {title} | {' | '.join(cells)} |\n"


def _cell(predicted: int, observed: int) -> str:
    more = (predicted - observed) / MIB
    if predicted == observed:
        return f"{predicted / MIB:,.1f} ="
    return f"{predicted / MIB:,.1f} {more:+,.3f}" if abs(more) < 1 else f"{predicted / MIB:,.1f} {more:+,.1f}"


def _published(one: dict[str, Any]) -> str:
    link = f"[{one['source']}]({one['url']})"
    digits = one.get("digits", 2)
    figures = f"{one['measured']:,.{digits}f} {one['unit']} | {one['predicted']:,.{digits}f} {one['unit']}"
    return f"| {one['what']} | {one['settings']} | {figures} | {link} |\n"


def _unknown(predicted: dict[str, Any]) -> Iterator[str]:
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for figures in predicted.values():
        for op, what in figures["unmodelled"].items():
            counts[op, what] += 1
    for (op, what), number in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        yield f"| `{op}` | {what} | {number} |\n"


def main() -> int:
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    same = PAGE.exists() and PAGE.read_text(encoding="utf-8") == page()
    print(
        "the page is that of the stored figures"
        if same
        else f"{PAGE.name} is stale: python -m tests.device.page --write"
    )
    return int(not same)


if __name__ == "__main__":
    sys.exit(main())

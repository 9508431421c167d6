"""What PyTorch's own host code says that steps under plans take: written to expected_plans.json, or compared.

python tests/device/stub/launch.py PYTHON -m tests.device.plan_figures [--write]

The plans are made for the card, dry; then the model runs them on the GPU, and so does its optimiser.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

import memback.bridges.torch as bridge
from tests.bridges.torch_models import GPT, cross_entropy
from tests.device.figures import STEPS as TIMES
from tests.device.figures import in_child, stub_of

EXPECTED = Path(__file__).with_name("expected_plans.json")
BUDGETS = ("85%", "50%")
CARD = "h200"
FIGURES = ("forward_bytes", "allocated_peak_bytes")


def parts() -> tuple[torch.nn.Module, torch.Tensor]:
    """A model and its tokens."""
    torch.manual_seed(0)
    return GPT(4, 256, 4, 1000, 256, 0.1), torch.arange(16 * 256).reshape(16, 256) % 1000


OPTIONS: dict[str, Any] = {"loss": cross_entropy, "autocast": torch.bfloat16, "device": f"cuda:{CARD}"}


def planned(budget: str) -> bridge.TorchPlan:
    """The plan for a budget."""
    module, tokens = parts()
    return bridge.plan(module, tokens, budget=budget, **OPTIONS)


def predicted(plan: bridge.TorchPlan) -> dict[str, int]:
    """What a steady step under a plan is predicted to take, in bytes."""
    module, tokens = parts()
    options = {**OPTIONS, "optimizer": torch.optim.AdamW, "modes": ["full"], "policy": plan}
    device = bridge.profile(module, tokens, dry=True, **options).device
    assert device is not None
    return {name: getattr(device.planned, name) for name in FIGURES}


def run(budget: str) -> dict[str, int]:
    """Train a few steps on the GPU under the plan for a budget, and return the figures of the last one, in bytes."""
    os.environ.update(stub_of(CARD))
    plan = planned(budget)
    module, tokens = parts()
    module, tokens = module.to("cuda"), tokens.to("cuda")
    optimizer = torch.optim.AdamW(module.parameters())
    taken = {}
    with plan.apply(module):
        for _ in range(TIMES):
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            with torch.autocast("cuda", torch.bfloat16):
                loss = cross_entropy(module(tokens))
            forward = torch.cuda.memory_allocated() - before
            loss.backward()
            del loss
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            taken = dict(zip(FIGURES, (forward, torch.cuda.max_memory_allocated()), strict=True))
    return taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write expected_plans.json instead of comparing with it")
    options = parser.parse_args()
    observed = {budget: in_child(partial(run, budget)) for budget in BUDGETS}
    if options.write:
        content = {"torch": torch.__version__, "plans": observed}
        EXPECTED.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return 0
    stored = json.loads(EXPECTED.read_text(encoding="utf-8"))["plans"]
    print("plans:", "as stored" if observed == stored else f"observed {observed}, stored {stored}")
    return int(observed != stored)


if __name__ == "__main__":
    sys.exit(main())

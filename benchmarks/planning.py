"""How long planning takes, and what grouping and rounding cost.

    python benchmarks/planning.py [--rounds N]

Medians over the rounds, in seconds of wall time and of this process's processor. "alike" is a chain of equal stages,
"mixed" one of random sizes in bytes and random costs; budgets are shares of the peak of keeping everything. The chain
of GPT-3's shape has an embedding, 96 equal blocks and a head, with sizes by formula (Korthikanti et al. 2022, arXiv
2205.05198, sequence 2048, one sample, float16), with and without the parameters' gradients.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

from msgspec.structs import replace

from memback.plans import Stage, chain
from memback.plans.chain.table_solver import TableSolver
from memback.plans.simulate import Chain
from memback.units import MIB

SHARES = (0.1, 0.2, 0.5)


def mixed(n: int) -> list[Stage]:
    """Stages of random sizes, the largest of about 64 MiB."""
    r = random.Random(n)
    return [
        Stage(
            r.uniform(0.5, 2),
            r.uniform(1, 4),
            r.randint(1, 16 * MIB),
            saved_bytes=r.randint(0, 64 * MIB),
            forward_workspace=r.randint(0, 16 * MIB),
            backward_workspace=r.randint(0, 16 * MIB),
            parameter_gradient_bytes=r.randint(0, 4 * MIB),
        )
        for _ in range(n)
    ]


def alike(n: int) -> list[Stage]:
    """Equal stages."""
    return [Stage(1, 2, 4 * MIB, saved_bytes=16 * MIB, forward_workspace=MIB, backward_workspace=4 * MIB)] * n


def gpt3() -> list[Stage]:
    """A chain of GPT-3's shape."""
    length, width, heads, vocabulary, layers = 2048, 12288, 96, 50257, 96
    hidden, scores = 2 * length * width, heads * length**2
    product = 2.0 * length * width
    block = Stage(
        12 * width * product + 4.0 * length * length * width,
        24 * width * product + 8.0 * length * length * width,
        hidden,
        saved_bytes=16 * hidden + 5 * scores,
        forward_workspace=2 * scores,
        backward_workspace=4 * scores,
        parameter_gradient_bytes=2 * 12 * width**2,
    )
    embedding = Stage(product / 2, product, hidden, parameter_gradient_bytes=2 * vocabulary * width)
    logits = 2 * length * vocabulary
    head = Stage(vocabulary * product, 2 * vocabulary * product, 4, saved_bytes=logits, backward_workspace=2 * logits)
    return [embedding, *[block] * layers, head]


def timed(action: Callable[[], object], rounds: int) -> str:
    """Median wall and processor time."""
    walls, processors = [], []
    for _ in range(rounds):
        wall, processor = time.perf_counter(), time.process_time()
        action()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    return f"{statistics.median(walls):6.3f} wall {statistics.median(processors):6.3f} processor"


def solving(name: str, stages: list[Stage], rounds: int) -> None:
    """Print how long plans for a few budgets take, and what they are."""
    most = chain.solve(stages, 2**62)
    for share in SHARES:
        budget = int(most.peak_bytes * share)
        took = timed(lambda budget=budget: chain.solve(stages, budget), rounds)  # type: ignore[misc]
        plan = chain.solve(stages, budget)
        print(f"{name:12} {share:4.0%}  {took}  cost x {plan.cost / most.cost:.3f}  {plan.optimality}")


def grouping(n: int) -> None:
    """Print how much costlier the tables for long mixed chains are where the optimum is known."""
    stages = alike(n)
    most = chain.solve(stages, 2**62).peak_bytes
    tabled = TableSolver(Chain(stages), most, True)
    for share in SHARES:
        budget = int(most * share)
        ratio = tabled.solve(budget).cost / chain.solve(stages, budget).cost
        print(f"{n} alike, grouped as if mixed, {share:.0%}: {ratio - 1:.2%} above the optimum")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    for n in (100, 200, 1000):
        solving(f"{n} mixed", mixed(n), rounds)
    solving("1000 alike", alike(1000), rounds)
    grouping(1000)
    stages = gpt3()
    for name, case in (
        ("with", stages),
        ("without", [replace(stage, parameter_gradient_bytes=0) for stage in stages]),
    ):
        took = timed(lambda case=case: chain.frontier(case), rounds)  # type: ignore[misc]
        print(f"frontier of GPT-3's shape {name} parameter gradients: {took}  {len(chain.frontier(case))} points")


if __name__ == "__main__":
    main()

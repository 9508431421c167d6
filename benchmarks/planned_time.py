"""How long a plan really takes against what was predicted of it.

    python benchmarks/planned_time.py [PROFILE ...] [--share S] [--rounds N]

A plan is made for a budget between the least that there is a plan for and full retention's (share 0 to 1). Its extra
time is predicted from the measured time of each call; then steps with the plan and without it take turns.
"""

from __future__ import annotations

import argparse
import statistics

import memback as mb
from memback.plans.model.planning import Planning
from memback.plans.model.timing import measure
from memback.profiling import definition
from memback.profiling.mode import Mode
from memback.profiling.step import Step
from memback.profiling.workload import Workload


def total(step: Step, mode: Mode) -> float:
    """Seconds of one step."""
    seconds = step.time(mode)
    return seconds.forward + seconds.backward + seconds.recompute


def main() -> None:
    """Print a line a profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profiles", nargs="*", default=["deep-mlp", "source-gpt"], metavar="PROFILE")
    parser.add_argument("--share", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    print("profile      predicted extra  measured extra  off by   of a step   measured + predicted step")
    for name in options.profiles:
        work = Workload.build(definition.load(name))
        x, y = work.batch(0)
        step = Step(lambda work=work, x=x, y=y: work.loss(x, y), work.model, work.optimizer)  # type: ignore[misc]
        planning = Planning(step)
        least, most = planning.leanest().budget, planning.everything.budget
        plan = planning.plan(int(least + options.share * (most - least)), "chain")
        timing = measure(step, plan, options.rounds)
        full, planned = [], []
        for _ in range(options.rounds):
            full.append(total(step, Mode("full")))
            planned.append(total(step, Mode("checkpoint", plan)))
        plain = statistics.median(full)
        extra = statistics.median(b - a for a, b in zip(full, planned, strict=True))
        predicted = timing.extra(plan)
        print(
            f"{name:12} {1e3 * predicted:12.1f} ms  {1e3 * extra:11.1f} ms  {predicted / extra - 1:+6.1%}"
            f"   {1e3 * plain:7.1f} ms   {(predicted + plain) / statistics.median(planned) - 1:+.1%}"
        )


if __name__ == "__main__":
    mb.keep_freed_memory()  # or the plan, which takes fewer fresh pages, gains what has nothing to do with it
    main()

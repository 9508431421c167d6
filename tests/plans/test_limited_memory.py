"""Training for real in a process whose address space is limited: full retention does not fit, its plan does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="macOS and Windows do not limit address spaces")

SCRIPT = """
import gc, hashlib, json, resource, sys
import numpy as np, psutil
import memback as mb
from memback.profiling.definition import load
from memback.profiling.guard import check_fits
from memback.profiling.mode import Mode
from memback.profiling.training import Training
from memback.profiling.workload import Workload

name, batch, share, limited = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4] == "limited"
profile = load(name).with_overrides({"data.batch": batch})
SLACK = 16 * 2**20  # for what Python and its libraries still allocate for themselves


def train(policy):
    work = Workload.build(profile)
    training = Training(work, policy)
    losses = [result.loss for result in training.steps(2)]
    digest = hashlib.sha256()
    for name, parameter in sorted(work.model.named_parameters()):
        digest.update(parameter.data.tobytes())
    return [losses, digest.hexdigest()]


def error(action, kind):
    try:
        action()
    except kind as raised:
        return type(raised).__name__, str(raised), getattr(raised, "bytes", None)
    raise SystemExit("it fitted")


if not limited:
    print(json.dumps({"trained": train(None)}))
    raise SystemExit
dry = Workload.build(profile, dry=True)
step = dry.predicted_step()
full = step.predict(Mode("full")).peak.bytes
x, _ = dry.batch(0)
# not by a solver, whose freed memory stays in the process's address space
plan = mb.plan(dry.model, step=step.function, optimizer=dry.optimizer, budget=int(share * full), planner="chain")
result = {"full": full, "plan": plan.peak_bytes, "argument_bytes": dry.argument_bytes}
train_one = load("digits").with_overrides({"train.steps": "1"})
list(Training(Workload.build(train_one)).steps(1))  # whatever is loaded when it is first used
gc.collect()
room = plan.peak_bytes + dry.argument_bytes + SLACK
limit = psutil.Process().memory_info().vms + room
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
guard = lambda: check_fits(step, [Mode("full")], dry.argument_bytes)
result["refused"] = error(guard, mb.MembackError)
result["failed"] = error(lambda: train(None), mb.MembackError)
gc.collect()
result["trained"] = train(plan)
print(json.dumps(result))
"""


def child(*arguments):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(SCRIPT), *arguments]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(("name", "batch", "share"), [("deep-mlp", "2048", "0.4"), ("source-gpt", "32", "0.5")])
def test_what_does_not_fit_in_full_trains_under_its_plan_to_the_same_bits(name, batch, share):
    limited = child(name, batch, share, "limited")
    kind, message, _ = limited["refused"]
    assert kind == "MembackError"
    assert "mode full" in message
    assert "limit of the process's address space" in message
    kind, message, size = limited["failed"]
    assert kind == "OutOfMemoryError"
    assert "found no more memory: it asked for" in message
    assert f"{size:,} B" in message
    assert "called at" in message
    assert limited["plan"] < limited["full"]
    assert limited["trained"] == child(name, batch, share, "unlimited")["trained"]

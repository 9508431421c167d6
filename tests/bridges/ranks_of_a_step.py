"""What ranks do in the tests of several: run as ``python ranks_of_a_step.py RANKS FOLDER``, which forks them."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.checkpoint import checkpoint

import memback.bridges.torch as bridge
from memback.bridges.torch.recording.sharding import wrap
from memback.bridges.torch.recording.step import Step
from memback.bridges.torch.recording.training import Training, found_in, state_bytes, watched

BATCH = 6
MODES = ("retain-all", "full", "inference")


class Block(nn.Module):
    """Lengths that no number of ranks divides, and a part that is computed again in backward."""

    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(19, 37), nn.LayerNorm(37), nn.Linear(37, 19, bias=False)

    def forward(self, x):
        hidden = nn.functional.gelu(self.norm(self.one(x)))
        return x + checkpoint(self.two, hidden, use_reentrant=False)


class Net(nn.Module):
    def __init__(self, frozen=False, counted=False):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.count = nn.BatchNorm1d(19) if counted else nn.Identity()
        self.head = nn.Linear(19, 5)
        self.blocks[0].one.requires_grad_(not frozen)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(self.count(x))


BF16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
VARIANTS = {
    "ddp": ("ddp", Net, {}),
    "ddp-views": ("ddp", Net, {"gradient_as_bucket_view": True}),
    "ddp-small-buckets": ("ddp", partial(Net, frozen=True), {"bucket_cap_mb": 0.004}),
    "ddp-buffers": ("ddp", partial(Net, counted=True), {}),
    "fsdp2": ("fsdp2", Net, {}),
    "fsdp2-kept": ("fsdp2", Net, {"reshard_after_forward": False}),
    "fsdp2-halves": ("fsdp2", Net, {"reshard_after_forward": 2}),
    "fsdp2-mixed": ("fsdp2", partial(Net, frozen=True), {"mp_policy": BF16}),
}

VARIANTS_ON = {2: tuple(name for name in VARIANTS if name != "fsdp2-halves"), 4: ("ddp", "fsdp2", "fsdp2-halves")}


def inputs(rank, length=BATCH):
    return torch.randn(length, 19, generator=torch.Generator().manual_seed(rank))


def loss(y):
    return y.float().square().mean()


def gradients(module):
    """One step's, whole; parameters have none afterwards."""
    found = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            grad = parameter.grad.full_tensor() if hasattr(parameter.grad, "full_tensor") else parameter.grad
            found[name.removeprefix("module.")] = grad.clone()
    module.zero_grad()
    return found


def facts(module, x):
    """What can be known without memback: gradients, and what PyTorch itself says of shards and buckets."""
    for _ in range(2):  # after which DDP has rebuilt its buckets
        module.zero_grad()
        loss(module(x)).backward()
    told = {"shapes": [], "buckets": 0, "gradients": gradients(module)}
    if isinstance(module, nn.parallel.DistributedDataParallel):
        data = module._get_ddp_logging_data()
        told["buckets"] = sum(map(int, (data.get("rebuilt_bucket_sizes") or data["bucket_sizes"]).split(",")))
    else:
        told["shapes"] = [tuple(parameter.shape) for parameter in module.parameters()]
    return told


def keeps_gradients(rank, name):
    """Whether gradients that are there before a profile are the same objects and bits afterwards."""
    strategy, make, options = VARIANTS[name]
    module = wrap(make(), strategy, **options)
    loss(module(inputs(rank))).backward()
    before = [parameter.grad for parameter in module.parameters()]
    copies = [grad.clone() for grad in before]
    bridge.profile(module, 2 * inputs(rank), loss=loss, rounds=0, modes=("full",))
    after = [parameter.grad for parameter in module.parameters()]
    same = all(old is new for old, new in zip(before, after, strict=True))
    return same and all(torch.equal(*pair) for pair in zip(copies, after, strict=True))


TRAINED = {"update": {}, "clipped": {"clip": 1.0}, "accumulated": {"accumulate": 2}}


def trained(rank, name, how):
    """A step with AdamW's update: its peak and the optimiser's bytes, as predicted and as they are."""
    strategy, make, options = VARIANTS[name]
    module, x = wrap(make(), strategy, **options), inputs(rank)
    update = {"optimizer": torch.optim.AdamW, **TRAINED[how]}
    report = bridge.profile(module, x, loss=loss, dry=True, modes=("full",), **update)
    optimizer = torch.optim.AdamW(module.parameters())
    step = Step.of(module, (x,), None, loss, None)
    train = Training(**update).of(step, optimizer)
    for _ in range(3):
        train()
    tracker = watched(found_in(step, optimizer), train, None, strategy)
    run = report.runs[0]
    predicted = [run.predicted_peak_bytes, run.peak.phase, run.left_bytes, report.arguments.optimizer_bytes]
    return predicted, [tracker.peak.bytes, tracker.peak.interval.phase, 0, state_bytes(optimizer)]


def rank_of_job(rank, ranks, folder):
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
    for name in VARIANTS_ON[ranks]:
        strategy, make, options = VARIANTS[name]
        module = wrap(make(), strategy, **options)
        told = facts(module, inputs(rank))
        modes = MODES if name == "fsdp2" else MODES[1:]
        report = bridge.profile(module, inputs(rank), loss=loss, rounds=0, modes=modes)
        report.save(folder / f"{name}.rank{rank}.json")
        torch.save(told, folder / f"{name}.rank{rank}.pt")
    if ranks == 2:
        of = [(name, how, trained(rank, name, how)) for name in ("ddp", "ddp-views", "fsdp2") for how in TRAINED]
        (folder / f"trained.rank{rank}.json").write_text(json.dumps(of))
    module = wrap(Net(), "ddp")
    uneven = bridge.profile(module, inputs(rank, BATCH * (1 + rank)), loss=loss, rounds=0, modes=("full",))
    uneven.save(folder / f"uneven.rank{rank}.json")
    kept = [keeps_gradients(rank, name) for name in ("ddp-views", "fsdp2")]
    (folder / f"kept.rank{rank}.json").write_text(json.dumps(kept))
    left = [name for name, parameter in module.named_parameters() if parameter.grad is not None]
    (folder / f"left.rank{rank}.json").write_text(json.dumps(left))
    dist.destroy_process_group()


# -- what torchrun starts


def net():
    return Net()


class Dying(Net):
    """Rank 1 dies in the third real forward pass."""

    def __init__(self, die):
        super().__init__()
        self.die, self.calls = die, 0

    def forward(self, x):
        if type(x) is torch.Tensor and os.environ.get("RANK") == "1":
            self.calls += 1
            if self.calls == 3:
                self.die()
        return super().forward(x)


def killed():
    return Dying(lambda: os.kill(os.getpid(), signal.SIGKILL))


def failing():
    def fail():
        raise ValueError("rank 1 has had enough")

    return Dying(fail)


def main(ranks, folder):
    """Fork, as importing PyTorch takes longer than all the rest, before any thread is there."""
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                rank_of_job(rank, ranks, folder)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), Path(sys.argv[2])))

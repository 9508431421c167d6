"""Random requests, of PyTorch's own caching allocator and of its replay: places, figures and messages must be the same.

python tests/device/stub/launch.py PYTHON -m tests.device.fuzz [--runs NUMBER] [--seed NUMBER]
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from typing import Any

import torch

from memback.bridges.torch.device.allocator import CachingAllocator, CudaOutOfMemory
from memback.bridges.torch.device.allocator_conf import parse_conf
from memback.units import KIB, MIB
from tests.device.figures import in_child
from tests.device.traces import SETTINGS

REQUESTS = 300
MORE_SETTINGS = (
    "expandable_segments:True,large_segment_size_mb:32,roundup_power2_divisions:8",
    "expandable_segments:True,garbage_collection_threshold:0.4,per_process_memory_fraction:0.8",
    "max_split_size_mb:20,garbage_collection_threshold:0.4,per_process_memory_fraction:0.8",
)


def chosen(seed: int) -> tuple[str, int]:
    """Return the setting and the device's memory of a run."""
    choice = random.Random(seed)
    return choice.choice((*SETTINGS, *MORE_SETTINGS)), choice.choice((100, 300, 1000, 100_000)) * MIB


def run(seed: int) -> dict[str, Any]:
    """Carry out one run of random requests with both, and say where they part."""
    conf, memory = chosen(seed)
    os.environ["STUB_BYTES"] = str(memory)
    if conf:
        torch._C._accelerator_setAllocatorSettings(conf)
    torch.cuda.init()
    replay, choice = CachingAllocator(parse_conf(conf), memory), random.Random(-seed - 1)
    in_use: list[tuple[int, Any]] = []
    base = None
    for number in range(REQUESTS):
        if in_use and choice.random() < 0.45:
            address, block = in_use.pop(choice.randrange(len(in_use)))
            torch.cuda.caching_allocator_delete(address)
            replay.free(block)
        elif choice.random() < 0.02:
            torch.cuda.empty_cache()
            replay.empty_cache()
        else:
            size = choice.choice(
                (choice.randrange(1, 8 * KIB), choice.randrange(1, 3 * MIB), choice.randrange(1, 60 * MIB))
            )
            address, block, message, own = (*both(replay, size),)
            if message != own:
                return {"at": number, "size": size, "theirs": message, "ours": own}
            if block is not None:
                base = base or (address, block.start)
                in_use.append((address, block))
                if address - base[0] != block.start - base[1]:
                    return {"at": number, "size": size, "theirs": address - base[0], "ours": block.start - base[1]}
        theirs = (torch.cuda.memory_allocated(), torch.cuda.memory_reserved())
        theirs += (torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved())
        ours = (replay.allocated_bytes, replay.reserved_bytes, replay.allocated_peak_bytes, replay.reserved_peak_bytes)
        if theirs != ours:
            return {"at": number, "theirs": theirs, "ours": ours}
    return {}


def both(replay: CachingAllocator, size: int) -> tuple[int, Any, str, str]:
    """Ask both for ``size`` bytes; return PyTorch's address, the replay's block, and each one's message."""
    address, block, theirs, ours = 0, None, "", ""
    try:
        address = torch.cuda.caching_allocator_alloc(size)
    except torch.OutOfMemoryError as error:
        theirs = str(error)
    try:
        block = replay.allocate(size)
    except CudaOutOfMemory as error:
        ours = str(error)
    return address, block, theirs, ours


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--setting", help="only runs of this one")
    options = parser.parse_args()
    wrong = 0
    for seed in range(options.seed, options.seed + options.runs):
        if options.setting and options.setting != chosen(seed)[0]:
            continue
        difference = in_child(lambda seed=seed: run(seed))
        if difference:
            print(f"seed {seed}, {chosen(seed)}: {difference}", flush=True)
            wrong += 1
    print(f"{options.runs} runs of {REQUESTS} random requests, {wrong} in which the replay did something else")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())

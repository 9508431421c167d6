"""What PyTorch's own caching allocator did in a few of the cases: written to traces/, a file a case.

    python tests/device/stub/launch.py PYTHON -m tests.device.traces [--write] [CASE ...]

A file has the requests and releases of the case's first steps in their order, and for each of some settings of
PYTORCH_CUDA_ALLOC_CONF and sizes of the device: where each request was put, what torch.cuda.memory_stats said of each
step, and the segments at the end.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import itertools
import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from memback.bridges.torch.device.cards import card
from tests.device.cases import CASES
from tests.device.digests import digest
from tests.device.figures import import_libraries, in_child, stub_of, train

TRACES = Path(__file__).with_name("traces")
STEPS = 2
SETTINGS = (
    "",
    "expandable_segments:True",
    "max_split_size_mb:20",
    "max_split_size_mb:32,max_non_split_rounding_mb:64",
    "roundup_power2_divisions:4",
    "roundup_power2_divisions:[1:2,4:8,16:1,>:16]",
    "large_segment_size_mb:64",
    "garbage_collection_threshold:0.5,per_process_memory_fraction:0.9",
    "garbage_collection_threshold:0.6",
    "expandable_segments:True,max_split_size_mb:20",
)
ON_LITTLE_MEMORY = (*SETTINGS[:3], *SETTINGS[7:], SETTINGS[7].replace("0.9", "1.0"))
RECORDED = {
    "mlp fp32 adamw h200": (None, 250_000_000, 200_000_000),
    "gpt2-4 amp adamw h200": (None, 255_000_000, 200_000_000),
    "resnet50 fp32 sgd h200": (None, 2_965_000_000, 2_000_000_000),
}
"""The cases, and the sizes of the devices that they run on: None, the card's own; some suffice only just, or not."""


def run(name: str, conf: str, memory_bytes: int | None) -> dict[str, Any]:
    """Train a case a few steps, and return its requests with what the allocator made of them."""
    os.environ.update(stub_of(CASES[name].card))
    if memory_bytes:
        os.environ["STUB_BYTES"] = str(memory_bytes)
    if conf:
        torch._C._accelerator_setAllocatorSettings(conf)
    torch.cuda.init()
    torch.cuda.memory._record_memory_history("all", context=None, stacks="python", max_entries=10_000_000)
    marks, peaks, error = [], [], None
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        step = CASES[name].build().to("cuda")
        optimizer = step.optimizer(step.module.parameters())
        for _ in range(STEPS):
            marks.append(len(requests()))
            figures = train(step, optimizer)
            peaks.append([figures["allocated_peak_bytes"], figures["reserved_peak_bytes"]])
    except torch.OutOfMemoryError as raised:
        error = str(raised)
    return {
        "conf": conf,
        "memory_bytes": memory_bytes,
        "marks": marks,
        "peaks": peaks,
        "error": error,
    } | what_happened()


def requests() -> list[dict[str, Any]]:
    """Return what was asked of the allocator and given back, until it had no memory left."""
    found = []
    for entry in torch.cuda.memory._snapshot()["device_traces"][0]:
        if entry["action"] == "oom":
            break
        if entry["action"] in ("alloc", "free_completed"):
            found.append(entry)
    return found


def what_happened() -> dict[str, Any]:
    """Return the requests, in bytes, and releases, negative: how many requests ago it was made. And what became of it.

    Releases that follow each other are put in order, because autocast's cache, for one, has none.
    """
    events: list[int] = []
    places: list[int] = []
    made: dict[int, int] = {}
    for released, entries in itertools.groupby(requests(), lambda entry: entry["action"] != "alloc"):
        if released:
            events += sorted(made.pop(entry["addr"]) - len(places) for entry in entries)
            continue
        for entry in entries:
            made[entry["addr"]] = len(places)
            events.append(entry["size"])
            places.append(entry["addr"])
    snapshot = torch.cuda.memory._snapshot()
    segments = [
        [segment["total_size"], [(block["size"], block["state"] == "active_allocated") for block in segment["blocks"]]]
        for segment in sorted(snapshot["segments"], key=lambda segment: segment["address"])
    ]
    found = {"events": events, "places": digest([place - places[0] for place in places])}
    failed = [entry["size"] for entry in snapshot["device_traces"][0] if entry["action"] == "oom"]
    return found | ({"failed": failed[0]} if failed else {"segments": digest(segments)})


def record(name: str, devices: tuple[int | None, ...]) -> dict[str, Any]:
    """Run a case under every setting on the card's own memory, and under a few on less."""
    runs = [(conf, None) for conf in SETTINGS] + [(conf, size) for conf in ON_LITTLE_MEMORY for size in devices if size]
    events: list[int] = []
    results = []
    for conf, memory_bytes in runs:
        result = in_child(functools.partial(run, name, conf, memory_bytes))
        if "events" not in result:
            sys.exit(f"{name} under {conf!r}: {result['error']}")
        mine = result.pop("events")
        events = events or mine
        if mine != events[: len(mine)]:
            sys.exit(f"{name} under {conf!r}: its requests are not those of the plain setting")
        results.append(result | {"event_count": len(mine)})
    capacity = card(CASES[name].card).memory_bytes
    return {"case": name, "torch": torch.__version__, "capacity": capacity, "events": events, "runs": results}


def path_of(name: str) -> Path:
    return TRACES / f"{name.replace(' ', '-')}.json.gz"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--write", action="store_true", help="write the files instead of comparing with them")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    import_libraries()
    wrong = 0
    for name in options.cases or RECORDED:
        content, path = record(name, RECORDED[name]), path_of(name)
        if options.write:
            TRACES.mkdir(exist_ok=True)
            path.write_bytes(gzip.compress(json.dumps(content).encode(), mtime=0))
        elif content != json.loads(gzip.decompress(path.read_bytes())):
            print(f"{name}: the allocator did something else than {path.name} says")
            wrong += 1
    print(f"{len(options.cases or RECORDED)} traces, {wrong} of them different")
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())

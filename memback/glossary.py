"""What every number means: the one source of the words that tables, reports and the README use.

Texts may hold Markdown's ``*emphasis*`` and code in backquotes, and no other markup.
"""

from __future__ import annotations

from typing import Final

__all__ = ["MODES", "TERMS"]

TERMS: Final = {
    "buffer": "one root allocation. A view, slice, reshape or transpose is the buffer that it looks into: it costs"
    " nothing, and keeps the whole buffer alive.",
    "argument": "a parameter, a buffer of the model (running statistics) or an input: memory that is there before the"
    " step. Never counted as an activation.",
    "saved activation": "a buffer, other than an argument, that the tape keeps from forward for backward.",
    "saved bytes": "bytes of the distinct saved buffers at the end of the forward pass. One that two ops save is"
    " counted once, charged to the op that made it and shown as *shared* at the other; the rows of a table add up to"
    " the total exactly.",
    "gradient": "dL/d(something). A parameter's lives on after the step, an activation's until it is used.",
    "workspace": "every other temporary inside an op's forward or backward.",
    "peak": "the largest number of live bytes at any moment of the step, above the arguments: saved + gradients +"
    " recomputed + outputs + workspace; where several ranks train a model, also gathered + buckets.",
    "sharded parameters": "one rank's share of the parameters under FSDP2: its shards, with their padding."
    " Arguments, listed separately from whole parameters.",
    "gathered": "whole parameters, assembled from the shards of all ranks while they are used, and the buffers for"
    " that. Part of the peak.",
    "buckets": "flat buffers in which ranks reduce gradients or broadcast the model's buffers. DDP's *gradient buckets*"
    " are arguments, there before the step; those that the step makes are part of the peak.",
    "predicted": "from a dry run: the same code on arrays that hold no memory.",
    "measured": "`tracemalloc`'s peak in a real run, minus Python's own small objects, which have a column of their"
    " own: *bookkeeping*. For a PyTorch module: the largest sum of its live storages in a real run.",
    "allocator": "the most that PyTorch's own allocator gave out, scratch memory of kernels included. Shown, never"
    " mixed with the others.",
    "training step": "forward, backward and the optimiser's update. The *first* step makes the optimiser's state and"
    " the workspaces of libraries; a *steady* step finds them there.",
    "allocated": "on a device: what PyTorch's allocator has given out, each block rounded as it rounds them, parameters"
    " and libraries' workspaces included (`torch.cuda.max_memory_allocated`).",
    "reserved": "on a device: what this allocator has taken from it (`torch.cuda.max_memory_reserved`). What is"
    " reserved and not allocated is *fragmentation*.",
    "context": "what the driver and libraries take of a device beside the allocator. Never predicted to the byte: an"
    " estimate.",
    "RSS": "the operating system's view of the process, with allocator and interpreter overhead. Shown, never mixed"
    " with the others.",
}
"""The glossary, in the README's order."""

MODES: Final = {
    "retain-all": "keeps every variable of the forward pass, as the textbook says",
    "full": "keeps just what each op's backward needs",
    "checkpoint": "drops some of it and recomputes it",
    "inference": "keeps nothing, every value dies at its last use",
}
"""The ways to run a step, by the name of the mode."""

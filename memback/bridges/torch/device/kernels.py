"""Every family of ops, so that their tables are filled."""

from __future__ import annotations

from memback.bridges.torch.device import (  # noqa: F401
    attention,
    attention_memory,
    convolution,
    copies,
    dropout,
    foreach,
    indexing,
    linear,
    normalisation,
    recurrent,
    reductions,
    scaling,
    temporaries,
    unmodelled,
)

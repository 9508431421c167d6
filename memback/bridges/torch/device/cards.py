"""Graphics cards: compute capability, memory, multiprocessors.

``memory_bytes`` is what ``cudaMemGetInfo`` gives as total, which PyTorch's messages call the total capacity: less than
what is sold, and by some MiB other with another driver, ECC setting or board. Figures in whole bytes are those that
``deviceQuery`` of NVIDIA's CUDA samples printed with the driver named; those "to the MiB" are of
``torch.cuda.get_device_properties``. Multiprocessors are NVIDIA's data sheets', which both show likewise.
"""

from __future__ import annotations

from dataclasses import dataclass

from memback.errors import UsageError, shorten
from memback.units import MIB

__all__ = ["CARDS", "CONTEXT_BYTES", "Card", "card"]

CONTEXT_BYTES = 512 * MIB
"""An estimate of what the driver and libraries hold of a card beside PyTorch's allocator, for a process on one card.

Out-of-memory messages that people published say so: what the process had in use less what PyTorch had reserved was
0.49 GiB on an A100, 0.50 on an L40, 0.48 on an RTX 4090, 0.58 on an RTX 5090; on a T4 it was 0.10, and 1.43 on an A100
with NCCL.
"""


@dataclass(frozen=True)
class Card:
    """A card: its name in ``--device cuda:NAME``, the one that its driver gives, and what PyTorch asks of it."""

    name: str
    title: str
    capability: tuple[int, int]
    memory_bytes: int
    multiprocessors: int
    source: str

    @property
    def threads(self) -> int:
        """Threads that a multiprocessor has room for, by capability: CUDA's programming guide, compute capabilities."""
        return {(7, 5): 1024, (8, 6): 1536, (8, 9): 1536, (12, 0): 1536}.get(self.capability, 2048)


_TABLE = (
    Card("v100-16gb", "Tesla V100-SXM2-16GB", (7, 0), 16_928_342_016, 80, "deviceQuery, driver for CUDA 12.4"),
    Card("v100-32gb", "Tesla V100-SXM2-32GB", (7, 0), 34_072_559_616, 80, "deviceQuery, driver for CUDA 12.9"),
    Card("t4", "Tesla T4", (7, 5), 15_835_660_288, 40, "deviceQuery, driver for CUDA 12.2"),
    Card("rtx2080ti", "GeForce RTX 2080 Ti", (7, 5), 11_519_983_616, 68, "deviceQuery, driver for CUDA 10.1"),
    Card("a100-40gb", "NVIDIA A100-PCIE-40GB", (8, 0), 42_405_855_232, 108, "deviceQuery, driver for CUDA 13.0"),
    Card("a100-80gb", "NVIDIA A100-SXM4-80GB", (8, 0), 85_100_068_864, 108, "deviceQuery, driver for CUDA 12.5"),
    Card("a10g", "NVIDIA A10G", (8, 6), 22_587 * MIB, 80, "PyTorch 2.15.0.dev, to the MiB"),
    Card("a40", "NVIDIA A40", (8, 6), 47_608_692_736, 84, "deviceQuery, driver for CUDA 12.4"),
    Card("a6000", "NVIDIA RTX A6000", (8, 6), 51_160_023_040, 84, "deviceQuery, driver for CUDA 12.7"),
    Card("rtx3090", "NVIDIA GeForce RTX 3090", (8, 6), 25_414_860_800, 82, "deviceQuery, driver for CUDA 12.1"),
    Card("l4", "NVIDIA L4", (8, 9), 23_583_784_960, 58, "deviceQuery, driver for CUDA 12.2"),
    Card("l40s", "NVIDIA L40S", (8, 9), 47_576_711_168, 142, "deviceQuery, driver for CUDA 12.4"),
    Card("rtx4090", "NVIDIA GeForce RTX 4090", (8, 9), 25_250_627_584, 128, "deviceQuery, driver for CUDA 13.0"),
    Card("h100", "NVIDIA H100 80GB HBM3", (9, 0), 85_028_896_768, 132, "deviceQuery, driver for CUDA 12.8"),
    Card("h200", "NVIDIA H200", (9, 0), 150_121_545_728, 132, "get_device_properties, in bytes"),
    Card("b200", "NVIDIA B200", (10, 0), 182_642 * MIB, 148, "get_device_properties, to the MiB"),
    Card("rtx5090", "NVIDIA GeForce RTX 5090", (12, 0), 33_660_534_784, 170, "deviceQuery, driver for CUDA 13.0"),
)

CARDS: dict[str, Card] = {card.name: card for card in _TABLE}
"""The cards by name, the oldest architecture first."""

_SMALLER = {"v100": "v100-16gb", "a100": "a100-40gb"}
"""Names that stand for the smaller of two cards, because what fits it fits the other."""
_UNNAMED = "h200"


def card(name: str) -> Card:
    """Return the card that ``cuda:h100`` or ``h100`` names, in upper or lower case; ``cuda`` alone is an H200.

    Raises:
        UsageError: there is no card of this name.
    """
    short = name.strip().lower()
    short = _UNNAMED if short == "cuda" else short.removeprefix("cuda:")
    short = _SMALLER.get(short, short)
    if short not in CARDS:
        known = ", ".join(CARDS)
        raise UsageError(f"card {shorten(repr(name))} is not known; write cuda:NAME with one of {known}")
    return CARDS[short]

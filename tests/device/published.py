"""Figures that others have published, beside what is predicted for their settings: written to published.json.

    python -m tests.device.published

runs on any build of PyTorch, with the libraries of requirements.txt, once predicted.json is written.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import memback.bridges.torch as bridge
from memback.bridges.torch.device.recurrent import reserve_bytes
from memback.units import MIB
from tests.device.predictions import PREDICTED

PUBLISHED = Path(__file__).with_name("published.json")
GB = 10**9

VIT = {
    "source": "S. Raschka, Optimizing Memory Usage for Training LLMs and Vision Transformers in PyTorch",
    "url": "https://sebastianraschka.com/blog/2023/pytorch-memory-optimization.html",
    "unit": "GB",
}
LORA = {
    "source": "peft, issue 2196",
    "url": "https://github.com/huggingface/peft/issues/2196",
    "unit": "MiB",
}
CUDNN = {
    "source": "PyTorch, issue 2895",
    "url": "https://github.com/pytorch/pytorch/issues/2895",
    "unit": "B",
    "digits": 0,
}


def ladder() -> list[dict[str, Any]]:
    """Reserved memory of a vision transformer, whose predictions are those of cases."""
    stored = json.loads(PREDICTED.read_text(encoding="utf-8"))
    measured = {
        "vit-l16 fp32": (26.79, "float32, 64 images"),
        "vit-l16 amp": (18.21, "autocast, 64 images; float16 there, bfloat16 here"),
        "vit-l16 bf16": (13.82, "bfloat16, 64 images"),
        "vit-l16-of-16 bf16": (5.69, "bfloat16, 16 images"),
    }
    rows = []
    for case, (figure, settings) in measured.items():
        predicted = stored[f"{case} adam zeroed-late h200"]["steady"]["reserved_peak_bytes"] / GB
        what = {"what": "ViT-L/16 of torchvision, Adam: reserved", "settings": settings}
        rows.append(what | {"measured": figure, "predicted": round(predicted, 2)} | VIT)
    return rows


def adapters() -> list[dict[str, Any]]:
    """A ResNet-50 with and without LoRA on a CPU, by PyTorch's own memory tracker."""
    import peft
    import torchvision

    def resnet() -> Any:
        return torchvision.models.resnet50(num_classes=1)

    model = resnet()
    names = [name for name, part in model.named_modules() if isinstance(part, torch.nn.Conv2d)]
    config = peft.LoraConfig(r=4, target_modules=names, lora_dropout=0.1)
    images = torch.empty(16, 3, 224, 224, device="meta")
    settings = "16 images, one class, on a CPU"
    full = bridge.profile(model.to("meta"), images, modes=["full"])
    lora = bridge.profile(peft.get_peft_model(resnet(), config).to("meta"), images, modes=["full"])
    parameters = full.arguments.parameter_bytes
    last = 16 * 2048 * 4
    found = {
        "ResNet-50: parameters": (89.68, parameters, settings),
        "ResNet-50: gradients": (89.68, full.runs[0].gradient_bytes, settings),
        "ResNet-50: optimiser (Adam's two moments)": (179.37, 2 * parameters, settings),
        "ResNet-50: activations": (
            1310.95,
            saved(full) - last,
            f"{settings}; at the peak the last layer's input is gone",
        ),
        "ResNet-50 with LoRA: activations": (
            2618.32,
            saved(lora),
            f"{settings}; r = 4 on all convolutions, dropout 0.1",
        ),
    }
    return [
        {"what": what, "settings": how, "measured": measured, "predicted": round(size / MIB, 2)} | LORA
        for what, (measured, size, how) in found.items()
    ]


def saved(report: Any) -> int:
    """What is counted as activations: what is saved, and the input."""
    return int(report.runs[0].saved_bytes + report.arguments.input_bytes)


def reserves() -> list[dict[str, Any]]:
    """What cuDNN keeps of recurrent layers for backward, as PyTorch's allocator was asked for it."""
    settings = (
        "4 layers of 320 units, float32, cuDNN of 2017 on a Tesla P100; how many numbers are kept, and over how many"
        " steps and sequences (25,000), is read off these two figures"
    )
    return [
        {
            "what": f"nn.{kind}: what cuDNN keeps for backward",
            "settings": settings,
            "measured": measured,
            "predicted": reserve_bytes(kind.lower(), 25_000, 320, 4, 1, 4),
        }
        | CUDNN
        for kind, measured in (("LSTM", 736_000_000), ("GRU", 864_000_000))
    ]


def main() -> None:
    warnings.filterwarnings("ignore")
    makers: tuple[Callable[[], list[dict[str, Any]]], ...] = (ladder, adapters, reserves)
    rows = [row for make in makers for row in make()]
    PUBLISHED.write_text("[\n" + ",\n".join(f"  {json.dumps(row)}" for row in rows) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""LoRA by peft: low-rank adapters that are trained in the place of a module's own parameters."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch

from memback.bridges.torch.recording.fake import fake_mode, is_dry
from memback.bridges.torch.recording.paths import described
from memback.errors import UsageError, shorten
from memback.extras import how_to_install

__all__ = ["Lora"]

_EXAMPLE = "write it as r=16,target=q_proj,v_proj; alpha and dropout may be given, too"


@dataclass(frozen=True)
class Lora:
    """Adapters of rank ``r`` at the submodules named ``target``: by default those that peft has for the model."""

    r: int = 8
    alpha: int = 8
    dropout: float = 0.0
    target: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Lora:
        """Read ``r=16,alpha=32,dropout=0.05,target=q_proj,v_proj``.

        Raises:
            UsageError: it is no such thing.
        """
        found: dict[str, list[str]] = {}
        name = ""
        for part in text.split(","):
            head, equals, value = part.partition("=")
            if equals:
                name = head.strip()
            if name not in ("r", "alpha", "dropout", "target") or (equals and name in found):
                raise UsageError(f"--lora {shorten(repr(text))} is not known at {shorten(repr(part))}: {_EXAMPLE}")
            found.setdefault(name, []).append((value if equals else part).strip())
        try:
            numbers = {key: _number(key, found[key]) for key in found if key != "target"}
            made = cls(
                **{"alpha": numbers.get("r", cls.r), **numbers}, target=tuple(filter(None, found.get("target", ())))
            )
        except ValueError:
            made = None
        if made is None or made.r < 1 or made.alpha < 1 or not 0 <= made.dropout < 1:
            raise UsageError(f"--lora {shorten(repr(text))}: r and alpha are whole numbers from 1 on: {_EXAMPLE}")
        return made

    def __str__(self) -> str:
        dropout = f",dropout={self.dropout}" if self.dropout else ""
        target = f",target={','.join(self.target)}" if self.target else ""
        return f"r={self.r},alpha={self.alpha}{dropout}{target}"

    def on(self, module: torch.nn.Module) -> torch.nn.Module:
        """The module with its adapters, whose own parameters are frozen.

        Raises:
            UsageError: peft is not installed, or the module has no such submodules.
        """
        try:
            import peft
        except ImportError as error:
            raise UsageError(f"--lora needs peft ({error}): {how_to_install('peft')}") from error
        target: Any = list(self.target) or None
        config = peft.LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=target[0] if target == ["all-linear"] else target,
        )
        meta = any(parameter.is_meta for parameter in module.parameters())
        where: Any = torch.device("meta") if meta else fake_mode(module) if is_dry(module) else torch.device("cpu")
        try:
            with warnings.catch_warnings(), where:
                warnings.filterwarnings("ignore", "fan_in_fan_out is set")  # it is set right, then
                warnings.simplefilter("ignore", FutureWarning)  # of transformers, about what peft calls
                return peft.get_peft_model(module, config)
        except ValueError as error:
            known = sorted({name.rpartition(".")[2] for name, one in module.named_modules() if hasattr(one, "weight")})
            raise UsageError(f"--lora: {described(error)}. Submodules with weights are {', '.join(known)}") from error


def _number(name: str, texts: list[str]) -> Any:
    if len(texts) != 1:
        raise ValueError(name)
    return float(texts[0]) if name == "dropout" else int(texts[0])

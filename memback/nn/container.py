"""Modules that hold modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from memback.nn.module import Module
from memback.nn.policy import PlanLike, Policy, run_chain

__all__ = ["ModuleList", "Sequential"]


class _NumberedModules(Module):
    """Children by number."""

    def __init__(self, modules: Iterable[Module]) -> None:
        super().__init__()
        for i, module in enumerate(modules):
            self.add_module(str(i), module)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    def __getitem__(self, index: int) -> Module:
        return list(self._modules.values())[index]

    def append(self, module: Module) -> None:
        """Add a child at the end."""
        self.add_module(str(len(self)), module)


class Sequential(_NumberedModules):
    """Layers that run one after the other.

    Args:
        *layers: the modules.
        checkpoint: which segments to recompute in backward instead of keeping them: ``"none"``, ``"every:k"``,
            ``"sqrt"``, ``"all"``, ``"selective"``; or a plan that :func:`memback.plan` made for such layers.

    Raises:
        UsageError: an unknown policy, or a plan for other layers.
    """

    is_chain = True
    renamed = {"x": "input"}

    def __init__(self, *layers: Module, checkpoint: str | Policy | PlanLike = "none") -> None:
        super().__init__(layers)
        planned = not isinstance(checkpoint, (str, Policy))
        self.plan: PlanLike | None = checkpoint if planned else None  # type: ignore[assignment]
        self.policy = Policy.parse("none" if planned else checkpoint)  # type: ignore[arg-type]
        if self.plan is not None:
            self.plan.check(self)

    def forward(self, input: Any) -> Any:
        """The last layer's output."""
        if self.plan is not None:
            return self.plan.run(self._chain, input)
        if self.policy.length is not None:
            return self._chain(input)
        for layer in self._modules.values():  # run_chain, without its calls in between
            input = layer(*input) if isinstance(input, tuple) else layer(input)
        return input[0] if isinstance(input, tuple) and len(input) == 1 else input

    def _chain(self, x: Any) -> Any:
        return run_chain(list(self), x, self.policy)


class ModuleList(_NumberedModules):
    """Modules in a list; the module that holds it decides how to call them."""

    is_collection = True

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__(modules)

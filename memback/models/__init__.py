"""Whole networks, each with its loss. Imported one by one, when they are asked for.

To add a model, write a file with a class that has ``forward(x)``, ``loss(x, y)`` and, where it makes sense,
``correct(x, y)``, and name it below. Where its loss is a sum over the samples and not their mean, it says so with
``reduction = "sum"``.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping
from importlib import import_module
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from memback.errors import UsageError

if TYPE_CHECKING:
    from memback.models.gpt import GPT
    from memback.models.lstm import LSTMModel
    from memback.models.mlp import MLP
    from memback.models.notes_network import NotesNetwork
    from memback.models.resnet import ResNet
    from memback.models.unet import UNet
    from memback.models.vit import ViT

__all__ = ["GPT", "MLP", "REGISTRY", "LSTMModel", "NotesNetwork", "ResNet", "UNet", "ViT", "build"]

_CLASSES = {
    "notes_network": "NotesNetwork",
    "mlp": "MLP",
    "gpt": "GPT",
    "resnet": "ResNet",
    "unet": "UNet",
    "lstm": "LSTMModel",
    "vit": "ViT",
}
"""By the name that profiles use, which is also the module's: the class."""


class _Registry(UserDict[str, Any]):
    """Models by name, imported when they are looked up."""

    def __getitem__(self, name: str) -> Any:
        return getattr(import_module(f"memback.models.{name}"), self.data[name])


REGISTRY: Mapping[str, Any] = _Registry(_CLASSES)
"""Every model by name: its class, whose arguments are a profile's ``[model]`` keys."""


def build(name: str, **arguments: Any) -> Any:
    """Make a model by its name.

    Raises:
        UsageError: there is no such model, it has no such argument, or it refuses one; the message names the model, the
            argument and what there is.
    """
    if name not in REGISTRY:
        raise UsageError(f"There is no model {name!r}; there are {', '.join(REGISTRY)}")
    cls = REGISTRY[name]
    parameters = signature(cls).parameters
    required = [key for key, parameter in parameters.items() if parameter.default is Parameter.empty]
    for problem, keys in (
        ("has no argument", [key for key in arguments if key not in parameters]),
        ("needs the argument", [key for key in required if key not in arguments]),
    ):
        if keys:
            raise UsageError(f"model {name} {problem} {', '.join(keys)}; it takes {', '.join(parameters)}")
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(f"model {name}: {error}") from error


def __getattr__(name: str) -> Any:
    for model, cls in _CLASSES.items():
        if cls == name:
            return REGISTRY[model]
    raise AttributeError(f"module 'memback.models' has no attribute {name!r}")

"""Layers: named parameters, a path for every layer, train and eval."""

from __future__ import annotations

import inspect
import os
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from memback.engine.arrays import is_array
from memback.engine.changes import changes
from memback.engine.state import current
from memback.engine.tensor import Tensor
from memback.errors import MembackError, warn_deprecated

__all__ = ["Module", "Parameter", "check_state"]


class Parameter(Tensor):
    """A tensor that a :class:`Module` trains. ``requires_grad=False`` freezes it, and then it costs nothing."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad)


class Module:
    """Base class of layers and models.

    Assigning a :class:`Parameter`, a Module or (by :meth:`register_buffer`) an array to an attribute registers it. A
    subclass calls ``super().__init__()`` first and defines ``forward``. While a module runs, ops are charged to its
    ``path``: the attribute names that lead to it from the outermost module, joined by dots.
    """

    training = True
    is_chain: ClassVar[bool] = False
    """Whether the children (or steps) run one after the other, so that a policy may cut them into segments."""
    is_collection: ClassVar[bool] = False
    """Whether the children are units that a policy may checkpoint one by one."""
    renamed: ClassVar[Mapping[str, str]] = {}
    """Names that parameters of ``forward`` had in earlier versions, each with its present one."""

    def __init__(self) -> None:
        self._parameters: dict[str, Parameter] = {}
        self._buffers: dict[str, Any] = {}
        self._modules: dict[str, Module] = {}
        self._name = ""
        self._parent: weakref.ref[Module] | None = None
        self._path: str | None = ""
        self._runner: Callable[..., Any] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the layer computes."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs and self.renamed:
            self._rename(kwargs)
        state = current()
        before = state.path
        path = self._path
        state.path = self.path if path is None else path
        try:
            if self._runner is None:
                return self.forward(*args, **kwargs)
            return self._runner(self.forward, args, kwargs)
        finally:
            state.path = before

    def _rename(self, kwargs: dict[str, Any]) -> None:
        """Give arguments their present names, but where the forward of a subclass has the old ones."""
        parameters = inspect.signature(self.forward).parameters
        for old, new in self.renamed.items():
            if old in kwargs and new not in kwargs and new in parameters and old not in parameters:
                warn_deprecated(f"{type(self).__name__}: the argument {old!r} is called {new!r} now")
                kwargs[new] = kwargs.pop(old)

    # -- the tree

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, (Parameter, Module)) and "_parameters" not in self.__dict__:
            raise MembackError(f"{type(self).__name__}.__init__ must call super().__init__() before it sets {name!r}")
        registered = None
        if isinstance(value, Parameter):
            registered = "_parameters"
        elif isinstance(value, Module):
            registered = "_modules"
        elif is_array(value) and name in self.__dict__.get("_buffers", ()):
            registered = "_buffers"
        self._unregister(name, but=registered)
        if registered == "_modules":
            self.add_module(name, value)
        elif registered is not None:
            self.__dict__[registered][name] = value
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        self._unregister(name)
        object.__delattr__(self, name)

    def _unregister(self, name: str, but: str | None = None) -> None:
        """Remove what was registered under the name of an attribute that gets another value."""
        for registry in ("_parameters", "_buffers", "_modules"):
            if registry != but:
                self.__dict__.get(registry, {}).pop(name, None)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parent": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for name, child in self._modules.items():
            if child._parent is None and child._name == name:
                child._parent = weakref.ref(self)

    def add_module(self, name: str, module: Module) -> None:
        """Register a child; one that is registered twice keeps the path of its first place."""
        self._modules[name] = module
        if module._parent is None or module._parent() is None:
            module._name, module._parent = name, weakref.ref(self)
            module._forget_paths()

    def register_buffer(self, name: str, array: Any) -> None:
        """Register an array that belongs to the state but is not trained (running statistics)."""
        self._buffers[name] = array
        object.__setattr__(self, name, array)

    def _forget_paths(self) -> None:
        self._path = None
        for child in self._modules.values():
            child._forget_paths()

    @property
    def path(self) -> str:
        """Where this module sits in the outermost one: ``blocks.3.mlp``; empty for the outermost."""
        if self._path is None:
            parent = None if self._parent is None else self._parent()
            above = "" if parent is None else parent.path
            self._path = f"{above}.{self._name}" if above else self._name
        return self._path

    def children(self) -> Iterator[Module]:
        """The modules registered directly in this one."""
        yield from self._modules.values()

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module and all below it, each once, with their names."""
        seen: set[int] = set()

        def visit(module: Module, name: str) -> Iterator[tuple[str, Module]]:
            if id(module) in seen:
                return
            seen.add(id(module))
            yield name, module
            for child_name, child in module._modules.items():
                yield from visit(child, f"{name}.{child_name}" if name else child_name)

        yield from visit(self, prefix)

    def modules(self) -> Iterator[Module]:
        """This module and all below it, each once."""
        seen: set[int] = set()
        waiting: list[Module] = [self]
        while waiting:
            module = waiting.pop()
            if id(module) not in seen:
                seen.add(id(module))
                yield module
                waiting.extend(reversed(module._modules.values()))

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """All parameters with their names, each once (a tied one under its first name)."""
        seen: set[int] = set()
        for prefix, module in self.named_modules():
            for name, parameter in module._parameters.items():
                if id(parameter) not in seen:
                    seen.add(id(parameter))
                    yield (f"{prefix}.{name}" if prefix else name), parameter

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, each once."""
        for _, parameter in self.named_parameters():
            yield parameter

    def named_buffers(self) -> Iterator[tuple[str, Any]]:
        """All registered arrays with their names."""
        for prefix, module in self.named_modules():
            for name, array in module._buffers.items():
                yield (f"{prefix}.{name}" if prefix else name), array

    # -- training

    def train(self, mode: bool = True) -> Module:
        """Switch to training (dropout drops, batch norm uses the batch), or with ``False`` to evaluation."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Switch to evaluation."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Module:
        """Freeze or unfreeze every parameter below."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self) -> None:
        """Drop every gradient."""
        for module in self.modules():
            for parameter in module._parameters.values():
                parameter.grad = None

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """Parameters and buffers by name, as the arrays themselves."""
        return {**{name: p.data for name, p in self.named_parameters()}, **dict(self.named_buffers())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy a state into this module's arrays.

        Raises:
            MembackError: names are missing or unknown, or a shape differs; nothing is changed then.
        """
        mine = self.state_dict()
        check_state(mine, state)
        for name, array in mine.items():
            array[...] = state[name]
            changes.note(array, "load_state_dict")

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> None:
        """Write the state as a safetensors file, whole or not at all.

        Raises:
            UsageError: the file exists and ``overwrite`` is false, or there is no such folder.
            MembackError: the system does not let it be written.
        """
        from memback.nn.state import write

        write(path, self.state_dict(), overwrite=overwrite)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Copy the state from a safetensors file into this module's arrays, in their own types.

        Raises:
            UsageError: there is no such file, or it is no whole safetensors file.
            MembackError: its names or shapes are not this module's; nothing is changed then.
        """
        from memback.nn.state import read

        arrays, _ = read(path)
        try:
            self.load_state_dict(arrays)
        except MembackError as error:
            raise MembackError(f"{path}: {error}") from None


def check_state(mine: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Whether ``state`` has the names and the shapes of ``mine``.

    Raises:
        MembackError: it does not; the message names the first few that differ.
    """
    missing = [name for name in mine if name not in state]
    unknown = [name for name in state if name not in mine]
    if missing or unknown:
        reasons = [
            f"{text} {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            for text, names in (("it misses", missing), ("it has the unknown", unknown))
            if names
        ]
        raise MembackError(f"the state does not fit: {'; '.join(reasons)}")
    for name, array in mine.items():
        if np.shape(state[name]) != np.shape(array):
            raise MembackError(
                f"the state does not fit: {name} has shape {np.shape(state[name])} in it, here {np.shape(array)}"
            )

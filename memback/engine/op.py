"""The contract of an op: everything that memback knows of it is declared in one class.

An op is a subclass of :class:`Op` and one instance of it. It declares

``forward(self, ...)``
    computes the output from plain arrays (Eq. 24). Parameters annotated ``Array`` (or ``Array | None``) are its
    inputs, a parameter annotated ``Sequence[Array]`` takes any number of them; all others are attributes. With
    ``residuals`` declared it returns ``(out, *residuals)``. A parameter called ``keep`` receives whether anything
    will be saved, so that a mask that only backward needs is not computed for nothing.
``saves``
    for each input that can be differentiated, the names of the values that its gradient needs: inputs, ``out``,
    residuals or attributes that hold arrays. An input that is missing here has no derivative. Where an attribute (a
    flag) decides what is needed, ``saves_if`` has under its name what is saved in place of that where it is set.
``vjp(self, d_out, ...)``
    the vector-Jacobian product (Eq. 26 on what was saved): one gradient an input, in the order of the inputs, ``None``
    for one that is not needed; a bare array where there is one input. Its parameters name what it wants: saved values
    (``None`` where the inputs to be differentiated don't need them), attributes, ``needs`` (which inputs are to be
    differentiated, by name: ``needs.input``) and ``shapes`` (of the inputs, in order).
``flops(self, ...)``
    floating-point operations of one forward, a multiply-add counting 2; parameters by name, as in ``vjp``, and ``out``.
``renamed``
    names that parameters had in earlier versions, each with its present one; a call by an old name is warned.
``makes_residuals(self, ...)``
    whether a call makes any of the declared residuals, where that depends on attributes (a dropout that is off makes
    none); parameters by name, as in ``flops``. By default every call does.

The names are checked when the instance is made, at import. ``vjp`` is handed exactly what ``saves`` declares and
nothing else, so the account of saved bytes can't miss anything.
"""

from __future__ import annotations

import inspect
import sys
from collections import namedtuple
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from operator import itemgetter
from typing import Any, ClassVar, NamedTuple

import numpy as np

from memback.engine.arrays import Array, is_array
from memback.errors import MembackError, warn_deprecated

__all__ = ["REGISTRY", "Op", "OpDefinitionError", "OpError", "Saving"]

REGISTRY: dict[str, Op] = {}
"""Every op by its name."""

_REQUIRED = inspect.Parameter.empty

# Annotations of inputs are text in modules that postpone their evaluation, which all of memback's own do.
_INPUT = ("Array", "Array | None", Array, Array | None)
_INPUTS = ("Sequence[Array]", Sequence[Array])


class OpDefinitionError(TypeError):
    """An op's declaration contradicts itself; raised when its instance is made, at import."""


class OpError(MembackError):
    """An op could not run on what it was given."""


class Saving(NamedTuple):
    """What a call keeps for backward, given which inputs are to be differentiated.

    ``layout`` says where each argument of ``vjp`` after ``d_out`` comes from: indices into the call's values, from
    which ``pick`` takes them. ``names`` are the saved values' names, ``slots`` their places in the layout.
    """

    layout: tuple[int, ...]
    pick: Callable[[tuple[Any, ...]], tuple[Any, ...]]
    names: tuple[str, ...]
    slots: tuple[int, ...]
    needs: Any


class Op:
    """Base class of all ops; see the module's text for the contract."""

    name: ClassVar[str]
    source: ClassVar[str] = ""
    saves: ClassVar[Mapping[str, Sequence[str]]] = {}
    saves_if: ClassVar[Mapping[str, Mapping[str, Sequence[str]]]] = {}
    residuals: ClassVar[tuple[str, ...]] = ()
    renamed: ClassVar[Mapping[str, str]] = {}
    matrix_product: ClassVar[bool] = False
    """Whether this is a product with weights: dear to recompute for the bytes that its output takes."""
    multiple: ClassVar[bool] = False
    """Whether ``forward`` gives a tuple of outputs; ``vjp`` then gets a tuple, ``None`` for an output without use."""

    record: ClassVar[Callable[[Op, tuple[Any, ...], dict[str, Any]], Any]]
    """Runs a call on Tensors and records it; set by :mod:`memback.engine.calls`, which this module may not import."""

    forward: Callable[..., Any]
    vjp: Callable[..., Any]
    flops: Callable[..., int]
    makes_residuals: Callable[..., bool] = lambda self: True

    def __init__(self) -> None:
        self._read_forward()
        self._check_saves()
        self._vjp_names = self._read_names(self.vjp, skip=1) if self.saves else ()
        self._flops_places = self._read_places(self.flops)
        self._residuals_places = self._read_places(self.makes_residuals)
        unused = self._ever_saved() - set(self._vjp_names)
        if unused:
            raise OpDefinitionError(f"op {self.name!r} saves {sorted(unused)}, which its vjp does not take")
        never = self._never_saved()
        if never:
            raise OpDefinitionError(f"the vjp of op {self.name!r} takes {sorted(never)}, which it saves for no input")
        self._wants_shapes = "shapes" in self._vjp_names
        self._no_residuals = (None,) * len(self.residuals)
        self._savings: dict[tuple[int, str], Saving] = {}
        if self.name in REGISTRY:
            raise OpDefinitionError(f"two ops are called {self.name!r}")
        REGISTRY[self.name] = self
        self.__doc__ = type(self).__doc__

    # -- reading the declaration

    def _read_forward(self) -> None:
        parameters = dict(inspect.signature(self.forward).parameters)
        self.takes_keep = parameters.pop("keep", None) is not None
        self.parameters = tuple(parameters)
        self.defaults = tuple(p.default for p in parameters.values())
        self._required = sum(default is _REQUIRED for default in self.defaults)
        kinds = [p.annotation for p in parameters.values()]
        self.variadic = next((i for i, kind in enumerate(kinds) if kind in _INPUTS), None)
        array_slots = [i for i, kind in enumerate(kinds) if kind in _INPUT]
        self.inputs = tuple(self.parameters[i] for i in array_slots)
        self.array_slots = tuple((1 << k, i) for k, i in enumerate(array_slots))
        if self.variadic is not None:
            if self.inputs:
                raise OpDefinitionError(f"op {self.name!r} takes both single inputs and a sequence of them")
            self.inputs = (self.parameters[self.variadic],)
        reserved = {"out", "needs", "shapes"} & set(self.parameters)
        if reserved:
            raise OpDefinitionError(f"op {self.name!r}: {sorted(reserved)} can't be a parameter of forward")
        extra = ("out", *self.residuals, None, "needs", "shapes")
        self._places = {name: i for i, name in enumerate((*self.parameters, *extra))}
        for old, new in self.renamed.items():
            if new not in self.parameters or old in self.parameters:
                raise OpDefinitionError(
                    f"op {self.name!r} renames {old!r} to {new!r}; it has {sorted(self.parameters)}"
                )

    def _check_saves(self) -> None:
        known = {*self.parameters, "out", *self.residuals}
        if not set(self.saves_if) <= set(self.parameters) - set(self.inputs):
            raise OpDefinitionError(f"op {self.name!r} saves by {sorted(self.saves_if)}: not all are attributes")
        for argument, names in (pair for saves in (self.saves, *self.saves_if.values()) for pair in saves.items()):
            if argument not in self.inputs:
                raise OpDefinitionError(f"op {self.name!r} saves for {argument!r}, which is no input")
            unknown = [name for name in names if name not in known]
            if unknown:
                raise OpDefinitionError(
                    f"op {self.name!r} saves {unknown} for {argument!r}: neither an input, 'out', a residual nor an"
                    f" attribute; it has {sorted(known)}"
                )

    def _ever_saved(self) -> set[str]:
        return {name for saves in (self.saves, *self.saves_if.values()) for names in saves.values() for name in names}

    def _never_saved(self) -> set[str]:
        """What ``vjp`` takes and would always get None for."""
        values = {*self.inputs, "out", *self.residuals}
        return values & set(self._vjp_names) - self._ever_saved()

    def _read_names(self, function: Callable[..., Any], skip: int) -> tuple[str, ...]:
        names = tuple(inspect.signature(function).parameters)[skip:]
        unknown = [name for name in names if name not in self._places]
        if unknown:
            raise OpDefinitionError(
                f"{self.name}.{function.__name__} takes {unknown}: unknown names; it can have"
                f" {sorted(name for name in self._places if name)}"
            )
        return names

    def _read_places(self, function: Callable[..., Any]) -> list[int]:
        return [(*self.parameters, "out").index(name) for name in self._read_names(function, skip=0)]

    # -- running

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run forward; on Tensors the call is recorded on the thread's tape, on plain arrays it is not."""
        return Op.record(self, args, kwargs)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The values of forward's parameters in order, defaults filled in.

        Raises:
            OpError: too many, unknown, doubled or missing arguments.
        """
        if len(args) > len(self.parameters):
            raise OpError(f"{self.name}() takes {len(self.parameters)} arguments {self.parameters}, got {len(args)}")
        values = [*args, *self.defaults[len(args) :]]
        if not kwargs and len(args) >= self._required:
            return values
        for name, value in kwargs.items():
            place = self._places.get(name, len(values))
            if place >= len(values):
                place = self._place_of_old(name, kwargs)
            if place < len(args):
                raise OpError(f"{self.name}() got {self.parameters[place]!r} twice, by place and by name")
            values[place] = value
        if any(value is _REQUIRED for value in values):
            missing = [name for name, value in zip(self.parameters, values, strict=True) if value is _REQUIRED]
            raise OpError(f"{self.name}() misses {', '.join(missing)}")
        return values

    def _place_of_old(self, name: str, given: Collection[str]) -> int:
        """The place of the parameter that ``name`` was the name of."""
        new = self.renamed.get(name)
        if new is None:
            raise OpError(f"{self.name}() has no argument {name!r}; it takes {', '.join(self.parameters)}")
        if new in given:
            raise OpError(f"{self.name}() got {new!r} twice, once by its old name {name!r}")
        warn_deprecated(f"{self.name}(): the argument {name!r} is called {new!r} now")
        return self._places[new]

    def run(self, values: list[Any], keep: bool) -> tuple[Any, tuple[Any, ...]]:
        """Run forward on bound plain values: its output (a tuple of outputs where ``multiple``) and residuals."""
        result = self.forward(*values, keep=keep) if self.takes_keep else self.forward(*values)
        out, residuals = (result[0], result[1:]) if self.residuals else (result, ())
        if residuals:  # NumPy gives scalars for arrays of no dimensions, which then would count in no account
            residuals = tuple(np.asarray(r) if isinstance(r, np.generic) else r for r in residuals)
        if not self.multiple:
            if type(out) is not np.ndarray and not is_array(out):
                out = np.asarray(out)
            dtype = out.dtype
            if dtype.kind == "f" and dtype.itemsize > 2 and "ml_dtypes" in sys.modules:  # else there is no bfloat16
                out = self._narrowed(values, out)
        return out, residuals

    def _narrowed(self, values: list[Any], out: Any) -> Any:
        """NumPy has no products of bfloat16 and no Python numbers beside it: it gives float32 or float64, which is
        rounded here, so that a bfloat16 model keeps values of two bytes.
        """
        inputs = values if self.variadic is None else values[self.variadic]
        places = [i for _, i in self.array_slots] if self.variadic is None else range(len(inputs))
        narrow = None
        for i in places:
            dtype = getattr(inputs[i], "dtype", None)
            if dtype is None:
                continue
            if dtype.kind == "f":
                return out
            if dtype.kind == "V" and narrow is None:
                narrow = dtype
        return out if narrow is None else out.astype(narrow)

    def saving(self, needs: int, count: int, values: Sequence[Any] = ()) -> Saving:
        """What a call keeps where bit k of ``needs`` says that input k (of ``count``) is to be differentiated.

        ``values`` are the call's, among which are the flags that ``saves_if`` asks for.
        """
        flag = (
            next((name for name in self.saves_if if values and values[self._places[name]]), "") if self.saves_if else ""
        )
        saves = self.saves_if[flag] if flag else self.saves
        if self.variadic is not None:
            return self._make_saving((self.inputs[0],), tuple(bool(needs >> k & 1) for k in range(count)), saves)
        saving = self._savings.get((needs, flag))
        if saving is None:
            wants = [bool(needs >> k & 1) for k in range(len(self.inputs))]
            wanted = tuple(name for name, want in zip(self.inputs, wants, strict=True) if want)
            saving = self._make_saving(wanted, self._needs_type(*wants), saves)
            self._savings[needs, flag] = saving
        return saving

    def _make_saving(self, wanted: tuple[str, ...], needs: Any, saves: Mapping[str, Sequence[str]]) -> Saving:
        for name in wanted:
            if name not in saves:
                raise OpError(
                    f"{self.name} has no derivative by `{name}`; pass it without requires_grad, or use .detach()"
                )
        kept = {saved for name in wanted for saved in saves[name]}
        values = {*self.inputs, "out", *self.residuals}
        layout, names, slots = [], [], []
        for slot, name in enumerate(self._vjp_names):
            dropped = name in values and name not in kept
            layout.append(self._places[None if dropped else name])
            if name in kept:
                names.append(name)
                slots.append(slot)
        return Saving(tuple(layout), _picker(layout), tuple(names), tuple(slots), needs)

    @cached_property
    def _needs_type(self) -> Any:
        return namedtuple(f"{self.name}_needs", self.inputs)

    def input_arrays(self, values: list[Any]) -> list[Any]:
        """The array inputs among bound values, in the order in which ``vjp`` gives gradients."""
        if self.variadic is not None:
            return list(values[self.variadic])
        return [values[i] for _, i in self.array_slots]

    def moved(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """The inputs that a call changes in place, so that nothing depends on what they were before."""
        return ()

    def arguments(self, saving: Saving, values: list[Any], out: Any, residuals: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of ``vjp`` after ``d_out``, which is all that the call keeps."""
        shapes = [getattr(value, "shape", ()) for value in self.input_arrays(values)] if self._wants_shapes else None
        return saving.pick((*values, out, *(residuals or self._no_residuals), None, saving.needs, shapes))

    def has_residuals(self, values: list[Any]) -> bool:
        """Whether a call on these values makes residuals where its backward is to follow."""
        return bool(self.residuals) and self.makes_residuals(*[values[place] for place in self._residuals_places])

    def count_flops(self, values: list[Any], out: Any) -> int:
        """FLOPs of this forward call."""
        known = (*values, out)
        return int(self.flops(*[known[place] for place in self._flops_places]))

    # -- the notes' interface on plain arrays

    def backward(self, d_out: Any, *args: Any, **kwargs: Any) -> Any:
        """dL/d(inputs) from dL/d(output) and the inputs, on plain arrays (Eq. 26).

        Runs forward for what it saves, then ``vjp``. Returns one array, or a tuple with one entry an input: ``None``
        for inputs that have no derivative or were not given.
        """
        values = self.bind(args, kwargs)
        return self._unpack(self._pull_back(values)[1](d_out))

    def jacobian(self, *args: Any, **kwargs: Any) -> Any:
        """d(output)/d(input) on plain arrays (Eq. 14): one array an input, its shape output's + input's.

        By a closed form where the op has one (``closed_jacobian``), else row by row: each row is the ``vjp`` of a
        unit vector, as in Eq. 25. ``None`` for inputs without a derivative.
        """
        values = self.bind(args, kwargs)
        closed = getattr(self, "closed_jacobian", None)
        if closed is not None:
            return self._unpack(closed(*values))
        if self.multiple:
            raise OpError(f"{self.name} has several outputs: take the Jacobian of one of them")
        out, pull_back = self._pull_back(values)
        units = np.eye(out.size, dtype=out.dtype).reshape(-1, *out.shape) if out.size else np.zeros_like(out)[None]
        columns = zip(*map(pull_back, units), strict=True)
        inputs = self.input_arrays(values)
        stacked = [
            None if column[0] is None else np.stack(column)[: out.size].reshape(out.shape + np.shape(x))
            for column, x in zip(columns, inputs, strict=True)
        ]
        return self._unpack(tuple(stacked))

    def _pull_back(self, values: list[Any]) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
        """The output of one forward, and dL/d(inputs) as a function of dL/d(output)."""
        if not self.saves:
            raise OpError(f"{self.name} has no derivative")
        inputs = self.input_arrays(values)
        needs = 0
        for k, value in enumerate(inputs):
            name = self.inputs[0] if self.variadic is not None else self.inputs[k]
            if name in self.saves and value is not None:
                needs |= 1 << k
        out, residuals = self.run(values, keep=True)
        kept = self.arguments(self.saving(needs, len(inputs), values), values, out, residuals)
        single = self.single
        return out, lambda d_out: (self.vjp(d_out, *kept),) if single else tuple(self.vjp(d_out, *kept))

    @cached_property
    def single(self) -> bool:
        """Whether there is exactly one input, so that ``vjp`` gives a bare array."""
        return self.variadic is None and len(self.inputs) == 1

    def _unpack(self, grads: tuple[Any, ...]) -> Any:
        return grads[0] if self.single else grads

    def __repr__(self) -> str:
        return f"<op {self.name}>"


def _picker(places: Sequence[int]) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Takes what is at ``places`` from a tuple; itemgetter does, except that it gives one item bare."""
    if len(places) > 1:
        return itemgetter(*places)
    return itemgetter(slice(places[0], places[0] + 1) if places else slice(0))

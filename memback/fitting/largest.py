"""The largest batch, depth or sequence that fits into a budget, by bisection over dry runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from memback.errors import MembackError, UsageError
from memback.fitting.bisection import largest
from memback.fitting.fit import Option, Setup, Trials
from memback.profiling.definition import Profile
from memback.units import format_bytes

__all__ = ["DIMENSIONS", "Largest", "find_largest"]

_MOST = 2**24


@dataclass(frozen=True)
class Dimension:
    """A dimension that can grow: its present size, the settings for another size, and the possible sizes."""

    name: str
    now: int
    settings: Callable[[int], Mapping[str, str]]
    sizes: tuple[int, ...] | None = None
    most: int = _MOST
    limit: str = ""


@dataclass(frozen=True)
class Largest:
    """The largest size that fits; ``next`` is the smallest size tried that does not, and its peak where it has one."""

    dimension: str
    now: int
    size: int
    option: Option
    next_size: int | None
    next_peak_bytes: int | None
    limit: str


def _batch(profile: Profile) -> Dimension:
    from memback.profiling.definition import load_data

    most, limit = _MOST, ""
    if not profile.dry:
        most = len(load_data(profile).x_train)
        limit = f"the data has {most:,} samples"
    return Dimension("batch", profile.data.batch, lambda n: {"data.batch": str(n)}, most=most, limit=limit)


def _depth(profile: Profile) -> Dimension:
    arguments = profile.model.arguments
    key = next((key for key in ("layers", "depth") if key in arguments), None)
    if key is None:
        raise UsageError(
            f"profile {profile.name} has no numeric depth: give its model `layers`, or `width` and `depth` in"
            " place of a list"
        )
    sizes = (18, 34, 50) if profile.model.name == "resnet" else None
    return Dimension("depth", int(arguments[key]), lambda n: {f"model.{key}": str(n)}, sizes)


def _sequence(profile: Profile) -> Dimension:
    data = profile.data.arguments
    context = {"model.context"} if "context" in profile.model.arguments else set()
    if "sequence" in data:
        keys = context | {"data.sequence"}
        return Dimension("sequence", int(data["sequence"]), lambda n: dict.fromkeys(keys, str(n)))
    if data.get("task") == "sequence":
        shape = [int(n) for n in data["shape"]]
        return Dimension(
            "sequence",
            shape[0],
            lambda n: {**dict.fromkeys(context, str(n)), "data.shape": str([n, *shape[1:]])},
        )
    raise UsageError(f"profile {profile.name} has no sequences whose length can change")


DIMENSIONS: Mapping[str, Callable[[Profile], Dimension]] = {"batch": _batch, "depth": _depth, "sequence": _sequence}
"""What can be asked for, by name."""


def find_largest(trials: Trials, what: str, budget: int, setup: Setup) -> Largest:
    """The largest size whose peak fits, everything else being as ``setup`` says.

    Assumes that a larger size has a higher peak; the size that is found, and the next one, have been tried.

    Args:
        trials: of the profile.
        what: one of :data:`DIMENSIONS`.
        budget: the largest peak above the arguments, in bytes.
        setup: what is changed; where it has a budget, a plan is made for each size.

    Raises:
        MembackError: not even the smallest size fits.
        UsageError: the profile has no such dimension.
    """
    dimension = DIMENSIONS[what](trials.work(setup).profile)
    if dimension.sizes is not None:
        return _Search(trials, dimension, budget, setup).among(dimension.sizes)
    return _Search(trials, dimension, budget, setup).bisect()


class _Search:
    def __init__(self, trials: Trials, dimension: Dimension, budget: int, setup: Setup) -> None:
        self.trials, self.dimension, self.budget, self.setup = trials, dimension, budget, setup

    def at(self, size: int) -> Option | None:
        """The option at a size; None where there is none."""
        settings = {**self.setup.settings, **self.dimension.settings(size)}
        return self.trials.option(replace(self.setup, settings=settings))

    def fits(self, size: int) -> bool:
        option = self.at(size)
        return option is not None and option.peak_bytes <= self.budget

    def among(self, sizes: tuple[int, ...]) -> Largest:
        fitting = [size for size in sizes if self.fits(size)]
        if not fitting:
            raise self._nothing(sizes[0])
        larger = [size for size in sizes if size > fitting[-1]]
        return self._found(fitting[-1], larger[0] if larger else None)

    def bisect(self) -> Largest:
        dimension = self.dimension
        low, high = largest(self.fits, dimension.now, dimension.most)
        if low == 0:
            raise self._nothing(1)
        return self._found(low, high)

    def _found(self, size: int, beyond: int | None) -> Largest:
        option = self.at(size)
        assert option is not None
        larger = None if beyond is None else self.at(beyond)
        limit = self.dimension.limit if beyond is None else ""
        peak = None if larger is None else larger.peak_bytes
        return Largest(self.dimension.name, self.dimension.now, size, option, beyond, peak, limit)

    def _nothing(self, smallest: int) -> MembackError:
        option = self.at(smallest)
        name = self.dimension.name
        if option is None:
            return MembackError(f"no {name} fits {format_bytes(self.budget)}: {self._why(smallest)}")
        return MembackError(
            f"no {name} fits {format_bytes(self.budget)}: even {name} {smallest} has a peak of"
            f" {format_bytes(option.peak_bytes)}, which is {option.made_of()}"
        )

    def _why(self, size: int) -> str:
        """Why a size does not fit."""
        settings = {**self.setup.settings, **self.dimension.settings(size)}
        try:
            self.trials._try(replace(self.setup, settings=settings))
        except MembackError as error:
            return f"at {self.dimension.name} {size}, {error}"
        return f"{self.dimension.name} {size} can't be run"

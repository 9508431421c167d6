"""What to change so that a training step fits into a budget, tried by dry runs and ranked by predicted time lost.

The levers: settings of the model that cost next to nothing (dropout masks as bits or seeds, attention in one op or by
tiles), recomputation by a policy or a plan, micro-batches, saved activations on disk, a narrower dtype. Every
combination that is offered has run dry: its peak is that of its own dry run.

Time lost is predicted as far as it can be known: recomputed FLOPs, and bytes to and from disk, over rates that are
measured on this machine. What a dtype costs is not predicted: NumPy has fast products for float32 and float64 alone.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from memback.dry.array import NoValuesError
from memback.engine.offload import save_on_disk
from memback.errors import MembackError, UsageError
from memback.plans.model.planning import NoPlanError, Planning
from memback.profiling.definition import Profile
from memback.profiling.measuring import Peak, Prediction, made_of
from memback.profiling.mode import Mode
from memback.profiling.workload import Workload
from memback.units import format_bytes

__all__ = ["DoesNotFitError", "Machine", "Option", "Setup", "Trials", "fit", "measure_machine"]

_POLICIES = ("selective:attention", "selective", "sqrt", "all")
_NARROWER = {"float64": "float32", "float32": "bfloat16"}
_MOST_ROWS = 8
_PROBE_BYTES = 32 * 2**20


class DoesNotFitError(MembackError):
    """No combination of levers fits the budget; ``leanest`` is the one with the least peak of those tried."""

    def __init__(self, budget: int, leanest: Option) -> None:
        self.budget = budget
        self.leanest = leanest
        super().__init__(
            f"nothing fits {format_bytes(budget)}: the least peak is {format_bytes(leanest.peak_bytes)}, with"
            f" {leanest.setup.describe()}. It is made of {leanest.made_of()}. Raise the budget to that, or make the"
            " step smaller (its batch, its model; --find says by how much)"
        )


@dataclass(frozen=True)
class Machine:
    """Rates by which time is predicted: FLOPs of products and bytes to and from the disk, a second."""

    flops_per_second: float
    write_bytes_per_second: float
    read_bytes_per_second: float
    folder: str


def measure_machine(dtype: str, folder: str | os.PathLike[str] | None = None) -> Machine:
    """Measure this machine, within about a second.

    Writing is timed until the disk has everything; what is read right afterwards comes from the page cache, as it does
    in a step that is small compared with the free memory, so larger ones read slower.
    """
    place = save_on_disk(folder).folder
    write, read = _disk_rates(place)
    return Machine(_product_rate(np.float64 if dtype == "float64" else np.float32), write, read, str(place))


def _product_rate(dtype: Any) -> float:
    n = 384
    a, out = np.ones((n, n), dtype), np.empty((n, n), dtype)
    return 2 * n**3 / min(_seconds(lambda: np.matmul(a, a, out=out)) for _ in range(8))


def _disk_rates(folder: Path) -> tuple[float, float]:
    data = bytearray(_PROBE_BYTES)
    with tempfile.TemporaryFile(prefix="memback-", dir=folder, buffering=0) as file:

        def write() -> None:
            file.write(data)
            os.fsync(file.fileno())

        def read() -> None:
            file.seek(0)
            file.readinto(data)

        return len(data) / _seconds(write), len(data) / _seconds(read)


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return max(time.perf_counter() - began, 1e-9)


@dataclass(frozen=True)
class Setup:
    """A way to run a step: settings of the profile, and options of ``memback train``."""

    settings: Mapping[str, str] = field(default_factory=dict)
    policy: str | None = None
    budget: int | None = None
    micro_batches: int = 1
    offload: bool = False

    def flags(self) -> list[str]:
        """The options of ``memback train`` for it."""
        flags = []
        for key, value in self.settings.items():
            short = {"dtype": "--dtype", "data.batch": "--batch"}.get(key)
            flags += [short, value] if short else ["--set", f"{key}={value}"]
        if self.policy is not None:
            flags += ["--policy", self.policy]
        if self.budget is not None:
            flags += ["--budget", str(self.budget)]
        if self.micro_batches > 1:
            flags += ["--micro-batches", str(self.micro_batches)]
        if self.offload:
            flags += ["--offload"]
        return flags

    def describe(self) -> str:
        """The flags, or that there are none."""
        return " ".join(self.flags()) or "nothing changed"

    def in_words(self) -> str:
        """The changes for people."""
        words = {"model.mask": "dropout masks as {}", "model.attention": "{} attention", "dtype": "{}"}
        parts = [words.get(key, f"{key} {{}}").format(value) for key, value in self.settings.items()]
        if self.policy is not None:
            parts.append(f"policy {self.policy}")
        if self.budget is not None:
            parts.append("checkpoint plan")
        if self.micro_batches > 1:
            parts.append(f"{self.micro_batches} micro-batches")
        if self.offload:
            parts.append("offload to disk")
        return " + ".join(parts) or "nothing"


@dataclass(frozen=True)
class Option:
    """A setup that was tried: its peak above the arguments in bytes, and its cost.

    Attributes:
        seconds: predicted to be lost a step; None where that is not known.
        recomputed: recomputed FLOPs, as a share of a step's (three forward passes).
        disk_bytes: written and read in a step.
        results: ``"bit-identical"``, ``"rounding"``, or what changes them: ``"other masks"`` (of dropout),
            ``"batch norm"`` (whose statistics are those of micro-batches), or the dtype.
        notes: caveats of the prediction.
    """

    setup: Setup
    peak_bytes: int
    peak: Peak
    saved_bytes: int
    seconds: float | None
    recomputed: float
    disk_bytes: tuple[int, int]
    results: str
    notes: tuple[str, ...]

    def made_of(self) -> str:
        """What the peak consists of."""
        return made_of(self.peak.to_dict())

    def to_dict(self, step_seconds: float, command: str) -> dict[str, Any]:
        """As plain data."""
        return {
            "flags": self.setup.flags(),
            "command": command,
            "peak_bytes": self.peak_bytes,
            "peak": self.peak.to_dict(),
            "saved_bytes": self.saved_bytes,
            "predicted_seconds_lost": self.seconds,
            "predicted_time_lost": None if self.seconds is None else self.seconds / step_seconds,
            "recomputed_share": self.recomputed,
            "disk_bytes_written": self.disk_bytes[0],
            "disk_bytes_read": self.disk_bytes[1],
            "results": self.results,
            "notes": list(self.notes),
        }


class Trials:
    """Dry runs of a profile under different setups, each made once.

    Args:
        profile: as it is now.
        machine: the rates by which time is predicted.
        tell: called with what is tried now.
    """

    def __init__(self, profile: Profile, machine: Machine, tell: Callable[[str], None] = lambda what: None) -> None:
        self.profile = profile
        self.machine = machine
        self._tell = tell
        self._tried: dict[str, Option | None] = {}
        self._works: dict[str, Workload] = {}
        self._plannings: dict[str, Planning] = {}
        self.flops = 3 * self._predict(Setup())[0].ledger.flops
        """Of a step: a forward pass, and a backward pass that takes twice as much."""

    @property
    def step_seconds(self) -> float:
        """A step at the rate of a product: less than it really takes, since other ops are slower."""
        return self.flops / self.machine.flops_per_second

    def full_peak_bytes(self) -> int:
        """The peak of the profile's step as it is, where all that backward needs is kept."""
        return self.work(Setup()).predicted_step().predict(Mode("full")).peak.bytes

    def work(self, setup: Setup) -> Workload:
        """The dry workload of a setup."""
        key = repr(setup.settings)
        if key not in self._works:
            profile = self.profile.with_overrides(setup.settings) if setup.settings else self.profile
            self._works[key] = Workload.build(profile, dry=True)
        return self._works[key]

    def option(self, setup: Setup) -> Option | None:
        """What a setup takes and costs; None where it can't be (a policy that finds nothing, no plan).

        Raises:
            NoValuesError: the step takes decisions on values, so it can't be predicted.
        """
        key = repr(setup)
        if key not in self._tried:
            self._tell(setup.describe())
            try:
                self._tried[key] = self._try(setup)
            except NoValuesError:
                raise
            except (UsageError, NoPlanError):
                self._tried[key] = None
        return self._tried[key]

    @property
    def options(self) -> list[Option]:
        """All that were possible."""
        return [option for option in self._tried.values() if option is not None]

    def leanest_plan(self, setup: Setup, budget: int) -> Option | None:
        """The setup under the plan for a budget, or under the one with the least peak where none fits that."""
        try:
            self._planning(setup).plan(budget)
        except NoPlanError as error:
            budget = error.minimum_bytes
        except UsageError:
            return None
        return self.option(replace(setup, budget=budget))

    def _planning(self, setup: Setup) -> Planning:
        key = repr(setup.settings)
        if key not in self._plannings:
            self._plannings[key] = Planning(self.work(setup).predicted_step())
        return self._plannings[key]

    def _try(self, setup: Setup) -> Option:
        prediction, disk = self._predict(setup)
        ledger = prediction.ledger
        recomputed = ledger.recomputed_flops / max(3 * ledger.flops, 1)
        # attention by tiles makes its scores again in backward: one of the two products of its forward
        recomputed += sum(row.flops for row in ledger.rows if row.op == "tiled_attention") / max(6 * ledger.flops, 1)
        written, read = disk
        on_disk = written / self.machine.write_bytes_per_second + read / self.machine.read_bytes_per_second
        seconds = None if "dtype" in setup.settings else recomputed * self.step_seconds + on_disk
        notes = []
        if "dtype" in setup.settings:
            notes.append(
                f"what {setup.settings['dtype']} costs in time is not predicted: NumPy has fast products for float32"
                " and float64 alone, so narrower types are likely to be many times slower here"
            )
        if setup.micro_batches > 1:
            notes.append("smaller products run less efficiently, which is not predicted")
        if setup.settings.get("model.mask") == "seed":
            notes.append("redrawing dropout masks in backward takes time that FLOPs do not count")
        return Option(
            setup,
            prediction.peak.bytes,
            prediction.peak,
            ledger.saved_at_end_of_forward or 0,
            seconds,
            recomputed,
            disk,
            self._results(setup),
            tuple(notes),
        )

    def _predict(self, setup: Setup) -> tuple[Prediction, tuple[int, int]]:
        work = self.work(setup)
        step = work.predicted_step(setup.micro_batches)
        if setup.budget is not None:
            if setup.micro_batches > 1:
                raise UsageError("a plan is made for whole batches")
            plan = self._planning(setup).plan(setup.budget)
            with plan.apply(work.model):
                return step.predict(Mode("checkpoint")), (0, 0)
        disk = save_on_disk(self.machine.folder) if setup.offload else None
        block: AbstractContextManager[Any] = nullcontext() if disk is None else disk
        with block:
            prediction = step.predict(Mode("full") if setup.policy is None else Mode("checkpoint", setup.policy))
        if disk is None:
            return prediction, (0, 0)
        scale = self._samples_in_all(work, setup)
        return prediction, (round(disk.bytes_written * scale), round(disk.bytes_read * scale))

    @staticmethod
    def _samples_in_all(work: Workload, setup: Setup) -> float:
        """A batch's samples over those that a dry run of its micro-batches works on."""
        batch, count = work.profile.data.batch, setup.micro_batches
        if count == 1:
            return 1.0
        ran = sum(batch // count + (number < batch % count) for number in range(2))
        return batch / ran

    def _results(self, setup: Setup) -> str:
        """The effect of a setup on results."""
        model = self.work(setup).model
        if "dtype" in setup.settings:
            return setup.settings["dtype"]
        if setup.micro_batches > 1:
            if any(type(module).__name__.startswith("BatchNorm") for module in model.modules()):
                return "batch norm"
            if _dropout(self.work(setup).profile):
                return "other masks"
            return "rounding"
        return "rounding" if "model.attention" in setup.settings else "bit-identical"


def _dropout(profile: Profile) -> bool:
    return bool(profile.model.arguments.get("dropout", 0))


# -- the levers


@dataclass(frozen=True)
class _Lever:
    """A kind of change: what it can be set to, the cheapest first. ``micro`` stands for as many parts as needed."""

    name: str
    levels: tuple[Callable[[Setup], Setup], ...]


def _set(**changes: str) -> Callable[[Setup], Setup]:
    keyed = {name.replace("__", "."): value for name, value in changes.items()}
    return lambda setup: replace(setup, settings={**setup.settings, **keyed})


def _with(**changes: Any) -> Callable[[Setup], Setup]:
    return lambda setup: replace(setup, **changes)


def _levers(trials: Trials, start: Setup, budget: int) -> list[_Lever]:
    """Those that the profile has, of those that the setup to start from has not used yet."""
    profile = trials.work(start).profile
    accepted = _arguments(profile)
    arguments = profile.model.arguments
    levers = []
    if "mask" in accepted and _dropout(profile) and "model.mask" not in start.settings:
        forms = {"bool": ("bits", "seed"), "bits": ("seed",)}.get(str(arguments.get("mask", "bool")), ())
        levers.append(_Lever("mask", tuple(_set(model__mask=form) for form in forms)))
    if "attention" in accepted and "model.attention" not in start.settings:
        now = str(arguments.get("attention", "plain"))
        forms = {"plain": ("fused", "tiled"), "fused": ("tiled",)}.get(now, ())
        if _dropout(profile):
            forms = tuple(form for form in forms if form != "tiled")
        levers.append(_Lever("attention", tuple(_set(model__attention=form) for form in forms)))
    if start.policy is None and start.budget is None:
        levers.append(_Lever("policy", tuple(_with(policy=policy) for policy in _POLICIES)))
        levers.append(_Lever("plan", (_with(budget=budget),)))
    if not start.offload:
        levers.append(_Lever("offload", (_with(offload=True),)))
    if start.micro_batches == 1 and profile.data.batch > 1:
        levers.append(_Lever("micro", ()))
    if profile.dtype in _NARROWER and "dtype" not in start.settings:
        levers.append(_Lever("dtype", (_set(dtype=_NARROWER[profile.dtype]),)))
    return [lever for lever in levers if lever.levels or lever.name == "micro"]


def _arguments(profile: Profile) -> set[str]:
    from inspect import signature

    from memback import models

    return set(signature(models.REGISTRY[profile.model.name]).parameters)


_EXCLUSIVE = ({"policy", "plan"}, {"plan", "offload"}, {"plan", "micro"})
"""Levers that are not combined: two ways of recomputation, and what plans do not know of."""
_EXACT = ("bit-identical", "rounding")
"""Results that are the same up to rounding."""
_MOST_LEVERS = 3
_WORTHWHILE = 0.9
"""Several levers together must save at least a tenth of the time lost with fewer of them or with another."""
_NEXT_TO_NOTHING = 0.005
"""The share of a step that is not worth a search for something cheaper."""


def fit(trials: Trials, budget: int, start: Setup | None = None) -> list[Option]:
    """The cheapest ways to fit a budget, best first; a setup that fits already is the only one.

    Args:
        trials: of the profile.
        budget: the largest peak above the arguments, in bytes.
        start: what is changed already.

    Raises:
        DoesNotFitError: no combination fits.
        NoValuesError: the step can't be predicted.
        UsageError: the setup to start from is not possible.
    """
    setup = start or Setup()
    now = trials.option(setup)
    if now is None:
        raise UsageError(f"the step can't be run with {setup.describe()}")
    if now.peak_bytes <= budget:
        return [now]
    found: dict[frozenset[str], Option] = {}
    levers = _levers(trials, setup, budget)
    for size in range(1, _MOST_LEVERS + 1):
        for chosen in combinations(levers, size):
            names = frozenset(lever.name for lever in chosen)
            if any(pair <= names for pair in _EXCLUSIVE):
                continue
            if "dtype" in names and size > 1 and any("dtype" not in subset for subset in found):
                continue  # no combination with a lever of unknown cost while something else fits
            known = [
                option for subset, option in found.items() if subset < names or (size > 1 and option.results in _EXACT)
            ]
            limit = min((_WORTHWHILE * _cost(option) for option in known), default=None)
            if limit is not None and limit <= (0 if size == 1 else _NEXT_TO_NOTHING * trials.step_seconds):
                continue
            best = _first_that_fits(trials, setup, chosen, budget, limit)
            if best is not None:
                found[names] = best
    if not found:
        _try_everything(trials, setup, levers, budget)
        leanest = min(trials.options, key=lambda option: option.peak_bytes)
        if leanest.peak_bytes > budget:
            raise DoesNotFitError(budget, leanest)
        return [min((option for option in trials.options if option.peak_bytes <= budget), key=_rank)]
    return sorted(found.values(), key=_rank)[:_MOST_ROWS]


def _cost(option: Option) -> float:
    return float("inf") if option.seconds is None else option.seconds


def _rank(option: Option) -> tuple[Any, ...]:
    """Sort by time lost, then by the effect on results, then by the number of changes."""
    changes = {"bit-identical": 0, "rounding": 1, "other masks": 2}.get(option.results, 3)
    return _cost(option), changes, len(option.setup.flags()), option.peak_bytes


def _first_that_fits(
    trials: Trials, start: Setup, levers: Sequence[_Lever], budget: int, limit: float | None
) -> Option | None:
    """The cheapest fitting levels of a combination of levers, if they cost less than ``limit``.

    Levels are tried cheapest first, those of the last lever soonest.
    """
    micro = any(lever.name == "micro" for lever in levers)
    best: Option | None = None
    for setup in _setups(start, [lever for lever in levers if lever.name != "micro"]):
        if setup.policy is not None:
            alone = trials.option(replace(start, policy=setup.policy))
            if alone is None or not _is_cheaper(alone, best, limit):
                continue  # nothing makes a policy much cheaper than it is alone
        option = trials.option(setup)
        if option is None or not _is_cheaper(option, best, limit):
            continue  # micro-batches do not make it cheaper
        if micro:
            option = _least_micro_batches(trials, setup, budget)
        if option is not None and option.peak_bytes <= budget and _is_cheaper(option, best, limit):
            best = option
    return best


def _is_cheaper(option: Option, best: Option | None, limit: float | None) -> bool:
    cost = _cost(option)
    return (limit is None or cost < limit) and (best is None or cost < _cost(best))


def _setups(start: Setup, levers: Sequence[_Lever]) -> Iterator[Setup]:
    if not levers:
        yield start
        return
    first, *rest = levers
    for level in first.levels:
        yield from _setups(level(start), rest)


def _least_micro_batches(trials: Trials, setup: Setup, budget: int) -> Option | None:
    """The setup with as few micro-batches as fit. More of them have no higher peak."""
    batch = trials.work(setup).profile.data.batch
    low, high = 1, batch
    best = trials.option(replace(setup, micro_batches=high))
    if best is None or best.peak_bytes > budget:
        return None
    while high - low > 1:
        # few micro-batches are likely, so the search begins at their end
        middle = min(2 * low, (low + high) // 2)
        option = trials.option(replace(setup, micro_batches=middle))
        if option is not None and option.peak_bytes <= budget:
            high, best = middle, option
        else:
            low = middle
    return best


def _try_everything(trials: Trials, start: Setup, levers: Sequence[_Lever], budget: int) -> None:
    """All levers at their strongest, for the least peak."""
    levels = {lever.name: lever.levels for lever in levers}
    strongest = start
    for name in ("mask", "attention"):
        strongest = levels[name][-1](strongest) if name in levels else strongest
    if "plan" in levels:
        trials.leanest_plan(strongest, budget)
    strongest = replace(strongest, offload=True)
    batch = trials.work(start).profile.data.batch
    for narrow in (_same, *levels.get("dtype", ())):
        for policy in (_same, *levels.get("policy", ())):
            setup = policy(narrow(strongest))
            trials.option(setup)
            if "micro" in levels:
                trials.option(replace(setup, micro_batches=batch))


def _same(setup: Setup) -> Setup:
    return setup

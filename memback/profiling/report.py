"""The one result of a profile: plain data with one JSON schema, from which everything is shown and written.

Sizes are in bytes, times in seconds, FLOPs count a multiply-add as 2. The words are the glossary's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import Meta, Struct, field

from memback.errors import MembackError, UsageError, shorten
from memback.files import read_regular
from memback.profiling.accounts import CATEGORIES, EXCHANGED, Buffer, Event

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = [
    "PARTS",
    "SCHEMA",
    "Arguments",
    "Buffer",
    "Device",
    "DevicePeak",
    "DeviceSegment",
    "DeviceStep",
    "Distributed",
    "Event",
    "FrontierPoint",
    "Layer",
    "Peak",
    "Rank",
    "RankRun",
    "Report",
    "Run",
    "SavedValue",
    "Seconds",
]

SCHEMA: Final = "memback.report/1"

PARTS: Final = (*CATEGORIES, "workspace")
"""What a peak is made up of."""

Count = Annotated[int, Meta(ge=0)]
Duration = Annotated[float, Meta(ge=0)]


class Profile(Struct, frozen=True, kw_only=True):
    """What was run; ``sha256`` is that of the definition in full, None where there was none.

    ``dtype`` names the floating-point dtypes of what ops gave, in the order in which they came up; of a PyTorch module,
    those of its parameters.
    """

    name: str
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    dtype: str
    sha256: str | None = None


class Arguments(Struct, frozen=True, kw_only=True):
    """Memory that exists before the step begins; never counted as an activation, nor in a peak.

    Of a model that several ranks train, this rank's: ``sharded_parameter_bytes`` are its shards, with their padding,
    and no part of ``parameter_bytes``; ``bucket_bytes`` the buckets in which gradients are reduced.
    """

    parameter_bytes: Count
    buffer_bytes: Count
    input_bytes: Count
    optimizer_bytes: Count = 0
    sharded_parameter_bytes: Count = 0
    bucket_bytes: Count = 0

    @property
    def total_bytes(self) -> int:
        """All of them."""
        return sum(self.by_name().values())

    def by_name(self) -> dict[str, int]:
        """All of them, by what they are called in tables, in bytes."""
        return {
            "parameters": self.parameter_bytes,
            "sharded parameters": self.sharded_parameter_bytes,
            "buffers": self.buffer_bytes,
            "inputs": self.input_bytes,
            "optimiser state": self.optimizer_bytes,
            "gradient buckets": self.bucket_bytes,
        }


class Seconds(Struct, frozen=True, kw_only=True):
    """Time of one step; ``backward`` is without recomputation."""

    forward: Duration
    backward: Duration
    recompute: Duration


class Peak(Struct, frozen=True, kw_only=True):
    """When the most bytes were live (above the arguments), and what they were.

    ``gathered`` and ``buckets`` are there where a model is trained by several ranks: parameters gathered from their
    shards, and buckets in which gradients are reduced, as far as the step has made them.
    """

    phase: Literal["forward", "backward", "recompute", "update"]
    path: str
    op: str
    saved: Count
    gradients: Count
    recomputed: Count
    workspace: Count
    outputs: Count
    gathered: Count = 0
    buckets: Count = 0

    @property
    def total_bytes(self) -> int:
        """The peak: the sum of its parts."""
        return sum(getattr(self, part) for part in PARTS)


class SavedValue(Struct, frozen=True, kw_only=True):
    """A value that a call keeps for backward.

    ``name`` is the op's own, ``bytes`` those of the whole buffer that it keeps alive, ``origin`` what made
    that buffer (``from`` in JSON), ``source`` on which line. ``buffer`` tells buffers apart within a run, by
    the timeline's buffer id: two values with the same one keep the same memory. None where it is not known.
    """

    name: str
    bytes: Count
    origin: str = field(name="from")
    source: str
    buffer: int | None = None


class Layer(Struct, frozen=True, kw_only=True):
    """One row: a call of an op in the forward pass, or ``count`` of them.

    ``saved_bytes`` are distinct saved buffers that it has made, whoever saves them, ``shared_bytes`` those
    that it saves and another call has made, and is charged for. ``saved`` lists what it saves, of both kinds.
    """

    path: str
    op: str
    call: Count
    output_shape: tuple[Count, ...]
    dtype: str
    saved_bytes: Count
    shared_bytes: Count
    parameter_bytes: Count
    flops: Count
    seconds: Duration | None
    recomputed: bool
    saved: tuple[SavedValue, ...]
    count: Annotated[int, Meta(ge=1)] = 1

    def describe(self) -> str:
        """The row as messages name it."""
        return f"layer {self.path or '(top)'} ({self.op}, call {self.call})"


class Run(Struct, frozen=True, kw_only=True):
    """One way to run the step. None stands for what was not predicted, not measured, or does not exist.

    ``peak`` is made up of the predicted peak's bytes, or of the measured one's where nothing was predicted.
    ``gradient_bytes`` are the parameters' gradients at the end of the step, ``bookkeeping_bytes`` Python's
    own small objects at the measured peak (and no part of it), ``rss_peak_bytes`` the growth of the process
    as the operating system sees it, ``allocator_peak_bytes`` and ``reserved_peak_bytes`` the growth of what PyTorch's
    allocator gave out and had from the device. ``seconds`` is the median of ``steps_timed`` steps. ``loss`` is null in
    JSON where it is not finite. ``left_bytes`` is what the step made and left behind, gradients of leaves apart, and
    ``left`` says by what it was made, most bytes first. ``buffers`` says of the timeline's buffers what they are.
    """

    mode: Literal["retain-all", "full", "checkpoint", "inference"]
    policy: str | None
    saved_bytes: Count
    predicted_peak_bytes: Count | None
    measured_peak_bytes: Count | None
    rss_peak_bytes: Count | None
    bookkeeping_bytes: Count | None = None
    allocator_peak_bytes: Count | None = None
    reserved_peak_bytes: Count | None = None
    gradient_bytes: Count = 0
    seconds: Seconds | None
    steps_timed: Count = 0
    flops: Count
    recomputed_flops: Count
    loss: float | None
    gradient_sha256: str | None
    peak: Peak
    layers: tuple[Layer, ...]
    left_bytes: Count = 0
    left: tuple[str, ...] = ()
    timeline: tuple[Event, ...] = ()
    buffers: tuple[Buffer, ...] = ()

    @property
    def label(self) -> str:
        """The mode, with its policy where it has one: ``checkpoint:sqrt``."""
        return self.mode if self.policy is None else f"{self.mode}:{self.policy}"

    def validate(self) -> None:
        """Raise unless rows add up to totals, nothing is counted twice, and the peak's parts sum to it.

        Raises:
            MembackError: they do not; it names the run, and the layer where it is one layer's fault.
        """
        if (self.policy is not None) != (self.mode == "checkpoint"):
            raise MembackError(f"run {self.label}: a policy belongs to mode checkpoint, and to no other")
        self._check_sharing()
        rows = sum(layer.saved_bytes for layer in self.layers)
        if rows != self.saved_bytes:
            raise MembackError(
                f"run {self.label}: its layers' saved bytes sum to {rows:,} B, but its total is {self.saved_bytes:,} B"
            )
        self._check_distinct()
        known = self.predicted_peak_bytes if self.predicted_peak_bytes is not None else self.measured_peak_bytes
        if known is not None and self.peak.total_bytes != known:
            raise MembackError(
                f"run {self.label}: what is alive at its peak ({self.peak.phase} of {self.peak.op}, layer"
                f" {self.peak.path or '(top)'}) sums to {self.peak.total_bytes:,} B, but the peak is"
                f" {known:,} B"
            )

    def _check_sharing(self) -> None:
        """A buffer that an earlier row lists was made there or before: here it must be shared."""
        known: dict[int, tuple[int, Layer]] = {}
        for layer in self.layers:
            where = f"run {self.label}: {layer.describe()}"
            again = 0
            listed = {value.buffer: value.bytes for value in layer.saved}
            for value in layer.saved:
                if value.buffer is None:
                    continue
                size, first = known.get(value.buffer, (listed[value.buffer], layer))
                if value.bytes != size:
                    raise MembackError(
                        f"{where}: {value.name} keeps buffer {value.buffer} of {value.bytes:,} B, which has"
                        f" {size:,} B in {first.describe()}"
                    )
            for buffer, size in listed.items():
                if buffer is not None:
                    again += size if buffer in known else 0
                    known.setdefault(buffer, (size, layer))
            if again > layer.shared_bytes:
                raise MembackError(
                    f"{where} shares {layer.shared_bytes:,} B, but {again:,} B of what it saves are"
                    " counted in an earlier layer: they would be counted twice"
                )

    def _check_distinct(self) -> None:
        """Where every saved value tells its buffer, the distinct ones are the saved bytes."""
        values = [value for layer in self.layers for value in layer.saved]
        if not values or any(value.buffer is None for value in values):
            return
        distinct = sum({value.buffer: value.bytes for value in values}.values())
        if distinct != self.saved_bytes:
            raise MembackError(
                f"run {self.label}: the distinct buffers that its layers save have {distinct:,} B, but"
                f" its total is {self.saved_bytes:,} B"
            )


class RankRun(Struct, frozen=True, kw_only=True):
    """What one rank's run of a mode comes to; as in :class:`Run`."""

    mode: str
    policy: str | None
    saved_bytes: Count
    gradient_bytes: Count
    predicted_peak_bytes: Count | None
    measured_peak_bytes: Count | None
    gradient_sha256: str | None
    peak: Peak

    @classmethod
    def of(cls, run: Run) -> RankRun:
        """The totals of a run."""
        return cls(**{name: getattr(run, name) for name in cls.__struct_fields__})


class Rank(Struct, frozen=True, kw_only=True):
    """What one rank's report comes to. ``stopped`` says why it is not whole, where it is not."""

    rank: Count
    arguments: Arguments
    runs: tuple[RankRun, ...]
    stopped: str | None = None

    @property
    def leading(self) -> RankRun | None:
        """The run that ranks are compared by: ``full``, else the last of all that train, else the first."""
        trained = [run for run in self.runs if run.mode != "inference"]
        full = (run for run in self.runs if run.mode == "full")
        return next(full, next(reversed(trained), next(iter(self.runs), None)))

    @property
    def memory_bytes(self) -> int:
        """What this rank needs in all: its arguments, and the peak of its leading run above them."""
        return self.arguments.total_bytes + (0 if self.leading is None else self.leading.peak.total_bytes)


class Distributed(Struct, frozen=True, kw_only=True):
    """How several ranks train the model, and which of them a report is of.

    ``rank`` is the one whose arguments and runs the report has. Where reports of several ranks have been merged it is
    the one that needs the most memory, and ``ranks`` are all that left a report, those that need the most first.
    ``stopped`` says why the rank's report is not whole, where it is not; ``gradient_as_bucket_view`` whether parameter
    gradients are in DDP's buckets, so that they need no memory besides.
    """

    strategy: str
    backend: str
    world_size: Annotated[int, Meta(ge=1)]
    rank: Count
    gradient_as_bucket_view: bool = False
    stopped: str | None = None
    ranks: tuple[Rank, ...] = ()

    @property
    def missing(self) -> list[int]:
        """The ranks of a merged report that have left none."""
        present = {rank.rank for rank in self.ranks}
        return [rank for rank in range(self.world_size) if rank not in present] if self.ranks else []

    def validate(self) -> None:
        """Raise unless ranks are there once, below the number of them, and the report's own leads.

        Raises:
            MembackError: they are not.
        """
        numbers = [self.rank, *(rank.rank for rank in self.ranks)]
        if max(numbers) >= self.world_size:
            raise MembackError(f"there is a rank {max(numbers)}, of {self.world_size} ranks from 0 on")
        if not self.ranks:
            return
        if len(set(numbers)) != len(self.ranks):
            raise MembackError(f"its ranks {', '.join(map(str, numbers[1:]))} are not all different, or lack its own")
        if self.ranks[0].rank != self.rank or self.ranks[0].memory_bytes < max(r.memory_bytes for r in self.ranks):
            raise MembackError(f"rank {self.rank} is not the first of its ranks, the one that needs the most memory")


class DevicePeak(Struct, frozen=True, kw_only=True):
    """What is allocated on a device when most is, in bytes of the allocator's blocks; and what it has reserved besides.

    ``gradients`` are of parameters and of activations, ``activations`` what a forward pass leaves for backward (or
    makes again there), ``libraries`` workspaces that libraries keep, ``workspace`` every other temporary.
    """

    parameters: Count = 0
    buffers: Count = 0
    inputs: Count = 0
    optimizer_state: Count = 0
    gradients: Count = 0
    activations: Count = 0
    workspace: Count = 0
    libraries: Count = 0
    fragmentation: Count = 0

    @property
    def total_bytes(self) -> int:
        """What is reserved: the sum of all."""
        return sum(getattr(self, name) for name in self.__struct_fields__)

    def by_name(self) -> dict[str, int]:
        """All of them, by what they are called in tables, in bytes."""
        return {
            name.replace("optimizer_state", "optimiser state"): getattr(self, name) for name in self.__struct_fields__
        }


class DeviceSegment(Struct, frozen=True, kw_only=True):
    """A segment that the allocator has from the device: its blocks from its start, each what it is for, and bytes.

    What a block is for is named as in :class:`DevicePeak`, or ``free``.
    """

    pool: Literal["small", "large"]
    blocks: tuple[tuple[str, Count], ...]

    @property
    def bytes(self) -> int:
        """Its size."""
        return sum(size for _, size in self.blocks)


class DeviceStep(Struct, frozen=True, kw_only=True):
    """What a whole training step takes on a device, in bytes, as PyTorch's allocator counts it there.

    ``forward_bytes`` is what is allocated after the forward pass less what was before it. The peaks are of the whole
    step with its update, and count what is there all the time: parameters, optimiser state, libraries' workspaces.
    ``reserved_peak_bytes`` is what the allocator has from the device. ``peak`` says what these are made up of.
    """

    forward_bytes: Count
    allocated_peak_bytes: Count
    reserved_peak_bytes: Count
    peak: DevicePeak | None = None

    def validate(self) -> None:
        """Raise unless what the peak is made up of adds up to it.

        Raises:
            MembackError: it does not.
        """
        if self.peak is None:
            return
        allocated = self.peak.total_bytes - self.peak.fragmentation
        if (allocated, self.peak.total_bytes) != (self.allocated_peak_bytes, self.reserved_peak_bytes):
            raise MembackError(
                f"what is at the device's peak sums to {allocated:,} B allocated and {self.peak.total_bytes:,} B"
                f" reserved, but these are {self.allocated_peak_bytes:,} B and {self.reserved_peak_bytes:,} B"
            )


class Device(Struct, frozen=True, kw_only=True):
    """A device that a report was predicted for, and the training step of mode ``full`` there.

    ``name`` is as ``--device cuda:NAME`` has it, ``title`` as the device's driver has it, ``capability`` the compute
    capability (major, minor). ``first`` is the first step, which makes the optimiser's state and libraries' workspaces,
    ``steady`` a later one, and ``planned`` a later one of mode ``checkpoint``; None where a mode was not run.
    ``static_bytes`` is what is allocated before the first step. ``unmodelled`` says of ops what is not known of the
    memory that they take: figures are then too low.
    ``assumed`` are the lines at which the step reads a number that nobody knows, which is taken to be 1.
    ``context_bytes`` is an estimate of what the driver and libraries take beside the allocator. ``segments`` are those
    at the steady step's peak. Where more would be reserved than there is, ``out_of_memory`` is what PyTorch would say;
    None where its allocator gets by, as it gives unused segments back.
    """

    name: str
    title: str
    capability: tuple[Count, Count]
    memory_bytes: Count
    static_bytes: Count = 0
    optimizer: str | None = None
    first: DeviceStep | None = None
    steady: DeviceStep | None = None
    planned: DeviceStep | None = None
    unmodelled: Mapping[str, str] = {}
    assumed: tuple[str, ...] = ()
    context_bytes: Count = 0
    segments: tuple[DeviceSegment, ...] = ()
    out_of_memory: str | None = None

    @property
    def needed_bytes(self) -> int | None:
        """What a training step needs: the most that is reserved, and the context; None where no step was run."""
        steps = [step for step in (self.first, self.steady) if step is not None]
        return max(step.reserved_peak_bytes for step in steps) + self.context_bytes if steps else None

    def validate(self) -> None:
        """Raise unless what its peaks are made up of adds up; see :meth:`DeviceStep.validate`.

        Raises:
            MembackError: it does not.
        """
        for step in (self.first, self.steady, self.planned):
            if step is not None:
                step.validate()


class FrontierPoint(NamedTuple):
    """A plan of a frontier: its peak in bytes, and what it costs more than keeping everything, in FLOPs.

    None of the others is both leaner and cheaper. The peak is the planner's, for the whole step above the arguments:
    a run of the plan takes no more.
    """

    peak_bytes: Count
    cost: Annotated[float, Meta(ge=0)]


class Report(Struct, frozen=True, kw_only=True):
    """The result of a profile. Shows itself in a terminal, and is written by :meth:`save` in any format.

    ``not_run`` says of modes in which the step can't be run why it can't. ``device`` is the device that is predicted
    for, where it is another than the machine's.
    """

    schema: Literal["memback.report/1"] = SCHEMA
    memback: str
    created: str
    machine: Mapping[str, Any]
    profile: Profile
    arguments: Arguments
    runs: tuple[Run, ...]
    frontier: tuple[FrontierPoint, ...] = ()
    distributed: Distributed | None = None
    not_run: Mapping[str, str] = {}
    device: Device | None = None

    @property
    def reference(self) -> Run | None:
        """The run that the others are compared with: ``full``, else the first that has gradients."""
        trained = [run for run in self.runs if run.gradient_sha256 is not None]
        return next((run for run in self.runs if run.mode == "full"), trained[0] if trained else None)

    @property
    def parts(self) -> tuple[str, ...]:
        """What peaks of this report can be made up of: what ranks exchange only where there are several."""
        return tuple(part for part in PARTS if part not in EXCHANGED or self.distributed is not None)

    def training_memory(self, run: Run) -> dict[str, int]:
        """What memory consists of at the run's peak, arguments included, in bytes; the total is their sum."""
        peak = run.peak
        return {
            **self.arguments.by_name(),
            "gradients": peak.gradients,
            "saved activations": peak.saved,
            "recomputed activations": peak.recomputed,
            "outputs": peak.outputs,
            "gathered parameters": peak.gathered,
            "buckets made in the step": peak.buckets,
            "workspace": peak.workspace,
        }

    def validate(self) -> None:
        """Raise unless every run's numbers add up; see :meth:`Run.validate` and :meth:`Distributed.validate`.

        Raises:
            MembackError: they do not.
        """
        for run in self.runs:
            run.validate()
        if self.device is not None:
            self.device.validate()
        if self.distributed is not None:
            self.distributed.validate()
            for rank in self.distributed.ranks[:1]:
                if rank.arguments != self.arguments or rank.runs != tuple(map(RankRun.of, self.runs)):
                    raise MembackError(f"what it says of rank {rank.rank} is not what its runs say")

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it: dicts, lists, strings, numbers and None."""
        content: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return content

    @classmethod
    def from_json(cls, data: bytes | str, source: str = "the report") -> Report:
        """Read a report, and check that its numbers add up. It is data: nothing in it is run.

        Args:
            data: JSON as UTF-8.
            source: what messages call it, such as the file's name.

        Raises:
            UsageError: it is not a whole JSON document, no report of memback's, of a schema that is not known
                here, or its numbers do not add up.
        """
        try:
            _check_schema(msgspec.json.decode(data, type=_Header).schema, source)
            report = msgspec.json.decode(data, type=cls)
        except RecursionError:
            raise UsageError(f"{source} is not a report of memback's: it is nested too deep") from None
        except msgspec.ValidationError as error:
            raise UsageError(f"{source} is not a report of memback's: {shorten(error)}") from None
        except (msgspec.DecodeError, UnicodeError) as error:
            raise UsageError(f"{source} is not a whole JSON document: {error}; was it cut off?") from None
        try:
            report.validate()
        except MembackError as error:
            raise UsageError(f"{source} contradicts itself: {error}") from None
        return report

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Report:
        """Read a report from a JSON file.

        Raises:
            UsageError: the file can't be read, or as :meth:`from_json`.
        """
        try:
            data = read_regular(path)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UsageError(f"Could not read the report {shorten(path)}: {reason}") from error
        return cls.from_json(data, str(path))

    def save(self, path: str | os.PathLike[str], force: bool = False) -> None:
        """Write the report in the format that the file's suffix names; an existing file only with ``force``.

        Raises:
            UsageError: no format has this suffix, the file exists, or its folder does not.
            MembackError: the system does not let it be written.
        """
        from memback.reports import write  # formats are built on this module, and imported when one is wanted

        write(self, path, force)

    def __rich__(self) -> RenderableType:
        from memback.reports.text import summary

        return summary(self)

    def _repr_html_(self) -> str:
        from memback.reports.html import fragment

        return fragment(self)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        """What IPython and Jupyter show: tables in a terminal, bars in a notebook."""
        from memback.reports.text import plain, summary

        return {"text/plain": plain(summary(self)), "text/html": self._repr_html_()}

    def __repr__(self) -> str:
        runs = ", ".join(f"{run.label} {run.saved_bytes:,} B" for run in self.runs)
        return f"<Report {self.profile.name!r}, saved: {runs or 'no runs'}>"


class _Header(Struct):
    schema: Any = None


def _check_schema(schema: Any, source: str) -> None:
    if schema == SCHEMA:
        return
    family, _, version = SCHEMA.rpartition("/")
    if not isinstance(schema, str) or schema.rpartition("/")[0] != family:
        found = "it has no `schema`" if schema is None else f"its `schema` is {schema!r:.80}"
        raise UsageError(f"{source} is not a report of memback's: {found} where {SCHEMA!r} is expected")
    given = schema.rpartition("/")[2]
    if given.isdecimal() and int(given[:9]) > int(version):
        raise UsageError(f"{source} has the newer schema {schema!r:.80}; this memback reads {SCHEMA!r}: update memback")
    raise UsageError(f"{source} has the unknown schema {schema!r:.80}; this memback reads {SCHEMA!r}")

"""``mb.save_on_disk``: saved activations wait for backward in a file instead of in memory.

The file has no name from the moment it is made (where the system can do that), so nothing is left of it however the
process ends. What backward needs is read again when it comes there, into a new buffer with the same bytes and the same
strides: gradients have the same bits.
"""

from __future__ import annotations

import os
import tempfile
import threading
import warnings
import weakref
from collections import defaultdict
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import psutil
from numpy.lib.stride_tricks import as_strided

from memback.engine.arrays import Array, Buffer, DryArray, buffer_bytes, is_row_major, root
from memback.engine.changes import changes
from memback.engine.hooks import saved_tensors_hooks
from memback.errors import MembackError, UsageError
from memback.files import explained

__all__ = ["OffloadWarning", "save_on_disk"]

_IN_MEMORY = ("tmpfs", "ramfs")
_PAGE = 4096


class OffloadWarning(UserWarning):
    """Offloading saves no memory."""


class _Space:
    """A file without a name, and which parts of it are free. Made when first written to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._file: IO[bytes] | None = None
        self._closed = False
        self._end = 0
        self._live = 0
        self._free: dict[int, list[int]] = defaultdict(list)

    def store(self, data: Array) -> int:
        """Write bytes (uint8), and say where they are.

        Raises:
            MembackError: the system does not let them be written. The file is then gone.
        """
        with self._lock:
            free = self._free.get(data.size)
            place = free.pop() if free else self._end
            try:
                with explained(self.folder / "memback's file of saved activations"):
                    self._write(place, data)
            except BaseException:
                self.close()
                raise
            self._end = max(self._end, place + data.size)
            self._live += 1
            return place

    def _write(self, place: int, data: Array) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="memback-", dir=self.folder, buffering=0)  # noqa: SIM115
        self._file.seek(place)
        rest = memoryview(data.data)
        while rest:
            rest = rest[self._file.write(rest) :]

    def load(self, place: int, data: Array) -> None:
        """Read bytes (uint8) from where :meth:`store` put them.

        Raises:
            MembackError: the system does not let them be read, or the file is gone.
        """
        with self._lock:
            if self._file is None or self._closed:
                raise MembackError(
                    "saved activations that were written to disk are gone: writing others failed, or the block of"
                    " save_on_disk ended with an exception. Run the forward pass again"
                )
            self._file.seek(place)
            rest = memoryview(data.data)
            while rest:
                read = self._file.readinto(rest)  # type: ignore[attr-defined]
                if not read:
                    raise MembackError(f"saved activations in a file in {self.folder} were cut off: {len(rest)} bytes")
                rest = rest[read:]

    def release(self, place: int, size: int) -> None:
        """Bytes are not needed any more."""
        self._live -= 1
        if self._live:
            self._free[size].append(place)
        else:
            self._free.clear()
            self._end = 0

    @property
    def empty(self) -> bool:
        """Whether nothing is stored."""
        return self._live == 0

    @property
    def closed(self) -> bool:
        """Whether the file was given up."""
        return self._closed

    def close(self) -> None:
        """Give the file up, with all that is in it."""
        with self._lock:
            self._closed = True
            if self._file is not None:
                self._file.close()
                self._file = None

    def __del__(self) -> None:
        self.close()


class _Entry:
    """A root buffer in the file; its part of the file is free again once this is no more referred to."""

    __slots__ = ("__weakref__", "buffer", "kind", "owner", "place", "shape", "size", "space", "strides", "time", "type")

    def __init__(self, owner: save_on_disk, space: _Space, buffer: Buffer, place: int | None) -> None:
        self.owner = owner
        self.space = space
        self.buffer = weakref.ref(buffer)
        self.kind: Any = type(buffer)
        self.time = changes.clock
        self.place = place
        self.shape, self.strides, self.type = buffer.shape, buffer.strides, buffer.dtype
        self.size = buffer_bytes(buffer)

    def __del__(self) -> None:
        self.owner._released(self)


class _View(NamedTuple):
    """An array in a stored buffer: the buffer, and where in it the array is."""

    entry: _Entry
    shape: tuple[int, ...]
    type: np.dtype[Any]
    strides: tuple[int, ...]
    offset: int


class save_on_disk(saved_tensors_hooks):
    """In the block, saved activations of at least ``min_bytes`` are written to a file, and read again for backward.

    Args:
        folder: where the file is made; by default the system's folder for temporary files, or ``/var/tmp`` where that
            one is itself in memory.
        min_bytes: smaller buffers stay in memory.

    Attributes:
        bytes_written, bytes_read: so far; on a dry run, what they would be.
        bytes_stored: in the file now.

    A root buffer is written once, however many calls save it or views of it. Arguments stay in memory, and so does what
    a checkpoint recomputes. The file has no name and disappears with the block, or with the last saved value if
    that outlives it. The operating system may keep some of the file in memory that is free otherwise (page cache);
    that is not counted anywhere here. On a dry run nothing is written, and memory is predicted as ever.

    Raises:
        UsageError: there is no such folder, or ``min_bytes`` is negative.
        MembackError: while the block runs: the disk is full, or what else keeps the file from being written or read.

    Warns:
        OffloadWarning: the folder is in memory itself (tmpfs).
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, min_bytes: int = _PAGE) -> None:
        if min_bytes < 0:
            raise UsageError(f"save_on_disk: `min_bytes` (={min_bytes}) must be 0 or more")
        super().__init__(_never, _never)
        self.min_bytes = min_bytes
        self.folder = Path(folder) if folder is not None else _default_folder()
        if not self.folder.is_dir():
            raise UsageError(f"There is no folder {self.folder} to keep saved activations in; make it first")
        if folder is not None and _is_in_memory(self.folder):
            warnings.warn(
                f"{self.folder} is in memory itself (tmpfs): activations that are saved there still take memory."
                " Choose a folder on a disk",
                OffloadWarning,
                stacklevel=2,
            )
        self.bytes_written = self.bytes_read = self.bytes_stored = 0
        self._space = _Space(self.folder)
        self._entries: weakref.WeakValueDictionary[int, _Entry] = weakref.WeakValueDictionary()

    def __exit__(self, kind: Any = None, *_: object) -> None:
        super().__exit__()
        if kind is not None or (self._space.empty and not self.entered):
            self._space.close()

    def _wants(self, array: Array) -> bool:
        return super()._wants(array) and _is_dense(root(array))

    def pack(self, array: Array) -> _View:
        """Have the buffer under an array in the file."""
        if self._space.closed:
            self._space = _Space(self.folder)
        buffer = root(array)
        entry = self._entries.get(id(buffer))
        known = entry is not None and entry.buffer() is buffer and entry.space is self._space
        if entry is None or not known or changes.since(buffer, entry.time):
            entry = self._entries[id(buffer)] = self._store(buffer)
        return _View(entry, array.shape, array.dtype, array.strides, _address(array) - _address(buffer))

    def _store(self, buffer: Any) -> _Entry:
        space = self._space
        entry = _Entry(self, space, buffer, None if isinstance(buffer, DryArray) else space.store(_flat(buffer)))
        self.bytes_written += entry.size
        self.bytes_stored += entry.size
        return entry

    def unpack(self, packed: _View) -> Array:
        """The array, in a buffer that was read from the file unless it is in memory still."""
        entry, shape, dtype, strides, offset = packed
        buffer: Any = entry.buffer()
        if buffer is None or changes.since(buffer, entry.time):
            buffer = self._load(entry)
        if (shape, strides, dtype) == (buffer.shape, buffer.strides, buffer.dtype):
            return buffer
        if isinstance(buffer, DryArray):
            return type(buffer)(shape, dtype, strides, buffer)  # type: ignore[return-value]
        return np.ndarray(shape, dtype, buffer=_flat(buffer), offset=offset, strides=strides)

    def _load(self, entry: _Entry) -> Any:
        self.bytes_read += entry.size
        buffer: Any
        if entry.place is None:
            buffer = entry.kind(entry.shape, entry.type, entry.strides)
        else:
            buffer = _empty(entry.shape, entry.type, entry.strides)
            entry.space.load(entry.place, _flat(buffer))
        entry.buffer, entry.time = weakref.ref(buffer), changes.clock
        return buffer

    def _released(self, entry: _Entry) -> None:
        self.bytes_stored -= entry.size
        if entry.place is not None:
            entry.space.release(entry.place, entry.size)
            if entry.space.empty and not self.entered:
                entry.space.close()


def _never(value: Any) -> Any:
    raise AssertionError("save_on_disk packs by itself")


def _order(buffer: Buffer) -> list[int]:
    """A buffer's dimensions from the longest stride to the shortest."""
    return sorted(range(buffer.ndim), key=lambda i: -buffer.strides[i])


def _is_dense(buffer: Buffer) -> bool:
    """Whether a buffer's elements fill its memory, in whichever order of the dimensions."""
    order = _order(buffer)
    shape, strides = (tuple(values[i] for i in order) for values in (buffer.shape, buffer.strides))
    return is_row_major(shape, strides, buffer.itemsize)


def _flat(buffer: Buffer) -> Array:
    """A dense buffer's bytes, as they lie in memory (no copy)."""
    rows = buffer.transpose(_order(buffer))
    return rows.reshape(-1).view(np.uint8)


def _empty(shape: tuple[int, ...], dtype: np.dtype[Any], strides: tuple[int, ...]) -> Buffer:
    """Room for a dense buffer, its dimensions in the same order in memory."""
    if is_row_major(shape, strides, dtype.itemsize):
        return np.empty(shape, dtype)
    return np.empty_like(as_strided(np.empty(1, dtype), shape, strides))


def _address(array: Any) -> int:
    """Where in memory an array begins; an array without memory begins nowhere in particular."""
    if isinstance(array, DryArray):
        return 0
    address: int = array.__array_interface__["data"][0]
    return address


def _default_folder() -> Path:
    usual = Path(tempfile.gettempdir())
    if _is_in_memory(usual) and os.access("/var/tmp", os.W_OK) and not _is_in_memory(Path("/var/tmp")):
        return Path("/var/tmp")
    return usual


def _is_in_memory(folder: Path) -> bool:
    """Whether a folder is on a file system that is in memory, as far as the system tells."""
    place = folder.resolve()
    mounts = {Path(p.mountpoint): p.fstype for p in psutil.disk_partitions(all=True)}
    return next((mounts[above] in _IN_MEMORY for above in (place, *place.parents) if above in mounts), False)

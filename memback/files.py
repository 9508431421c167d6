"""Files: written whole or not at all, and read up to a limit."""

from __future__ import annotations

import errno
import os
import secrets
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from memback.errors import MembackError, UsageError, shorten

__all__ = ["PACKAGE", "check_regular", "check_target", "explained", "read_regular", "write_atomically"]

PACKAGE = Path(__file__).parent
"""The folder that memback itself is in."""

_LEAST_STEP = 2**16

MOST_READ = 2**30
"""Bytes of the largest text file that is read."""

_REMEDIES = {
    errno.ENOSPC: "free some space or write to another disk",
    errno.EFBIG: "allow larger files (ulimit -f) or write less",
    errno.EDQUOT: "free some of your quota or write to another disk",
    errno.EACCES: "allow writing to the folder or choose another one",
    errno.EPERM: "allow writing to the folder or choose another one",
    errno.EROFS: "choose a folder on a disk that can be written to",
}

_NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What a file system says that knows no second name for a file."""

_PREFIX, _SUFFIX = ".memback-", ".tmp"
_STALE_SECONDS = 60

_KILLING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def check_target(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Refuse a file that :func:`write_atomically` would refuse, before hours of work went into its content.

    Whether its folder can be written to is tried with a temporary file.

    Raises:
        UsageError: there is no such folder, ``path`` is one or has too long a name, or the file exists and
            ``overwrite`` is false.
        MembackError: the system does not let it be written.
    """
    target = _checked(path, overwrite)
    with explained(target):
        if _is_written_to_directly(target):
            if not os.access(target, os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        else:
            with _temporary(Path(os.path.realpath(target))):
                pass


def write_atomically(path: str | os.PathLike[str], content: bytes | str, overwrite: bool = False) -> None:
    """Write ``content`` (text as UTF-8) to ``path``: under a temporary name in its folder, then renamed.

    Whatever goes wrong, ``path`` is as it was and no temporary file is left. One that a killed process has left there
    is removed. A device or a pipe can't be renamed onto; it is written to directly.

    Raises:
        UsageError: as :func:`check_target`; without ``overwrite`` also if another process has made the file meanwhile.
        MembackError: the system does not let it be written (disk full, no permission, ...).
    """
    target = _checked(path, overwrite)
    data = content.encode() if isinstance(content, str) else content
    with explained(target):
        if _is_written_to_directly(target):
            target.write_bytes(data)
        else:
            _publish(Path(os.path.realpath(target)), data, overwrite)


def read_regular(path: str | os.PathLike[str], most: int = MOST_READ) -> bytes:
    """The content of a file. A device or a pipe is refused, since it may have no end, and so is a larger file.

    Args:
        path: of the file.
        most: bytes that it may have.

    Raises:
        OSError: the system does not let it be read.
        UsageError: it is no regular file, or has more than ``most`` bytes.
    """
    check_regular(path)
    parts, left = [], most + 1
    with Path(path).open("rb") as file:
        # read() takes as much memory as it is asked for, and some files of the system are larger than they say.
        step = max(os.fstat(file.fileno()).st_size + 1, _LEAST_STEP)
        while left and (part := file.read(min(left, step))):
            parts.append(part)
            left -= len(part)
    if not left:
        raise UsageError(f"{shorten(path)} has more than {most:,} B: it is none of memback's files")
    return b"".join(parts)


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse what is no regular file, before it is opened: opening a pipe waits for a writer.

    Raises:
        OSError: there is no such file, or it can't be looked at.
        UsageError: it is a device, a pipe or a socket.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UsageError(f"{shorten(path)} is a device or a pipe, which may never end: copy it into a file first")


def _checked(path: str | os.PathLike[str], overwrite: bool) -> Path:
    """The target, unless what is there already, or not there, forbids it."""
    target = Path(path)
    with explained(target):
        try:
            target.lstat()
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise UsageError(f"{shorten(target)} has too long a name: choose a shorter one") from None
        if target.is_dir():
            raise UsageError(f"{target} is a folder; name a file in it")
        if not target.parent.is_dir():
            raise UsageError(f"There is no folder {target.parent} for {target.name}; make it first, or write elsewhere")
        if not overwrite and target.is_file():
            raise _exists(target)
    return target


def _exists(target: Path) -> UsageError:
    return UsageError(f"File already exists, will not overwrite without --force: {target}")


def _is_written_to_directly(target: Path) -> bool:
    return target.exists() and not target.is_file()


def _publish(target: Path, data: bytes, overwrite: bool) -> None:
    with _temporary(target) as (temporary, file):
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        file.close()
        if overwrite:
            temporary.replace(target)
        else:
            _rename_to_new(temporary, target)
    _remove_stale(target.parent)


@contextmanager
def _temporary(target: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file in the folder of ``target`` with its permissions, locked while it is open; removed after the block."""
    temporary = target.with_name(f"{_PREFIX}{secrets.token_hex(8)}{_SUFFIX}")
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, 0o666 if mode is None else mode & 0o600)

    with _killed_in_order(), open(temporary, "xb", opener=opener) as file:
        try:
            _lock(file)
            if mode is not None:
                temporary.chmod(mode)
            yield temporary, file
        finally:
            with suppress(OSError):
                file.close()
            with suppress(OSError):
                temporary.unlink()


def _rename_to_new(temporary: Path, target: Path) -> None:
    """Give the file its name, unless a file of this name has come up meanwhile."""
    try:
        try:
            os.link(temporary, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
            try:
                temporary.replace(target)
            except BaseException:
                target.unlink()
                raise
    except FileExistsError:
        raise _exists(target) from None


def _remove_stale(folder: Path) -> None:
    """Remove temporary files of processes that were killed: old ones that no process holds any more."""
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                with path.open("rb") as file:
                    if _lock(file):
                        path.unlink()


def _lock(file: BinaryIO) -> bool:
    """Lock a file, unless another process has, or the system knows no locks."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


class _KilledError(BaseException):
    """A signal has come that ends the process."""


@contextmanager
def _killed_in_order() -> Iterator[None]:
    """In the block a signal that would kill the process leaves the block first, so that it is cleaned up."""
    before: dict[int, Any] = {}

    def leave(number: int, _: object) -> None:
        raise _KilledError(number)

    def restore() -> None:
        while before:
            signal.signal(*before.popitem())

    if threading.current_thread() is threading.main_thread():  # no other may set handlers
        for number in _KILLING:
            if signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, leave)
    try:
        yield
    except _KilledError as killed:
        restore()
        os.kill(os.getpid(), killed.args[0])
        raise
    finally:
        restore()


@contextmanager
def explained(target: Path) -> Iterator[None]:
    """Raise a system error in the block as a :class:`MembackError` with its remedy."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        remedy = _REMEDIES.get(error.errno or 0, "choose another place")
        raise MembackError(f"Could not write {target}: {reason}; {remedy}") from error

"""Writing files so that there is either the whole new file or nothing new."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from memback.errors import MembackError, UsageError

__all__ = ["check_target", "explained", "write_atomically"]

_REMEDIES = {
    errno.ENOSPC: "free some space or write to another disk",
    errno.EFBIG: "allow larger files (ulimit -f) or write less",
    errno.EDQUOT: "free some of your quota or write to another disk",
    errno.EACCES: "allow writing to the folder or choose another one",
    errno.EPERM: "allow writing to the folder or choose another one",
    errno.EROFS: "choose a folder on a disk that can be written to",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def check_target(path: str | os.PathLike[str], overwrite: bool) -> None:
    """Refuse a file that :func:`write_atomically` would refuse, before hours of work went into its content.

    Raises:
        UsageError: there is no such folder, ``path`` is one, or the file exists and ``overwrite`` is false.
    """
    target = Path(path)
    if target.is_dir():
        raise UsageError(f"{target} is a folder; name a file in it")
    if not target.parent.is_dir():
        raise UsageError(f"There is no folder {target.parent} for {target.name}; make it first, or write elsewhere")
    if not overwrite and target.is_file():
        raise UsageError(f"File already exists, will not overwrite without --force: {target}")


def write_atomically(path: str | os.PathLike[str], content: bytes | str, overwrite: bool = False) -> None:
    """Write ``content`` (text as UTF-8) to ``path``: under a temporary name beside it, then renamed.

    Whatever goes wrong, ``path`` is as it was and no temporary file is left. A device or a pipe can't be
    renamed onto; it is written to directly.

    Raises:
        UsageError: as :func:`check_target`.
        MembackError: the system does not let it be written (disk full, no permission, ...).
    """
    check_target(path, overwrite)
    data = content.encode() if isinstance(content, str) else content
    target = Path(path)
    with explained(target):
        if target.exists() and not target.is_file():
            target.write_bytes(data)
        else:
            _replace(Path(os.path.realpath(target)), data)


def _replace(target: Path, data: bytes) -> None:
    temporary = target.with_name(f".memback-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


@contextmanager
def explained(target: Path) -> Iterator[None]:
    """Tell an error of the system in the block as a :class:`MembackError` with its remedy."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        remedy = _REMEDIES.get(error.errno or 0, "choose another place")
        raise MembackError(f"Could not write {target}: {reason}; {remedy}") from error

"""Freed memory that is kept for the next array.

An array of 128 KiB or more that is freed goes back to the operating system at once, as glibc is set up, and the next
one comes in pages that the system has to fill with zeros first, one fault each. In a step of backprop the same sizes
come and go all the time, so that this can take a tenth of it or more. :func:`keep_freed_memory` tells the C library to
keep what is freed. On Linux it also asks for that memory in huge pages, of 2 MiB instead of 4 KiB, which the processor
finds sooner (NumPy itself asks for them for arrays of 4 MiB and more). The price: the resident set stays at its highest
from then on, in steps of 2 MiB. No count of bytes changes, of arrays asked for or of arrays predicted.

Off unless it is asked for; ``memback train`` asks for it. Without glibc (macOS, Windows, musl) nothing is done.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

__all__ = ["keep_freed_memory"]

# malloc.h
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3

_TRIM_DEFAULT = 128 * 1024
_MMAP_DEFAULT = 128 * 1024
_MMAP_MOST = 4 * 1024 * 1024 * ctypes.sizeof(ctypes.c_long)
"""HEAP_MAX_SIZE / 2 in glibc: the largest threshold that it takes, 32 MiB on a 64-bit system."""
_TRIM_MOST = 2**31 - 1
"""The largest that mallopt's int holds: 2 GiB of freed memory may stay."""
_TOP_PAD_DEFAULT = 128 * 1024

_MADV_HUGEPAGE = 14
_HUGE_PAGE = 2 * 1024 * 1024
_HUGE = 2**30
"""Bytes of the heap that are asked for in huge pages. Until they are written to, they are addresses and no memory."""


@cache
def _library() -> ctypes.CDLL | None:
    """The C library of this process, if it is glibc."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") else None


@cache
def _mallopt() -> Callable[[int, int], int] | None:
    library = _library()
    if library is None:
        return None
    function = library.mallopt
    function.argtypes, function.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    return function


def keep_freed_memory(keep: bool = True) -> bool:
    """Have the C library keep freed memory of this process for the next array, or (``keep=False``) give it back.

    Arrays of up to 32 MiB (the most that glibc allows) are then cut from memory that stays, up to 2 GiB of it; larger
    ones come from the system as before. The first GiB comes in huge pages, where Linux gives them to those who ask.
    ``keep=False`` sets both limits to glibc's 128 KiB and hands back what is free now; the one thing that can't be had
    back is that glibc itself raises them in a process that frees large arrays.

    Returns:
        Whether the C library took it: False where it is not glibc.

    Source: mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD; madvise(2), MADV_HUGEPAGE.
    """
    mallopt = _mallopt()
    if mallopt is None:
        return False
    mmap, trim = (_MMAP_MOST, _TRIM_MOST) if keep else (_MMAP_DEFAULT, _TRIM_DEFAULT)
    taken = bool(mallopt(_M_MMAP_THRESHOLD, mmap)) and bool(mallopt(_M_TRIM_THRESHOLD, trim))
    library = _library()
    assert library is not None
    if not keep:
        library.malloc_trim(0)
    elif taken and _gives_huge_pages():
        _ask_for_huge_pages(library, mallopt)
    return taken


def _gives_huge_pages() -> bool:
    """Whether madvise gets huge pages, and addresses that are not in use count against no limit."""
    try:
        given = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
        strict = Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    except OSError:
        return False
    return "[madvise]" in given and not strict and sys.maxsize > 2**32


def _ask_for_huge_pages(library: ctypes.CDLL, mallopt: Callable[[int, int], int]) -> None:
    """Grow the heap by a GiB of addresses now, because madvise applies to existing addresses alone."""
    for name, result, arguments in (
        ("malloc", ctypes.c_void_p, [ctypes.c_size_t]),
        ("free", None, [ctypes.c_void_p]),
        ("sbrk", ctypes.c_void_p, [ctypes.c_ssize_t]),
        ("madvise", ctypes.c_int, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    mallopt(_M_TOP_PAD, _HUGE)
    place = library.malloc(_MMAP_MOST // 2)  # more than is free at the heap's end, so that it has to grow
    mallopt(_M_TOP_PAD, _TOP_PAD_DEFAULT)
    end = library.sbrk(0)
    library.free(place)
    start = -(-(place or end) // _HUGE_PAGE) * _HUGE_PAGE
    size = (end - start) // _HUGE_PAGE * _HUGE_PAGE
    if 0 < size <= 2 * _HUGE:  # elsewhere it is not on the heap: another thread's memory, or no room for it to grow
        library.madvise(start, size, _MADV_HUGEPAGE)

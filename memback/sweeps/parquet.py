"""Reads Parquet files in a process of its own, because pyarrow ends the one that reads certain damaged files."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

from memback.errors import UsageError, shorten
from memback.files import PACKAGE

__all__ = ["main", "read"]

_ROOT = str(PACKAGE.parent)
_COMMAND = f"import sys; sys.path.append({_ROOT!r}); from memback.sweeps import parquet; parquet.main()"


def read(content: bytes, source: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """The columns' names and the rows of a file's content; ``source`` is what messages call it.

    Raises:
        UsageError: it is no Parquet file, or a damaged one.
    """
    done = subprocess.run([sys.executable, "-c", _COMMAND], input=content, capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace") if done.returncode == 2 else "it ends the process that reads it"
        raise UsageError(f"{source} can't be read as Parquet: {shorten(reason)}")
    names, rows = pickle.loads(done.stdout)  # what this program has written a moment ago
    return names, rows


def main() -> None:
    """Read a file's content on standard input, and write names and rows to standard output for :func:`read`.

    It ends without the interpreter's clean-up, in which pyarrow's threads abort the process once in a few hundred
    times.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(
            pa.BufferReader(sys.stdin.buffer.read()), page_checksum_verification=True, use_threads=False
        )
        status, out, said = 0, sys.stdout.buffer, pickle.dumps((table.column_names, table.to_pylist()))
    except (pa.ArrowException, OSError, ValueError) as error:
        status, out, said = 2, sys.stderr.buffer, str(error).encode("utf-8", "replace")
    out.write(said)
    out.flush()
    os._exit(status)

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from memback.errors import MembackError, UsageError
from memback.files import check_target, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_with(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def test_text_and_bytes_arrive_whole(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.txt", "µ\n")
    write_atomically(tmp_path / "b.bin", b"\x00\xff")
    assert (tmp_path / "a.txt").read_bytes() == "µ\n".encode()
    assert (tmp_path / "b.bin").read_bytes() == b"\x00\xff"
    assert names(tmp_path) == ["a.txt", "b.bin"]


def test_an_existing_file_is_kept_without_force(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    target.write_text("old")
    with pytest.raises(UsageError, match="File already exists, will not overwrite without --force: .*json"):
        write_atomically(target, "new")
    assert target.read_text() == "old"
    write_atomically(target, "new", overwrite=True)
    assert target.read_text() == "new"
    assert names(tmp_path) == ["report.json"]


def test_overwriting_keeps_the_permissions_and_follows_a_link(tmp_path: Path) -> None:
    target = tmp_path / "private"
    target.write_text("old")
    target.chmod(0o600)
    link = tmp_path / "link"
    link.symlink_to(target)
    write_atomically(link, "new", overwrite=True)
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise fail_with(errno.ENOSPC)

    target = tmp_path / "report.json"
    target.write_text("old")
    monkeypatch.setattr(os, "fsync", fail) if step == "fsync" else monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(MembackError, match="no space left.*; free some space"):
        write_atomically(target, "new", overwrite=True)
    assert target.read_text() == "old"
    assert names(tmp_path) == ["report.json"]


def test_an_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "report.json", "new")
    assert names(tmp_path) == []


def test_a_refusal_of_the_system_is_no_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise fail_with(errno.EACCES)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(MembackError, match="permission denied; allow writing") as refusal:
        write_atomically(tmp_path / "report.json", "new")
    assert not isinstance(refusal.value, UsageError)


def test_a_folder_and_a_missing_folder_are_refused_early(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder; name a file in it"):
        check_target(tmp_path, overwrite=True)
    with pytest.raises(UsageError, match="There is no folder .*missing for a.json; make it first"):
        check_target(tmp_path / "missing" / "a.json", overwrite=True)
    check_target(tmp_path / "a.json", overwrite=False)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()), daemon=True)
    reader.start()
    write_atomically(pipe, "through")
    reader.join(timeout=10)
    assert received == [b"through"]
    assert pipe.is_fifo()

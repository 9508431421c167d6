from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from memback.errors import MembackError, UsageError, shorten
from memback.files import check_target, read_regular, write_atomically

posix = pytest.mark.skipif(os.name != "posix", reason="asks for a POSIX system")


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

    monkeypatch.setattr(os, "open", refuse)
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


@posix
def test_whether_a_folder_can_be_written_to_is_found_out_before_the_work(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):
        folder = Path("/proc/self")  # root may write into any folder of a real disk
    with pytest.raises(MembackError, match=r"Could not write .*a\.json: .*; (allow writing|choose)") as refused:
        check_target(folder / "a.json", overwrite=False)
    assert not isinstance(refused.value, UsageError)


def test_trying_leaves_nothing_and_touches_nothing(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    check_target(target, overwrite=False)
    target.write_text("old")
    check_target(target, overwrite=True)
    assert names(tmp_path) == ["a.json"]
    assert target.read_text() == "old"


def test_too_long_a_name_is_a_wrong_request_whose_message_is_short(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has too long a name") as refused:
        check_target(tmp_path / ("a" * 3000), overwrite=False)
    assert len(str(refused.value)) < 400


@posix
def test_a_temporary_file_is_never_more_open_than_the_file_that_it_becomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "private"
    target.write_text("old")
    target.chmod(0o600)
    modes = []

    def look(_: int) -> None:
        modes.extend(path.stat().st_mode & 0o777 for path in tmp_path.iterdir())

    monkeypatch.setattr(os, "fsync", look)
    made = os.open
    monkeypatch.setattr(os, "open", lambda *a, **k: (made(*a, **k), look(0))[0])
    write_atomically(target, "new", overwrite=True)
    assert set(modes) == {0o600}
    assert len(modes) > 2


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_make_the_same_new_file_one_does(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise fail_with(errno.EPERM)

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    target = tmp_path / "report.json"
    barrier = threading.Barrier(8)
    made: list[str] = []
    refused: list[str] = []

    def write(content: str) -> None:
        barrier.wait()
        try:
            write_atomically(target, content)
        except UsageError as error:
            refused.append(str(error))
        else:
            made.append(content)

    threads = [threading.Thread(target=write, args=(str(i),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [target.read_text()]
    assert len(refused) == 7
    assert all("will not overwrite without --force" in message for message in refused)
    assert names(tmp_path) == ["report.json"]


@posix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_kill_while_a_file_is_written_leaves_nothing_and_is_still_a_kill(name: str, tmp_path: Path) -> None:
    code = (
        "import os, sys, signal; from memback.files import write_atomically;"
        f"signal.signal(signal.{name}, signal.SIG_DFL);"  # a job in the background may have begun by ignoring it
        f"os.fsync = lambda _: os.kill(os.getpid(), signal.{name});"
        "write_atomically(sys.argv[1], 'new', overwrite=True)"
    )
    target = tmp_path / "report.json"
    target.write_text("old")
    result = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, check=False, text=True)
    assert result.returncode == -getattr(signal, name), result.stderr
    assert names(tmp_path) == ["report.json"]
    assert target.read_text() == "old"


@posix
def test_temporary_files_of_killed_processes_are_removed_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    import fcntl

    for name in ("dead", "living", "young"):
        path = tmp_path / f".memback-{name}.tmp"
        path.write_text("half")
        if name != "young":
            os.utime(path, (0, 0))
    with (tmp_path / ".memback-living.tmp").open("rb") as living:
        fcntl.flock(living, fcntl.LOCK_EX)
        write_atomically(tmp_path / "a", "new")
    assert names(tmp_path) == [".memback-living.tmp", ".memback-young.tmp", "a"]


@posix
@pytest.mark.parametrize("kind", ["device", "pipe"])
def test_what_may_have_no_end_is_not_read(kind: str, tmp_path: Path) -> None:
    path = Path("/dev/zero")
    if kind == "pipe":
        path = tmp_path / "pipe"
        os.mkfifo(path)
    with pytest.raises(UsageError, match="is a device or a pipe, which may never end: copy it into a file first"):
        read_regular(path)


def test_no_more_is_read_than_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_regular(path, most=5) == b"12345"
    with pytest.raises(UsageError, match="has more than 4 B"):
        read_regular(path, most=4)


def test_a_long_value_is_shortened_and_its_length_told() -> None:
    assert shorten("a" * 200) == "a" * 200
    assert shorten("a" * 1_000_000) == "a" * 100 + "… (1,000,000 characters)"

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memback import commands
from memback._version import __version__
from memback.commands import REGISTRY, main
from memback.errors import MembackError, UsageError

ROOT = Path(commands.__file__).parents[2]


def run(code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        **options,
    )


def test_help_names_every_subcommand_and_imports_none() -> None:
    code = (
        "import sys; from memback.commands import main; code = main(sys.argv[1:]);"
        "unwanted = ('memback.commands.', 'memback.profiling', 'msgspec');"
        "loaded = [m for m in sys.modules if m.startswith(unwanted)];"
        "sys.exit(code or loaded or 0)"
    )
    result = run(code, "--help")
    assert result.returncode == 0, result.stderr
    for name in REGISTRY:
        assert f" {name} " in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_no_request_gets_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "Usage: memback [OPTIONS] COMMAND" in capsys.readouterr().out


@pytest.mark.parametrize("name", REGISTRY)
def test_every_subcommand_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"memback {name}" in text
    assert "Example: memback " in text
    for option in ("--json", "--quiet"):
        assert option in text


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"memback, version {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lsit"], "No such command 'lsit'"),
        (["list", "--jsn", "x"], "No such option"),
        (["list", "surplus"], "unexpected extra argument"),
        (["list", "--json"], "requires an argument"),
    ],
)
def test_a_wrong_request_ends_in_one_message_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("`width` (=3) must be even; use 4"), 2, "Error: `width` (=3) must be even; use 4\n"),
        (MembackError("the disk [/dev/x] is full"), 1, "Error: the disk [/dev/x] is full\n"),
        (MembackError("\x1b[31mred\nline\r"), 1, "Error: \\x1b[31mred\nline\\r\n"),
        (KeyboardInterrupt(), 130, "Error: Interrupted\n"),
        (MemoryError("2 GiB"), 1, "Error: Out of memory (2 GiB); use a smaller batch, or a dry run\n"),
    ],
)
def test_an_error_becomes_one_line_and_its_exit_code(
    error: BaseException,
    code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("memback.commands.list._collect", fail)
    assert main(["list"]) == code
    printed = capsys.readouterr()
    assert printed.err.lstrip("\n") == message
    assert printed.out == ""


def defect() -> None:
    raise ZeroDivisionError("by\x1b[31m zero")


def test_an_exception_that_nobody_foresaw_is_one_line_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("memback.commands.list._collect", defect)
    assert main(["list"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith(f"Error: This is a bug in memback {__version__}: ZeroDivisionError: by\\x1b[31m zero (in ")
    assert "report it" in line
    assert "--traceback" in line


@pytest.mark.parametrize("way", ["after", "before", "environment"])
def test_its_traceback_is_shown_to_those_who_ask_for_it(
    way: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("memback.commands.list._collect", defect)
    if way == "environment":
        monkeypatch.setenv("MEMBACK_TRACEBACK", "1")
    arguments = {"after": ["list", "--traceback"], "before": ["--traceback", "list"], "environment": ["list"]}[way]
    assert main(arguments) == 1
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == "Traceback (most recent call last):"
    assert last.startswith("Error: This is a bug in memback")


def test_a_foreseen_error_s_traceback_is_shown_to_those_who_ask_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "nowhere", "--traceback"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback (most recent call last):")
    assert "\nError: " in printed


CONTROL = "\x1b]0;owned\x07\x1b[31mred\x9b1m\u202e"
"""Sets a terminal's title, colours it twice, and has it write from right to left."""


@pytest.mark.parametrize(
    "arguments",
    [
        [CONTROL],
        ["list", CONTROL],
        ["list", f"--{CONTROL}"],
        ["profile", CONTROL],
        ["profile", "digits", "--set", f"model.{CONTROL}=1"],
        ["profile", "digits", "--set", f"model.hidden={CONTROL}"],
        ["profile", "digits", "--policy", CONTROL],
        ["plan", "digits", "--budget", CONTROL],
        ["plan", "digits", "--budget", "1MiB", "--planner", CONTROL],
        ["profile", "digits", "-o", f"{CONTROL}.pdf"],
        ["profile", "digits", "--plan", CONTROL],
        ["report", CONTROL],
        ["diff", CONTROL, CONTROL],
        ["sweep", "digits", "--grid", f"{CONTROL}=1"],
    ],
)
def test_a_terminal_gets_no_control_character_of_a_request(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr().err
    assert "Error: " in printed
    assert all(c.isprintable() or c == "\n" for c in printed), ascii(printed)


@pytest.mark.skipif(os.name != "posix", reason="a shell's pipe")
def test_a_reader_that_goes_away_is_no_error_message() -> None:
    code = "import sys; from memback.commands import main; sys.exit(main(sys.argv[1:]))"
    command = f'"{sys.executable}" -c "{code}" --help | true'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment, check=False)
    assert result.stderr == ""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is always full")
def test_a_full_disk_under_standard_output_is_one_message() -> None:
    code = "import sys; from memback.commands import main; sys.exit(main(sys.argv[1:]))"
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-c", code, "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        )
    assert result.returncode == 1
    assert result.stderr == "Error: Standard output: No space left on device\n"


@pytest.mark.parametrize("way", [["-m", "memback"], [str(ROOT / "cli.py")]])
def test_module_and_script_are_the_same_command(way: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, *way, "--version"], capture_output=True, text=True, env=environment, check=True
    )
    assert result.stdout == f"memback, version {__version__}\n"


@pytest.mark.skipif(os.name != "posix", reason="closes a descriptor as a POSIX shell does")
@pytest.mark.parametrize("closed", [(1,), (1, 2), (2,)])
def test_a_closed_stream_is_said_or_leads_nowhere(closed: tuple[int, ...]) -> None:
    code = "import sys; from memback.commands import main; sys.exit(main(['list']))"
    shell = f'exec {sys.executable} -c "$0" ' + " ".join(f"{number}>&-" for number in closed)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(["sh", "-c", shell, code], capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == (1 if 1 in closed else 0)
    if closed == (1,):
        assert result.stderr == (
            "Error: Standard output is closed: send it to a file, or to /dev/null if nothing is to be shown\n"
        )


@pytest.mark.parametrize(
    "arguments",
    [
        ["notes", "--section"],
        ["profile"],
        ["report"],
        pytest.param(["torch"], marks=pytest.mark.torch),
        ["profile", "digits", "--mode"],
    ],
)
def test_a_message_is_no_longer_than_a_page_whatever_was_typed(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "x[red]:bomb:\x1b[31m" * 5_000]) != 0
    said = capsys.readouterr().err
    assert 0 < len(said) < 11_000
    assert "\x1b" not in said
    assert "[red]:bomb:" in said

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from memback.errors import UsageError
from memback.profiling import definition
from memback.profiling.definition import Profile, Train, load, load_data, make_model, shipped

MINIMAL = """
[model]
name = "stack"
width = 8

[data]
name = "digits"
batch = 32
"""


def stack(
    width: int,
    sizes: Sequence[int] | None = None,
    label: str = "",
    rate: float = 0.0,
    hook: Callable[[int], int] | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    """A model that remembers how it was made."""
    return {"width": width, "sizes": sizes, "label": label, "rate": rate, "dtype": dtype}


def other() -> None:
    """A model without arguments."""


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(definition, "_models", lambda: {"stack": stack, "other": other})


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def minimal(write: Callable[[str], Path]) -> Profile:
    return load(write(MINIMAL))


def test_a_short_file_is_filled_with_defaults(minimal: Profile) -> None:
    assert minimal.to_dict() == {
        "name": "mine",
        "description": "",
        "dtype": "float32",
        "dry": False,
        "model": {"name": "stack", "width": 8},
        "data": {"name": "digits", "batch": 32},
        "train": {
            "steps": 100,
            "optimizer": "adamw",
            "learning_rate": 0.001,
            "momentum": 0.0,
            "weight_decay": 0.0,
            "schedule": "constant",
            "warmup": 0,
            "seed": 0,
        },
        "checkpoint": {"policy": "sqrt"},
    }


def test_a_profile_is_immutable(minimal: Profile) -> None:
    with pytest.raises(AttributeError):
        minimal.name = "other"  # type: ignore[misc]
    with pytest.raises(AttributeError):
        minimal.train.steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"section \[model\] is missing; it must be a table"),
        ("model = 3", r"model \(=3\) must be a table"),
        ("[model]\nname = 'stack'\nwidth = 8", r"section \[data\] is missing"),
        (
            MINIMAL + "[trian]\nsteps = 1",
            r"unknown key trian \(did you mean 'train'\?\); allowed are name, description",
        ),
        (MINIMAL + "[train]\nsteps = 0", r"train.steps \(=0\) must be a whole number >= 1"),
        (MINIMAL + "[train]\nsteps = true", r"train.steps \(=True\) must be a whole number"),
        (MINIMAL + "[train]\nlr = 1", "unknown key train.lr; allowed are steps, optimizer, learning_rate"),
        (
            MINIMAL + "[train]\noptimizer = 'adam'",
            r"train.optimizer \(='adam'\) must be one of 'adamw', 'sgd'",
        ),
        (MINIMAL + "[train]\nlearning_rate = nan", r"train.learning_rate \(=nan\) must be a number > 0"),
        (MINIMAL + "[checkpoint]\npolicy = 'sqr'", "checkpoint.policy: unknown checkpoint policy 'sqr'"),
        (
            MINIMAL.replace("stack", "stak"),
            r"model.name: there is no model 'stak' \(did you mean 'stack'\?\)",
        ),
        (
            MINIMAL.replace("width", "widht"),
            r"unknown key model.widht \(did you mean 'width'\?\); allowed are name, width",
        ),
        (MINIMAL.replace("width = 8", ""), "model.width is missing; it must be a whole number"),
        (MINIMAL.replace("width = 8", "width = 'x'"), r"model.width \(='x'\) must be a whole number"),
        (
            MINIMAL.replace("width = 8", "width = 8\nsizes = [1, 2.5]"),
            r"model.sizes\[1\] \(=2.5\) must be a whole number",
        ),
        (MINIMAL.replace("width = 8", "width = 8\ndtype = 'float64'"), "unknown key model.dtype"),
        (
            MINIMAL.replace("digits", "digit"),
            r"data.name: there is no data 'digit' \(did you mean 'digits'\?\)",
        ),
        (MINIMAL.replace("batch = 32", ""), "data.batch is missing; it must be a whole number >= 1"),
        (MINIMAL + "layout = 'round'", r"data.layout \(='round'\) must be one of 'flat', 'image'"),
        (MINIMAL + "arguments = 1", "unknown key data.arguments .*; allowed are name, batch, layout"),
        (
            "dtype = 'float8'\n" + MINIMAL,
            r"dtype \(='float8'\) must be one of 'bfloat16', 'float16', 'float32', 'float64'",
        ),
        ("folder = '/'\n" + MINIMAL, "unknown key folder; allowed are name"),
        ("[model", "is not valid TOML"),
        ("x = " + "[" * 20_000, "is not valid TOML"),
        ("x = " + "9" * 5_000, "is not valid TOML"),
        (
            MINIMAL.replace("width = 8", "width = 2147483648"),
            r"model.width \(=2147483648\) is beyond 2,147,483,647, which no size",
        ),
        (
            MINIMAL.replace("width = 8", "width = 8\nsizes = [1, -1000000000000000000]"),
            r"model.sizes\[1\] \(=-1000000000000000000\) is beyond",
        ),
        (
            MINIMAL.replace("batch = 32", "batch = 100000000000"),
            r"data.batch \(=100000000000\) must be a whole number >= 1 and <= 2147483647",
        ),
        ("name = '" + "x" * 201 + "'\n" + MINIMAL, "name .* must be text of at most 200 characters"),
        ("x" * 100_000 + " = 1\n" + MINIMAL, r"unknown key x+… \(100,000 characters\); allowed are"),
        (MINIMAL.replace("width = 8", "width = '" + "x" * 100_000 + "'"), r"\(='x+… \(100,002 characters\)\) must be"),
        (MINIMAL.replace("stack", "x" * 100_000), r"there is no model 'x+… \(100,002 characters\); there are"),
    ],
)
def test_a_wrong_definition_is_refused_with_file_key_and_what_is_allowed(
    text: str, message: str, write: Callable[[str], Path]
) -> None:
    path = write(text)
    with pytest.raises(UsageError, match=message) as refusal:
        load(path)
    assert str(refusal.value).startswith(str(path))
    assert len(str(refusal.value)) < 1000


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="can't be read as a profile in TOML"):
        load(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "no-such-profile",
            "there is no profile 'no-such-profile'; there are .* or give the path of a .toml file",
        ),
        ("nowhere.toml", "There is no profile file nowhere.toml; `memback list` shows the shipped profiles"),
        ("no/where", "There is no profile file no/where"),
        ("x" * 300, r"there is no profile 'x+… \(302 characters\); there are"),
        ("x/" * 3000, "can't be read as a profile in TOML: .*[Nn]ame too long"),
    ],
)
def test_a_profile_that_is_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(name)


def test_a_larger_file_than_any_profile_and_one_without_an_end_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.toml"
    path.write_bytes(b"#" * (2**20 + 1))
    with pytest.raises(UsageError, match="has more than 1,048,576 B: it is none of memback's files"):
        load(path)
    if Path("/dev/zero").exists():
        with pytest.raises(UsageError, match="/dev/zero is a device or a pipe"):
            load("/dev/zero")


def test_a_near_name_is_suggested() -> None:
    name = next(iter(shipped()))
    with pytest.raises(UsageError, match=f"did you mean '{name}'"):
        load(name + "x")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("model.width", "128", 128),
        ("model.sizes", "[1, 2]", [1, 2]),
        ("model.label", "128", "128"),
        ("model.rate", "0.5", 0.5),
        ("model.rate", "1", 1),
        ("data.batch", "7", 7),
        ("data.layout", "image", "image"),
        ("train.steps", "1_000", 1000),
        ("train.optimizer", "sgd", "sgd"),
        ("checkpoint.policy", "every:3", "every:3"),
        ("dtype", "float64", "float64"),
        ("name", "12", "12"),
    ],
)
def test_overrides_are_read_as_their_key_wants_them(key: str, text: str, value: object, minimal: Profile) -> None:
    content: Any = minimal.with_overrides({key: text}).to_dict()
    for part in key.split("."):
        content = content[part]
    assert content == value
    assert type(content) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("model.width", "wide", r"--set: model.width \(='wide'\) must be a whole number"),
        ("model.width", "1\nlabel = 2", "must be a whole number"),
        ("model.depth", "3", "--set: unknown key model.depth"),
        ("train.steps", "1.5", r"train.steps \(=1.5\) must be a whole number"),
        ("steps", "10", "--set: unknown key steps; allowed are name"),
        ("trian.steps", "10", "--set trian.steps: there is no section trian"),
        ("train.steps.x", "10", "there is no section train.steps"),
        ("data", "3", r"data \(=3\) must be a table"),
        ("", "3", "unknown key"),
        ("data.path", "9" * 50, "unknown key data.path .*allowed are"),
        ("model.sizes", "[" * 100_000, r"model.sizes \(='\[+… \(100,002 characters\)\) must be a list"),
        ("model.width", "9" * 5_000, r"model.width \(='9+… \(5,002 characters\)\) must be a whole number"),
        ("model.width", str(10**18), r"model.width \(=1000000000000000000\) is beyond"),
    ],
)
def test_wrong_overrides_are_refused(key: str, text: str, message: str, minimal: Profile) -> None:
    with pytest.raises(UsageError, match=message):
        minimal.with_overrides({key: text})


def test_a_new_name_drops_the_arguments_of_the_old_one(minimal: Profile) -> None:
    changed = minimal.with_overrides({"data.shape": "[3]", "data.name": "random", "model.name": "other"})
    assert changed.to_dict()["data"] == {"name": "random", "batch": 32, "shape": [3]}
    assert changed.to_dict()["model"] == {"name": "other"}
    assert minimal.with_overrides({"model.name": "stack"}).to_dict()["model"] == {"name": "stack", "width": 8}


def test_the_hash_is_that_of_the_content(write: Callable[[str], Path], minimal: Profile) -> None:
    reordered = load(write("# the same\n[data]\nbatch = 32\nname = 'digits'\n[model]\nwidth = 8\nname = 'stack'\n"))
    assert reordered.sha256 == minimal.sha256
    assert minimal.with_overrides({"train.steps": "100"}).sha256 == minimal.sha256
    assert minimal.with_overrides({"model.width": "9"}).sha256 != minimal.sha256
    assert len(minimal.sha256) == 64


def test_model_and_data_are_made_in_the_profiles_dtype(minimal: Profile) -> None:
    profile = minimal.with_overrides({"dtype": "float64", "model.rate": "0.25", "data.layout": "image"})
    made = make_model(profile)
    assert (made["width"], made["rate"], made["dtype"]) == (8, 0.25, "float64")
    data = load_data(profile)
    assert data.x_train.dtype == np.float64
    assert data.x_train.shape[1:] == (1, 8, 8)


def test_a_data_file_is_found_beside_the_profile(write: Callable[[str], Path], tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", x=np.ones((10, 3)), y=np.arange(10))
    profile = load(write(MINIMAL.replace('name = "digits"', 'path = "own.npz"')))
    assert profile.data.name == "npz"
    assert load_data(profile).x_train.shape == (8, 3)


def test_a_data_file_of_an_override_is_found_from_the_current_folder(
    minimal: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    np.savez(folder / "own.npz", x=np.ones((10, 3)), y=np.arange(10))
    monkeypatch.chdir(folder)
    profile = minimal.with_overrides({"data.path": "own.npz", "data.name": "npz"})
    assert load_data(profile).x_train.shape == (8, 3)


def test_reading_a_profile_runs_nothing_of_it(write: Callable[[str], Path], tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    text = f"__import__('pathlib').Path({str(trace)!r}).touch()"
    profile = load(write(MINIMAL.replace("width = 8", f'width = 8\nlabel = """{text}"""')))
    make_model(profile.with_overrides({"model.label": text}))
    assert not trace.exists()


def test_learning_rates_rise_then_follow_the_schedule() -> None:
    train = Train(steps=12, learning_rate=1.0, warmup=2, schedule="cosine")
    rates = [train.rate(step) for step in range(13)]
    assert rates[:3] == [pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0]
    assert rates[7] == pytest.approx(0.5)
    assert rates[12] == pytest.approx(0.0)
    assert sorted(rates[2:], reverse=True) == rates[2:]
    constant = msgspec.structs.replace(train, schedule="constant")
    assert [constant.rate(step) for step in (2, 11, 500)] == [1.0, 1.0, 1.0]

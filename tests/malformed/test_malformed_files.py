"""Whatever is in a file or an option, it is read, or refused in one message: nothing else is raised.

A message is short. Nothing is written, and memory is bounded.
"""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memback import commands
from memback.data import LAYOUTS, REGISTRY
from memback.nn.policy import Policy
from memback.nn.state import read, write
from memback.plans.model.planning import ModelPlan, Planning
from memback.profiling.definition import Profile, load
from memback.profiling.mode import Mode
from memback.profiling.report import Report
from memback.profiling.training import Training
from memback.profiling.workload import Workload
from memback.sweeps.grid import parse_axis
from memback.sweeps.store import Store
from memback.units import parse_bytes
from tests.malformed.judge import LONGEST, hold, numbered, refusal
from tests.malformed.mutations import as_json, changed_bytes, changed_values, texts
from tests.reports import sample
from tests.sweeps.small import grid, rows_of

DIGITS = load("digits")

TOML = """
name = "small"
description = "of all kinds"
dtype = "float32"
[model]
name = "gpt"
layers = 1
width = 8
heads = 2
vocabulary = 11
context = 8
dropout = 0.1
[data]
name = "random"
task = "sequence"
shape = [8]
classes = 11
batch = 2
[train]
steps = 2
learning_rate = 0.01
[checkpoint]
policy = "sqrt"
"""

SETTINGS = (
    *(
        "model.hidden=[8, 8]",
        "model.name=mlp",
        "model.width=8",
        "model.activation=gelu",
        "data.batch=4",
        "dtype=float16",
    ),
    *("data.name=random", "data.path=x.npz", "train.learning_rate=0.1", "checkpoint.policy=every:2", "train.seed=3"),
)
SIZES = ("512MiB", "1.5GB", "1000000", "0.5 KiB", "2TiB")
POLICIES = ("every:2", "sqrt", "selective:attention", "match:blocks.*", "none")
AXES = ("batch=1,2", "policy=none,sqrt", "model.hidden=[4],[8]", "budget=1MiB,2MiB", "dtype=float32", "depth=1,2")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# -- what is read, by form; each is a pair of a valid content and its reader


def run_dry(profile: Profile) -> None:
    Workload.build(profile, dry=True).predicted_step().predict(Mode("full"))


def read_profile(file: Path) -> None:
    run_dry(load(file))


def read_report(file: Path) -> None:
    text = repr(Report.load(file))
    assert text


@pytest.fixture(scope="module")
def report() -> bytes:
    return as_json(sample.report().to_dict())


@pytest.fixture(scope="module")
def plans() -> list[bytes]:
    """A plan for a chain, and one for a graph."""
    profile = load("digits").with_overrides({"data.batch": "512"})
    chain = Planning(Workload.build(profile, dry=True).predicted_step()).plan(1_300_000, "chain")
    profile = load("unet").with_overrides({"model.width": "2", "model.depth": "1", "data.batch": "2"})
    step = Workload.build(profile, dry=True).predicted_step()
    graph = Planning(step).plan(step.predict(Mode("full")).peak.bytes - 2000, "graph")
    found = [chain.to_dict(), graph.to_dict()]
    assert ["graph" in plan for plan in found] == [False, True]
    return list(map(as_json, found))


@pytest.fixture(scope="module")
def training() -> Training:
    profile = load("digits").with_overrides({"model.hidden": "[4]", "data.batch": "4"})
    made = Training(Workload.build(profile))
    for _ in made.steps(1):
        pass
    return made


@pytest.fixture(scope="module")
def state(training: Training, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("state") / "state"
    training.save(file)
    return file.read_bytes()


@pytest.fixture(scope="module")
def archive() -> bytes:
    file = io.BytesIO()
    np.savez(file, x=np.ones((10, 3), np.float32), y=np.arange(10))
    return file.getvalue()


def read_archive(file: Path) -> None:
    LAYOUTS["npz"](path=str(file))
    REGISTRY["npz"](path=str(file))


# -- bytes


@numbered(30, 300)
def test_profiles(numbers: range, tmp_path: Path) -> None:
    hold(numbers, tmp_path / "p.toml", lambda n: changed_bytes(TOML.encode(), n), read_profile)


@numbered(60)
def test_reports(numbers: range, report: bytes, tmp_path: Path) -> None:
    hold(numbers, tmp_path / "r.json", lambda n: changed_bytes(report, n), read_report)


@numbered(60)
@pytest.mark.parametrize("kind", [0, 1], ids=["chain", "graph"])
def test_plans(kind: int, numbers: range, plans: list[bytes], tmp_path: Path) -> None:
    hold(numbers, tmp_path / "p.json", lambda n: changed_bytes(plans[kind], n), ModelPlan.load)


@numbered(60)
def test_training_states(numbers: range, state: bytes, training: Training, tmp_path: Path) -> None:
    hold(numbers, tmp_path / "state", lambda n: changed_bytes(state, n), training.resume)


@numbered(60)
def test_archives(numbers: range, archive: bytes, tmp_path: Path) -> None:
    hold(numbers, tmp_path / "data.npz", lambda n: changed_bytes(archive, n), read_archive)


# -- values


@numbered(60)
def test_values_in_reports(numbers: range, report: bytes, tmp_path: Path) -> None:
    data = json.loads(report)
    hold(numbers, tmp_path / "r.json", lambda n: as_json(changed_values(data, n)), read_report)


@numbered(60)
@pytest.mark.parametrize("kind", [0, 1], ids=["chain", "graph"])
def test_values_in_plans(kind: int, numbers: range, plans: list[bytes], tmp_path: Path) -> None:
    data = json.loads(plans[kind])
    hold(numbers, tmp_path / "p.json", lambda n: as_json(changed_values(data, n)), ModelPlan.load)


@numbered(50)
def test_values_in_training_states(numbers: range, state: bytes, training: Training, tmp_path: Path) -> None:
    source = tmp_path / "folder"
    source.mkdir()
    (source / "good").write_bytes(state)
    arrays, about = read(source / "good")
    data = json.loads(about["memback"])

    def change(number: int) -> bytes:
        draw = random.Random(number)
        kept = dict(arrays)
        name = draw.choice(list(kept))
        match draw.randrange(4):
            case 0:
                del kept[name]
            case 1:
                kept[name] = kept[name].astype(draw.choice([np.float64, np.int32, np.bool_, np.float16]))
            case 2:
                kept[name] = kept[name][..., :1]
        text = json.dumps(changed_values(data, number)) if draw.randrange(2) else about["memback"]
        write(source / "bad", kept, {"memback": text}, overwrite=True)
        return (source / "bad").read_bytes()

    folder = tmp_path / "read"
    folder.mkdir()
    hold(numbers, folder / "state", change, training.resume)


@numbered(60)
def test_members_of_archives(numbers: range, archive: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(archive)) as whole:
        members = {name: whole.read(name) for name in whole.namelist()}

    def change(number: int) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", random.Random(number).choice([0, 8])) as made:
            for name, content in members.items():
                made.writestr(name, changed_bytes(content, number) if name == "x.npy" else content)
        return file.getvalue()

    hold(numbers, tmp_path / "data.npz", change, read_archive)


# -- rows of a sweep


GRID = grid("batch=2,4", "policy=none", budget=180_000)


@pytest.fixture(scope="module")
def rows() -> list[Any]:
    return rows_of(GRID)


@numbered(50)
@pytest.mark.parametrize("kind", ["csv", "journal", "parquet"])
def test_rows_of_sweeps(kind: str, numbers: range, rows: list[Any], tmp_path: Path) -> None:
    if kind == "parquet":  # each is read in a process of its own
        pytest.importorskip("pyarrow", reason="needs the extra sweep")
        numbers = numbers[:5]
    name = "sweep.parquet" if kind == "parquet" else "sweep.csv"
    made = tmp_path / "made"
    made.mkdir()
    store = Store(GRID, [str(made / name)])
    store.add(rows)
    if kind == "journal":
        name = "sweep.csv.journal"
    else:
        store.close()
    valid = (made / name).read_bytes()
    for number in numbers:
        folder = tmp_path / str(number)
        folder.mkdir()
        data = changed_bytes(valid, number)
        (folder / name).write_bytes(data)
        said = refusal(lambda folder=folder: Store(GRID, [str(folder / name.removesuffix(".journal"))], resume=True))
        assert [path.name for path in folder.iterdir()] == [name]
        if said is not None:
            assert (folder / name).read_bytes() == data


# -- options


@numbered(40)
def test_settings(numbers: range) -> None:
    profile = DIGITS.with_overrides({"data.batch": "2"})

    def change(setting: str) -> None:
        key, _, value = setting.partition("=")
        run_dry(profile.with_overrides({key: value}))

    said = [refusal(lambda n=n: change(texts(n, SETTINGS))) for n in numbers]
    assert any(said)


@numbered(30)
@pytest.mark.parametrize(
    ("read", "seeds"),
    [
        (parse_bytes, SIZES),
        (Policy.parse, POLICIES),
        (lambda text: parse_axis(text, DIGITS), AXES),
        (load, ("digits", "a/b.toml", "gpt2-xl")),
    ],
    ids=["sizes", "policies", "axes", "names"],
)
def test_texts_of_options(read: Callable[[str], Any], seeds: tuple[str, ...], numbers: range) -> None:
    said = [refusal(lambda n=n: read(texts(n, seeds))) for n in numbers]
    assert any(said)


# -- on the command line


@pytest.mark.parametrize("number", range(12))
def test_the_command_line_says_it_in_lines_without_control_characters(
    number: int, report: bytes, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    content = changed_values(json.loads(report), number)
    content["runs"][0]["policy"] = "\x1b[31mred\x9b\x07"
    Path("r.json").write_bytes(as_json(content))
    assert commands.main(["report", "r.json", "-o", "r.html", "--json", "x"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("Error: r.json ")
    assert all(c.isprintable() for c in said.err.replace("\n", ""))
    assert len(said.err) < LONGEST + 200
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]

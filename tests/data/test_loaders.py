from __future__ import annotations

import inspect
import os
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memback.data import LAYOUTS, REGISTRY
from memback.data.source import _sources
from memback.errors import MembackError, UsageError

SMALLEST = {"random": {"shape": [3]}}


@pytest.mark.parametrize("name", [name for name in REGISTRY if name != "npz"])
def test_every_data_set_is_the_same_each_time_and_split_into_distinct_parts(name: str) -> None:
    first, second = (REGISTRY[name]("float32", **SMALLEST.get(name, {})) for _ in range(2))
    assert first.name == name
    for part in ("x_train", "y_train", "x_test", "y_test"):
        np.testing.assert_array_equal(getattr(first, part), getattr(second, part))
    assert len(first.x_train) == len(first.y_train) > len(first.x_test) == len(first.y_test) > 0


def test_digits_are_the_published_ones() -> None:
    digits = REGISTRY["digits"]("float64")
    assert digits.x_train.shape == (1442, 64)
    assert digits.x_test.shape == (355, 64)
    counts = np.bincount(np.concatenate([digits.y_train, digits.y_test]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert np.bincount(digits.y_test).tolist() == [count // 5 for count in counts]
    assert digits.y_train[:4].tolist() == [0, 1, 2, 3]
    assert (digits.x_train[0, :8] * 16).tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    assert digits.x_train.min() == 0
    assert digits.x_train.max() == 1


def test_digits_as_enlarged_images() -> None:
    flat = REGISTRY["digits"]()
    images = REGISTRY["digits"](layout="image", size=24)
    assert images.x_train.shape == (1442, 1, 24, 24)
    np.testing.assert_array_equal(images.x_train[:, 0, ::3, ::3].reshape(1442, 64), flat.x_train)
    np.testing.assert_array_equal(images.x_train[:, :, 1::3, 2::3], images.x_train[:, :, ::3, ::3])


def test_digits_masks_mark_the_ink_with_the_digit() -> None:
    masks = REGISTRY["digits"](layout="image", target="mask")
    labels = REGISTRY["digits"]().y_train
    ink = masks.x_train[:, 0] >= 0.5
    assert masks.y_train.shape == (1442, 8, 8)
    assert not masks.y_train[~ink].any()
    np.testing.assert_array_equal(masks.y_train.max(axis=(1, 2)), labels + 1)


def test_digits_refuse_a_size_that_cuts_pixels() -> None:
    with pytest.raises(UsageError, match=r"data.size \(=12\) must be a multiple of 8"):
        REGISTRY["digits"](size=12)


def test_python_source_targets_are_the_next_bytes() -> None:
    data = REGISTRY["python-source"](sequence=50, limit=5_001)
    text = np.concatenate([data.x_train.ravel(), data.x_test.ravel()])
    following = np.concatenate([data.y_train.ravel(), data.y_test.ravel()])
    np.testing.assert_array_equal(text[1:], following[:-1])
    assert data.x_train.shape == (90, 50)
    assert data.x_test.shape == (10, 50)
    x, _ = data.batch(4, seed=0, step=0)
    assert x.dtype == np.int64


def test_python_source_reads_files_in_one_order_and_leaves_out_what_is_not_pythons(tmp_path: Path) -> None:
    for name in (
        "b.py",
        "a.py",
        "z/c.py",
        "m/d.py",
        "site-packages/x.py",
        "m/__pycache__/y.py",
        "m/notes.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = [path.relative_to(tmp_path).as_posix() for path in _sources(tmp_path)]
    assert found == ["a.py", "b.py", "m/d.py", "z/c.py"]


def test_python_source_refuses_a_sequence_that_does_not_fit_twice() -> None:
    with pytest.raises(UsageError, match=r"data.sequence \(=600\) is too long .* use at most 499"):
        REGISTRY["python-source"](sequence=600, limit=1000)


def test_python_source_says_when_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(MembackError, match="There are no .py files in .*; install Python's standard library"):
        REGISTRY["python-source"]()


@pytest.mark.parametrize(
    ("arguments", "x_shape", "y_shape", "integers"),
    [
        ({"shape": [5]}, (5,), (), (False, True)),
        ({"shape": [5], "task": "regression"}, (5,), (5,), (False, False)),
        ({"shape": [5], "task": "regression", "outputs": [2]}, (5,), (2,), (False, False)),
        ({"shape": [3, 4, 6], "task": "segmentation"}, (3, 4, 6), (4, 6), (False, True)),
        ({"shape": [7], "task": "sequence"}, (7,), (7,), (True, True)),
    ],
)
def test_random_data_has_the_shapes_of_its_task(
    arguments: dict[str, object],
    x_shape: tuple[int, ...],
    y_shape: tuple[int, ...],
    integers: tuple[bool, bool],
) -> None:
    data = REGISTRY["random"]("float16", classes=3, samples=40, **arguments)
    assert data.x_train.shape == (32, *x_shape)
    assert data.y_train.shape == (32, *y_shape)
    for array, integer in zip((data.x_train, data.y_train), integers, strict=True):
        assert array.dtype == (np.int64 if integer else np.float16)
        if integer:
            assert set(np.unique(array)) == {0, 1, 2}


def test_random_data_changes_with_the_seed() -> None:
    first, second = (REGISTRY["random"](shape=[4], seed=seed) for seed in (0, 1))
    assert not np.array_equal(first.x_train, second.x_train)


def test_an_archive_is_split_or_brings_its_own_test_samples(tmp_path: Path) -> None:
    x, y = np.arange(20.0).reshape(10, 2), np.arange(10)
    np.savez(tmp_path / "one.npz", x=x, y=y)
    np.savez(tmp_path / "two.npz", x=x, y=y, x_test=x[:3], y_test=y[:3])
    one, two = (REGISTRY["npz"]("float32", path=str(tmp_path / name)) for name in ("one.npz", "two.npz"))
    assert one.y_test.tolist() == [4, 9]
    assert one.x_train.shape == (8, 2)
    assert one.x_train.dtype == np.float32
    assert two.y_train.tolist() == list(range(10))
    assert two.y_test.tolist() == [0, 1, 2]


def test_samples_of_an_archive_lie_one_after_the_other_however_they_were_saved(tmp_path: Path) -> None:
    x = np.asfortranarray(np.arange(240.0).reshape(10, 4, 6))
    np.savez(tmp_path / "columns.npz", x=x, y=np.arange(20)[::2])
    data = REGISTRY["npz"]("float64", path=str(tmp_path / "columns.npz"))
    batch, _ = data.batch(3, 0, 0)
    assert batch.flags.c_contiguous
    assert sorted(data.x_train.ravel()) == sorted(x[[i for i in range(10) if i not in (4, 9)]].ravel())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((3, 2))}, "has no array 'y'; it has x"),
        ({}, "has no array 'x'; it has none"),
        ({"x": np.ones((3, 2)), "y": np.ones(4)}, "x has 3 samples, y has 4"),
        ({"x": np.ones((0, 2)), "y": np.ones(0)}, "x has 0 samples, y has 0"),
        ({"x": np.ones((1, 2)), "y": np.ones(1)}, "one sample can't be split"),
        (
            {"x": np.ones((3, 2)), "y": np.array(["a", "b", "c"])},
            "y is a <U1 array .* must hold integers or floats",
        ),
        ({"x": np.ones((3, 2)), "y": np.array(1)}, "one sample a row"),
        ({"x": np.ones((3, 2)), "y": np.ones(3), "x_test": np.ones((3, 2))}, "has no array 'y_test'"),
        (
            {"x": np.ones((3, 2)), "y": np.ones(3), "x_test": np.ones((3, 4)), "y_test": np.ones(3)},
            r"test samples have shapes \(4,\)",
        ),
        ({"x": np.array([{}, {}]), "y": np.ones(2)}, "can't be read .* plain arrays"),
    ],
)
def test_an_archive_that_does_not_fit_is_refused(arrays: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    with pytest.raises(UsageError, match=message):
        REGISTRY["npz"](path=str(path))


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "single.npy", np.ones(3))
    np.savez_compressed(tmp_path / "whole.npz", x=np.ones((50, 50)), y=np.ones(50))
    whole = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("x = 1")
    (tmp_path / "empty.npz").touch()
    for name, message in {
        "single.npy": "is a single array; save x and y with numpy.savez",
        "cut.npz": "can't be read",
        "text.npz": "can't be read",
        "empty.npz": "can't be read",
        "missing.npz": "There is no data file .*missing.npz",
        ".": "can't be read",
    }.items():
        with pytest.raises(UsageError, match=message):
            REGISTRY["npz"](path=str(tmp_path / name))


def archive_of(path: Path, header: bytes, data: bytes = b"", compression: int = zipfile.ZIP_STORED) -> None:
    """An archive whose x has this header, whatever it says."""
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x.npy", member)
        archive.writestr("y.npy", member)


def header_of(shape: str) -> bytes:
    return f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()


@pytest.mark.parametrize("registry", [REGISTRY, LAYOUTS], ids=["read", "headers"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize(
    "header",
    [
        *map(header_of, ["(True, 6)", "(-1,)", "(1.5,)", "(6000000000, 1)", "(10**5,)", "(2**62, 2**62)", "6", "None"]),
        header_of(f"({'9' * 5000},)"),
        header_of(f"(3000000000000, {'9' * 4000})"),
        b"{'descr'",
        b"(" * 9000,
        b"[" * 200,
        b"{'descr': '<f4'}",
        b"\xff" * 100,
        b"",
    ],
)
def test_what_a_header_says_is_not_believed(
    header: bytes, compression: int, registry: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "data.npz"
    archive_of(path, header, bytes(24), compression)
    tracemalloc.start()
    try:
        with pytest.raises(
            UsageError, match=r"data.npz can't be read as an .npz archive of plain arrays: .+"
        ) as refused:
            registry["npz"](path=str(path))
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    assert len(str(refused.value)) < 700


def test_arrays_that_nobody_asked_for_are_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez_compressed(path, x=np.ones((10, 3)), y=np.ones(10), unused=np.zeros(50_000_000, np.uint8))
    tracemalloc.start()
    try:
        REGISTRY["npz"](path=str(path))
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("registry", [REGISTRY, LAYOUTS], ids=["read", "headers"])
def test_a_pipe_is_not_waited_for(registry: dict[str, Any], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="is a device or a pipe"):
        registry["npz"](path=str(tmp_path / "pipe"))


# -- what a sample looks like, before any data is read


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("digits", {}),
        ("digits", {"layout": "image", "size": 24}),
        ("digits", {"layout": "image", "size": 16, "target": "mask"}),
        ("digits", {"size": 16, "target": "mask"}),
        ("python-source", {}),
        ("python-source", {"sequence": 50, "limit": 5000}),
        ("random", {"shape": [5]}),
        ("random", {"shape": [5], "task": "regression"}),
        ("random", {"shape": [5, 2], "task": "regression", "outputs": [2]}),
        ("random", {"shape": [3, 4, 6], "task": "segmentation", "classes": 4}),
        ("random", {"shape": [7], "task": "sequence", "samples": 8, "seed": 3}),
        ("npz", {"path": "data.npz"}),
    ],
)
def test_the_layout_is_that_of_a_batch(
    name: str, arguments: dict[str, object], dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", x=np.ones((10, 3, 2)), y=np.arange(10, dtype=np.uint8))
    batch = REGISTRY[name](dtype, **arguments).batch(3, seed=0, step=0)
    assert LAYOUTS[name](dtype, **arguments).batch(3) == tuple((a.shape, a.dtype) for a in batch)


def test_a_layout_and_its_loader_take_the_same_arguments() -> None:
    assert set(LAYOUTS) == set(REGISTRY)
    for name, loader in REGISTRY.items():
        mine, its = (inspect.signature(f).parameters for f in (LAYOUTS[name], loader))
        assert [(p.name, p.default) for p in mine.values()] == [(p.name, p.default) for p in its.values()]


def test_the_layout_of_an_archive_comes_from_its_headers_alone(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, x=np.ones((1000, 300)), y=np.ones(1000))
    tracemalloc.start()
    try:
        layout = LAYOUTS["npz"](path=str(path))
        assert tracemalloc.get_traced_memory()[1] < 500_000
    finally:
        tracemalloc.stop()
    assert layout.x_shape == (300,)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.ones((3, 2))}, "has no array 'y'; it has x"),
        ({"x": np.ones((3, 2)), "y": np.array(["a", "b", "c"])}, "y is a <U1 array .* must hold integers or floats"),
        ({"x": np.ones((3, 2)), "y": np.array(1)}, "one sample a row"),
    ],
)
def test_an_archive_whose_headers_do_not_fit_is_refused(
    arrays: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    with pytest.raises(UsageError, match=message):
        LAYOUTS["npz"](path=str(path))


@pytest.mark.parametrize(("name", "message"), [("missing", "There is no data file"), ("text", "can't be read")])
def test_the_headers_of_what_is_no_archive_are_refused(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("x = 1")
    with pytest.raises(UsageError, match=message):
        LAYOUTS["npz"](path=str(tmp_path / f"{name}.npz"))

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from memback.bridges.torch.loading import load
from memback.bridges.torch.recording.inputs import Input, parse_inputs
from memback.bridges.torch.recording.storages import distinct_bytes
from memback.errors import OutOfMemoryError, UsageError

DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool", "complex64", "float8_e4m3fn")


@given(
    name=st.none() | st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True),
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    dtype=st.sampled_from(DTYPES),
    fill=st.sampled_from(["", "=0", "=1", "=true", "=False"]),
)
def test_an_input_is_made_as_it_is_written_and_written_as_it_is_read(name, shape, dtype, fill):
    found = Input.parse(f"{'' if name is None else name + '='}{'x'.join(map(str, shape))}:{dtype}{fill}")
    assert Input.parse(str(found)) == found
    tensor = found.make(torch.device("cpu"))
    assert (found.name, list(tensor.shape), tensor.dtype) == (name, shape, getattr(torch, dtype))
    if fill:
        assert (tensor.to(torch.complex64) == (fill in ("=1", "=true"))).all()


@pytest.mark.parametrize(
    "text", ["2:int8=-128", "2=0.5", "2:float64=0.1", "2:float16=-inf", "2:uint64=18", "2:int64=-7"]
)
def test_a_value_is_that_of_all_elements(text):
    value = float(text.partition("=")[2])
    assert Input.parse(text).make(torch.device("cpu")).tolist() == [value, value]


@pytest.mark.parametrize(
    "text",
    ["2:int8=128", "2:bool=2", "2:int64=0.5", "2=", "2=x", "2:float16=1e9", "2:uint8=-1", f"2:int64={10**30}", "2=1_0"],
)
def test_a_value_that_the_dtype_does_not_have_is_refused(text):
    with pytest.raises(UsageError, match=r"is no value of \w+; write it as 8x1024:int64=1"):
        Input.parse(text)


def test_without_a_dtype_it_is_float32():
    assert parse_inputs(["8x3", "mask=2"]) == [Input(None, (8, 3), torch.float32), Input("mask", (2,), torch.float32)]


@pytest.mark.parametrize("text", ["", "x", "8x", "x8", "8,3", "8x3:", "8x-3", "=8", "a b=8", "8x3:float:int", "٣"])
def test_what_is_no_shape_is_refused(text):
    with pytest.raises(UsageError, match="is no shape; write it as"):
        Input.parse(text)


@pytest.mark.parametrize("text", ["9" * 5000 + "x4", "2305843009213693952x1", "4294967296x4294967296", "9" * 20])
def test_more_than_any_memory_is_refused_shortly(text):
    with pytest.raises(UsageError, match=r"has more than 2\*\*63 - 1 bytes") as refused:
        Input.parse(text)
    assert len(str(refused.value)) < 300


def test_inputs_that_do_not_fit_into_memory_are_refused_before_they_are_made():
    with pytest.raises(OutOfMemoryError, match=r"the inputs take 145.52 TiB, but there are .*or predict with --dry"):
        load("torch.nn:Identity", parse_inputs(["10000000000x4000"]))
    assert load("torch.nn:Identity", parse_inputs(["10000000000x4000"]), dry=True).args[0].shape[1] == 4000


@pytest.mark.filterwarnings("ignore:Sparse")
def test_bytes_are_those_of_distinct_storages():
    x = torch.ones(4, 8)
    indices = torch.eye(3).to_sparse()
    assert distinct_bytes([x, x[1], {"again": (x.T,)}, 3]) == x.nbytes
    assert distinct_bytes([indices]) == 2 * 3 * 8 + 3 * 4
    rows, columns = torch.tensor([0, 1, 2]), torch.tensor([0, 1])
    for make in (torch.sparse_csr_tensor, torch.sparse_csc_tensor):
        compressed = make(rows, columns, torch.ones(2), (2, 2))
        assert distinct_bytes([compressed]) == 3 * 8 + 2 * 8 + 2 * 4

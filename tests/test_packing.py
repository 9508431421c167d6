from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import memback as mb
from memback import nn, ops
from memback.engine.offload import _empty, _flat, _is_dense
from memback.profiling.mode import Mode
from memback.profiling.step import Step
from tests.models.small import MODELS, batch


def step_of(kind):
    mb.manual_seed(3)
    model = MODELS[kind]("float32")
    x, y = batch(kind, "float32")
    return Step(lambda: model.loss(x, y), model)


def chain(layers=6, width=64, samples=256):
    mb.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(layers)])
    x = mb.Tensor(np.linspace(-1, 1, samples * width, dtype=np.float32).reshape(samples, width))
    return model, x


def gradients(model):
    return {name: p.grad.copy() for name, p in model.named_parameters()}


# -- hooks


def test_hooks_get_saved_activations_and_no_arguments():
    w = mb.Tensor(np.ones((3, 3)), requires_grad=True)
    x = mb.Tensor(np.ones((2, 3)))
    seen = []

    def pack(array):
        seen.append(array.shape)
        return array.tolist()

    with mb.saved_tensors_hooks(pack, np.array):
        h = ops.tanh(ops.linear(x, w))  # saves x and w (arguments), and its own output
        loss = ops.sum(ops.multiply(h, h))
    loss.backward()
    assert set(seen) == {(2, 3)}
    assert len(seen) == 3  # the tanh's output, and twice as a factor
    tanh = np.tanh(3.0)
    np.testing.assert_allclose(w.grad, np.full((3, 3), 2 * 2 * tanh * (1 - tanh**2)))


def test_outside_of_the_block_nothing_is_packed():
    w = mb.Tensor(np.ones(3), requires_grad=True)
    with mb.saved_tensors_hooks(lambda a: pytest.fail("packed"), np.array):
        pass
    ops.sum(ops.exp(w)).backward()


def test_the_innermost_hooks_count_and_what_they_call_is_not_packed():
    inner = []

    def pack(array):
        inner.append(array.shape)
        return ops.multiply(array, 1.0)

    w = mb.Tensor(np.ones(3), requires_grad=True)
    with (
        mb.saved_tensors_hooks(lambda a: pytest.fail("outer"), np.array),
        mb.saved_tensors_hooks(pack, lambda array: array),
    ):
        loss = ops.sum(ops.exp(w))
    loss.backward()
    assert inner == [(3,)]
    np.testing.assert_allclose(w.grad, np.full(3, np.e))


def test_an_array_that_packing_gives_is_what_the_ledger_counts():
    model, x = chain()
    with mb.Tape() as plain:
        loss = ops.sum(model(x))
        full = plain.saved_bytes
    with mb.Tape() as tape, mb.saved_tensors_hooks(lambda a: a.astype(np.float16), lambda a: a.astype(np.float32)):
        loss = ops.sum(model(x))
        # each of the 6 layers saves its output, and 5 of them the same buffer again as an input
        assert tape.saved_bytes == 11 * 256 * 64 * 2
        assert full == 6 * 256 * 64 * 4
        assert sum(row.saved_bytes for row in tape.rows()) == tape.saved_bytes
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_value_packed_into_an_array_and_changed_in_place_is_noticed():
    w = mb.Tensor(np.ones(3), requires_grad=True)
    with mb.saved_tensors_hooks(lambda a: a, lambda a: a):
        h = ops.exp(w)
        loss = ops.sum(h)
    h.copy_(np.zeros(3))
    with pytest.raises(mb.TapeError, match="changed in place"):
        loss.backward()


def test_an_exception_in_a_pack_function_leaves_the_engine_as_it_was():
    w = mb.Tensor(np.ones(3), requires_grad=True)

    def pack(array):
        raise RuntimeError("no room")

    with pytest.raises(mb.OpError, match="no room"), mb.saved_tensors_hooks(pack, np.array):
        ops.exp(w)
    ops.sum(ops.exp(w)).backward()
    np.testing.assert_allclose(w.grad, np.full(3, np.e))


# -- on disk


@pytest.mark.parametrize("policy", [None, "selective"])
@pytest.mark.parametrize("kind", MODELS)
def test_gradients_have_the_same_bits_and_the_dry_run_predicts_bytes(kind, policy, tmp_path):
    step = step_of(kind)
    mode = Mode("full") if policy is None else Mode("checkpoint", policy)
    wanted = step.account(mode)
    with mb.save_on_disk(tmp_path, min_bytes=0) as disk:
        predicted = step.predict(mode)
        written, read = disk.bytes_written, disk.bytes_read
        got = step.account(mode)
    assert got.gradient_sha256 == wanted.gradient_sha256
    assert got.loss == wanted.loss
    assert (disk.bytes_written - written, disk.bytes_read - read) == (written, read)
    assert got.ledger.saved_at_end_of_forward == predicted.ledger.saved_at_end_of_forward
    assert written > 0
    assert disk.bytes_stored == 0
    assert os.listdir(tmp_path) == []


def test_the_peak_is_the_predicted_one(tmp_path):
    model, x = chain(layers=12, width=64, samples=2048)
    step = Step(lambda: ops.sum(model(x)), model)
    full = step.predict(Mode("full")).peak.bytes
    with mb.save_on_disk(tmp_path):
        peak = step.predict(Mode("full")).peak.bytes
        measured, _ = step.measure(Mode("full"), step.account(Mode("full")).ledger)
    assert abs(measured.bytes - peak) < 16_384
    assert peak < full / 3


def test_a_buffer_is_written_once_however_many_views_of_it_are_saved(tmp_path):
    w = mb.Tensor(np.arange(24.0).reshape(4, 6), requires_grad=True)
    with mb.save_on_disk(tmp_path, min_bytes=0) as disk:
        h = ops.exp(w)
        parts = [ops.transpose(h, 0, 1), ops.reshape(h, (8, 3)), ops.getitem(h, (slice(1, 3), slice(None, None, 2)))]
        loss = sum((ops.sum(ops.multiply(part, part)) for part in parts), start=ops.sum(h))
        assert disk.bytes_written == 24 * 8
    e = np.exp(w.data)
    strided = np.zeros_like(e)
    strided[1:3, ::2] = 1
    del h, parts
    loss.backward()
    np.testing.assert_allclose(w.grad, e + 2 * e * e * (2 + strided))


def test_arguments_stay_in_memory_even_as_views(tmp_path):
    w = mb.Tensor(np.ones((64, 64)), requires_grad=True)
    x = mb.Tensor(np.ones((64, 64)))
    with mb.save_on_disk(tmp_path, min_bytes=0) as disk:
        ops.sum(ops.linear(ops.reshape(x, (64, 64)), ops.transpose(w, 0, 1))).backward()
    assert disk.bytes_written == 0


def test_small_buffers_stay_in_memory(tmp_path):
    w = mb.Tensor(np.ones(64), requires_grad=True)
    with mb.save_on_disk(tmp_path, min_bytes=64 * 8 + 1) as disk, mb.Tape() as tape:
        loss = ops.sum(ops.exp(w))
        assert tape.saved_bytes == 64 * 8
    loss.backward()
    assert disk.bytes_written == 0


def test_backward_after_the_block_reads_what_the_block_wrote(tmp_path):
    model, x = chain()
    ops.sum(model(x)).backward()
    wanted = gradients(model)
    model.zero_grad()
    with mb.save_on_disk(tmp_path) as disk:
        loss = ops.sum(model(x))
    assert disk.bytes_stored > 0
    loss.backward()
    assert disk.bytes_stored == 0
    assert all(np.array_equal(wanted[name], grad) for name, grad in gradients(model).items())


def test_steps_take_turns_in_the_same_room(tmp_path):
    model, x = chain()
    with mb.save_on_disk(tmp_path) as disk:
        sizes = []
        for _ in range(3):
            with mb.Tape():
                loss = ops.sum(model(x))
            sizes.append(disk._space._end)
            loss.backward()
    assert len(set(sizes)) == 1


def test_an_array_that_is_still_in_memory_is_not_read(tmp_path):
    w = mb.Tensor(np.ones(1000), requires_grad=True)
    with mb.save_on_disk(tmp_path) as disk:
        h = ops.exp(w)
        ops.sum(h).backward()
    assert disk.bytes_read == 0
    assert disk.bytes_written == 8000


def test_what_was_changed_in_place_afterwards_is_read_as_it_was(tmp_path):
    w = mb.Tensor(np.ones(1000), requires_grad=True)
    with mb.save_on_disk(tmp_path):
        h = ops.exp(w)
        loss = ops.sum(h)
        h.copy_(np.zeros(1000))
        loss.backward()
    np.testing.assert_allclose(w.grad, np.full(1000, np.e))


def test_under_a_plan_gradients_keep_their_bits(tmp_path):
    model, x = chain(layers=8, samples=2048)
    ops.sum(model(x)).backward()
    wanted = gradients(model)
    model.zero_grad()
    plan = mb.plan(model, x, budget=mb.plan(model, x, budget="1GiB").peak_bytes * 2 // 3)
    assert plan.extra_flops > 0
    with plan.apply(model), mb.save_on_disk(tmp_path):
        ops.sum(model(x)).backward()
    assert all(np.array_equal(wanted[name], grad) for name, grad in gradients(model).items())


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.zeros_like(np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1)),
        np.float32(3).reshape(()),
        np.zeros((1, 5, 1), np.int8, order="F"),
    ],
    ids=["rows", "columns", "permuted", "scalar", "ones"],
)
def test_a_buffer_comes_back_with_its_strides(array):
    array = np.array(array, copy=True, order="K")
    assert _is_dense(array)
    again = _empty(array.shape, array.dtype, array.strides)
    _flat(again)[...] = _flat(array)
    assert np.array_equal(again, array)
    assert again.base is None
    assert [s for s, n in zip(again.strides, again.shape, strict=True) if n > 1] == [
        s for s, n in zip(array.strides, array.shape, strict=True) if n > 1
    ]


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(mb.UsageError, match="no folder"):
        mb.save_on_disk(tmp_path / "missing")
    with pytest.raises(mb.UsageError, match="min_bytes"):
        mb.save_on_disk(tmp_path, min_bytes=-1)


def test_a_folder_in_memory_is_warned_of(tmp_path, monkeypatch):
    monkeypatch.setattr("memback.engine.offload._is_in_memory", lambda folder: True)
    with pytest.warns(mb.OffloadWarning, match="tmpfs"):
        mb.save_on_disk(tmp_path)


# -- when the disk is full, and however it ends


class FullDisk:
    """A file on a disk that has no room after some writes."""

    def __init__(self, file, writes):
        self._file, self._left = file, writes

    def __getattr__(self, name):
        return getattr(self._file, name)

    def write(self, data):
        self._left -= 1
        if self._left < 0:
            raise OSError(28, os.strerror(28))
        return self._file.write(data)


def test_a_full_disk_ends_in_one_clear_error_with_nothing_left(tmp_path, monkeypatch):
    model, x = chain()
    import tempfile

    real = tempfile.TemporaryFile
    files = []

    def limited(**options):
        files.append(FullDisk(real(**options), writes=3))
        return files[0]

    monkeypatch.setattr(tempfile, "TemporaryFile", limited)
    full = pytest.raises(mb.MembackError, match="no space left on device; free some space")
    with full as error, mb.save_on_disk(tmp_path):
        model(x)
    assert str(tmp_path) in str(error.value)
    assert files[0].closed
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    with mb.save_on_disk(tmp_path):
        ops.sum(model(x)).backward()


def run(script, folder, **options):
    command = [sys.executable, "-c", textwrap.dedent(script), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


SETUP = """
import os, sys, signal, resource
import numpy as np, memback as mb
from memback import nn, ops
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins by ignoring it
model = nn.Sequential(*[nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(6)])
x = mb.Tensor(np.ones((512, 64), np.float32))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the limit is one of POSIX")
def test_a_file_that_may_not_grow_ends_in_the_same_way(tmp_path):
    script = SETUP + textwrap.dedent("""
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        try:
            with mb.save_on_disk(sys.argv[1]):
                model(x)
        except mb.MembackError as error:
            print(error)
            print(os.listdir(sys.argv[1]), len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0)
        """)
    done = run(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "file too large; allow larger files" in done.stdout
    assert "\n[] " in done.stdout


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounting needs Linux and root")
def test_a_tiny_file_system_runs_full(tmp_path):
    disk = tmp_path / "tiny"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], check=False, capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        model, x = chain(samples=512)
        full = pytest.raises(mb.MembackError, match="no space left on device")
        with pytest.warns(mb.OffloadWarning), full, mb.save_on_disk(disk):
            model(x)
        gc.collect()
        room = os.statvfs(disk)
        assert os.listdir(disk) == []
        assert room.f_bfree == room.f_blocks
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize("end", ["raise ValueError('stop')", "os.kill(os.getpid(), signal.SIGINT)", "sys.exit(3)"])
def test_no_file_outlives_the_block(tmp_path, end):
    script = SETUP + textwrap.dedent(f"""
        try:
            with mb.save_on_disk(sys.argv[1]) as disk:
                loss = ops.sum(model(x))
                assert disk.bytes_written > 0
                {end}
        except BaseException as error:
            assert disk._space.closed
            print(type(error).__name__, os.listdir(sys.argv[1]))
        """)
    done = run(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" []\n")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux makes files without names")
def test_not_even_a_killed_process_leaves_a_file(tmp_path):
    script = SETUP + textwrap.dedent("""
        with mb.save_on_disk(sys.argv[1]) as disk:
            loss = ops.sum(model(x))
            assert disk.bytes_written > 0
            os.kill(os.getpid(), signal.SIGKILL)
        """)
    assert run(script, tmp_path).returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == []


def test_after_an_exception_in_the_block_what_it_saved_is_gone_and_said_to_be(tmp_path):
    model, x = chain()
    losses = []
    with pytest.raises(ZeroDivisionError), mb.save_on_disk(tmp_path) as disk:
        losses.append(ops.sum(model(x)))
        raise ZeroDivisionError
    with pytest.raises(mb.MembackError, match="are gone"):
        losses[0].backward()
    with disk:
        ops.sum(model(x)).backward()
    assert all(p.grad is not None for p in model.parameters())

"""Gradients that are too small for their dtype, and values that are wider than the parameters, are named."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import memback as mb
from memback import nn, ops
from memback.commands import main
from memback.nn.module import Parameter
from memback.profiling.definition import load
from memback.profiling.precision import warn_of_subnormal_gradients
from memback.profiling.training import Training
from memback.profiling.workload import Workload

DEEP = {"data.batch": "32", "model.initialisation": "uniform"}
DTYPES = ["float16", "bfloat16", "float32", "float64"]


def weight(largest: float, dtype: str = "float32", shape: tuple[int, ...] = (3, 4)) -> Parameter:
    """A parameter with a gradient whose largest element is the negative of ``largest``."""
    parameter = Parameter(np.ones(shape, dtype))
    parameter.grad = np.zeros(shape, dtype)
    parameter.grad[(0,) * len(shape)] = -largest
    return parameter


def warned(action: Callable[[], Any]) -> list[str]:
    """The warnings of precision that an action gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    assert {w.category for w in caught} <= {mb.PrecisionWarning}
    assert {w.filename for w in caught} <= {__file__}
    return [str(w.message) for w in caught]


# -- gradients


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_weight_whose_largest_gradient_is_subnormal_is_named(dtype: str) -> None:
    normal = float(ml_dtypes.finfo(dtype).smallest_normal)
    healthy, sick = ("healthy", weight(normal, dtype)), ("sick", weight(normal / 2, dtype))
    assert warned(lambda: warn_of_subnormal_gradients([healthy])) == []
    (message,) = warned(lambda: warn_of_subnormal_gradients([healthy, sick]))
    assert f"the gradients of sick are subnormal {dtype} numbers" in message
    assert ("loss scaling" in message) == (dtype == "float16")
    assert ("model.initialisation" in message) == (dtype != "float16")


def test_gradients_that_are_zero_missing_or_of_vectors_are_not_called_subnormal() -> None:
    without = Parameter(np.ones((2, 2), np.float32))
    parameters = [("zero", weight(0.0)), ("without", without), ("vector", weight(1e-41, shape=(4,)))]
    assert warned(lambda: warn_of_subnormal_gradients(parameters)) == []


def train(steps: int, **changes: str) -> Callable[[], list[float]]:
    work = Workload.build(load("deep-mlp").with_overrides({**DEEP, **changes}))
    return lambda: [result.loss for result in Training(work).steps(steps)]


def test_a_training_names_weights_with_subnormal_gradients_once() -> None:
    (message,) = warned(train(2))
    assert "the gradients of layers.0.0.weight" in message
    assert 'model.initialisation = "looks_linear"' in message


def test_the_remedy_of_the_warning_helps() -> None:
    assert warned(train(2, **{"model.initialisation": "looks_linear"})) == []


def test_a_training_looks_again_every_hundred_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    training = Training(Workload.build(load("notes")))
    monkeypatch.setattr(
        "memback.profiling.training.warn_of_subnormal_gradients",
        lambda parameters, stacklevel: looked.append(training.next_step),
    )
    for _ in training.steps(250):
        pass
    assert looked == [0, 100, 200]


def test_a_profile_names_weights_with_subnormal_gradients_once() -> None:
    work = Workload.build(load("deep-mlp").with_overrides(DEEP))
    (message,) = warned(
        lambda: mb.profile(work.model, step=work.step(), modes=["full", "inference", "retain-all"], rounds=1)
    )
    assert "the gradients of layers.0.0.weight" in message


@pytest.mark.parametrize("command", [["train", "--steps", "2"], ["profile", "--rounds", "1", "--mode", "full"]])
def test_the_command_line_shows_the_warning_as_one_line_of_standard_error(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [part for key, value in DEEP.items() for part in ("--set", f"{key}={value}")]
    assert main([command[0], "deep-mlp", *command[1:], *settings]) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith("Warning: the gradients of layers.0.0.weight")
    assert printed.err.count("subnormal") == 1
    assert "subnormal" not in printed.out


# -- values

X, Y = np.ones((32, 64), np.float32), np.zeros((32, 10), np.float32)


def network(dtype: str = "float32") -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 128, dtype=dtype), nn.ReLU(), nn.Linear(128, 10, dtype=dtype))


STEPS: dict[str, tuple[Callable[[nn.Module], mb.Tensor], str, str]] = {
    "input": (lambda model: ops.sqerr(model(mb.Tensor(X.astype(float))), Y), "float64", "linear in 0"),
    "integers": (lambda model: ops.sqerr(model(mb.Tensor(X.astype(int))), Y), "float64", "linear in 0"),
    "target": (lambda model: ops.sqerr(model(mb.Tensor(X)), Y.astype(float)), "float32, float64", "sqerr"),
    "scalar": (lambda model: ops.sum(model(mb.Tensor(X)) * np.float64(2)), "float32, float64", "multiply"),
}


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize("kind", STEPS)
def test_values_wider_than_the_parameters_are_named_once_and_the_report_says_the_dtype_that_ran(
    kind: str, dry: bool
) -> None:
    step, ran, where = STEPS[kind]
    model = network()
    reports: list[Any] = []

    def act() -> None:
        with mb.dry_run() if dry else nullcontext():
            reports.append(mb.profile(model, step=lambda: step(model), about={"dtype": "float32"}, rounds=1))

    (message,) = warned(act)
    assert message.startswith(f"parameters are float32, but {where} (")
    assert "2 times the bytes" in message
    assert reports[0].profile.dtype == ran


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_in_one_dtype_is_reported_in_it_without_a_warning(dtype: str) -> None:
    model = network(dtype)
    x, y = X.astype(dtype), Y.astype(dtype)
    reports: list[Any] = []
    assert (
        warned(lambda: reports.append(mb.profile(model, step=lambda: ops.sqerr(model(mb.Tensor(x)), y), rounds=1)))
        == []
    )
    assert reports[0].profile.dtype == dtype


def test_a_step_without_a_module_is_reported_in_the_dtype_that_ran() -> None:
    w = mb.Tensor(np.ones((64, 3)), requires_grad=True)
    report = mb.profile(step=lambda: ops.sum(ops.matmul(mb.Tensor(X), w)), modes=["full"], rounds=1)
    assert report.profile.dtype == "float64"


def test_whole_numbers_from_a_file_that_widen_every_value_are_named_in_training_too(tmp_path: Any) -> None:
    file = tmp_path / "data.npz"
    np.savez(file, x=np.ones((20, 64), np.uint8), y=np.zeros(20, np.int64))
    work = Workload.build(
        load("digits").with_overrides({"data.name": "npz", "data.path": str(file), "data.batch": "4"})
    )
    (message,) = warned(lambda: list(Training(work).steps(2)))
    assert message.startswith("parameters are float32, but linear in layers.0.0 (")

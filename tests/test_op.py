"""The contract of an op: contradictions are refused, and backward gets what was declared and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from memback import ops
from memback.engine.arrays import Array
from memback.engine.op import REGISTRY, Op, OpDefinitionError, OpError


@pytest.fixture(autouse=True)
def registry_as_before():
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


class Double(Op):
    """2 x, as a base that the tests below spoil."""

    name = "test_double"
    saves = {"x": ()}

    def forward(self, x: Array) -> Array:
        return np.multiply(x, 2)

    def vjp(self, d_out: Array) -> Array:
        return np.multiply(d_out, 2)

    def flops(self, out: Array) -> int:
        return out.size


class Recorder(Op):
    """x y z + shift; its vjp notes what it is given."""

    name = "test_recorder"
    residuals = ("sign",)
    saves = {"x": ("y", "z"), "y": ("x", "z", "sign"), "z": ("out",)}

    def forward(
        self, x: Array, y: Array, z: Array | None = None, shift: float = 0.5, *, keep: bool
    ) -> tuple[Array, Array | None]:
        self.kept = keep
        third = 1.0 if z is None else z
        return np.multiply(np.multiply(x, y), third) + shift, np.sign(x) if keep else None

    def vjp(
        self,
        d_out: Array,
        needs: Any,
        shapes: Any,
        shift: float,
        x: Array,
        y: Array,
        z: Array,
        sign: Array,
        out: Array,
    ) -> tuple[Array | None, ...]:
        self.seen = {"x": x, "y": y, "z": z, "sign": sign, "out": out}
        self.attributes = needs, shapes, shift
        return tuple(np.array(d_out) if need else None for need in needs)

    def flops(self, x: Array, shift: float, out: Array) -> int:
        return 100 * x.size + 10 * int(shift) + out.ndim


# -- contradictions


def refused(declaration: type[Op], message: str) -> None:
    with pytest.raises(OpDefinitionError, match=message):
        declaration()
    assert declaration.name not in REGISTRY or not isinstance(REGISTRY[declaration.name], declaration)


def test_saving_an_unknown_value_is_refused():
    class Wrong(Double):
        saves = {"x": ("y",)}

        def vjp(self, d_out: Array, y: Array) -> Array:
            return d_out

    refused(Wrong, r"op 'test_double' saves \['y'\] for 'x': neither an input, 'out', a residual nor an attribute")


def test_saving_for_something_that_is_no_input_is_refused():
    class Wrong(Double):
        saves = {"y": ()}

    refused(Wrong, r"op 'test_double' saves for 'y', which is no input")


def test_saving_for_an_attribute_is_refused():
    class Wrong(Double):
        saves = {"factor": ()}

        def forward(self, x: Array, factor: float) -> Array:
            return np.multiply(x, factor)

    refused(Wrong, r"saves for 'factor', which is no input")


def test_a_vjp_that_takes_an_unknown_name_is_refused():
    class Wrong(Double):
        def vjp(self, d_out: Array, slope: Array) -> Array:
            return d_out

    refused(Wrong, r"test_double\.vjp takes \['slope'\]: unknown names; it can have .*'needs', 'out', 'shapes', 'x'")


@pytest.mark.parametrize(
    ("value", "vjp"),
    [
        ("x", lambda self, d_out, x: d_out),
        ("out", lambda self, d_out, out: d_out),
        ("sign", lambda self, d_out, sign: d_out),
    ],
)
def test_a_vjp_that_takes_a_value_which_is_never_saved_is_refused(value, vjp):
    declaration = type("Wrong", (Double,), {"vjp": vjp, "residuals": ("sign",)})
    refused(declaration, rf"the vjp of op 'test_double' takes \['{value}'\], which it saves for no input")


@pytest.mark.parametrize("renamed", [{"a": "b"}, {"x": "x"}])
def test_an_old_name_that_leads_to_no_parameter_or_is_one_is_refused(renamed):
    declaration = type("Wrong", (Double,), {"renamed": renamed})
    ((old, new),) = renamed.items()
    refused(declaration, rf"op 'test_double' renames '{old}' to '{new}'; it has \['x'\]")


def test_saving_what_the_vjp_does_not_take_is_refused():
    class Wrong(Double):
        saves = {"x": ("x", "out")}

        def vjp(self, d_out: Array, x: Array) -> Array:
            return d_out

    refused(Wrong, r"op 'test_double' saves \['out'\], which its vjp does not take")


def test_flops_that_take_an_unknown_name_are_refused():
    class Wrong(Double):
        def flops(self, y: Array) -> int:
            return 0

    refused(Wrong, r"test_double\.flops takes \['y'\]: unknown names")


def test_single_inputs_beside_a_sequence_of_them_are_refused():
    class Wrong(Double):
        def forward(self, x: Array, others: Sequence[Array]) -> Array:
            return x

    refused(Wrong, r"takes both single inputs and a sequence of them")


@pytest.mark.parametrize(
    ("name", "forward"),
    [
        ("out", lambda self, x, out: x),
        ("needs", lambda self, x, needs: x),
        ("shapes", lambda self, x, shapes: x),
    ],
)
def test_reserved_parameter_names_are_refused(name, forward):
    refused(type("Wrong", (Double,), {"forward": forward}), rf"\['{name}'\] can't be a parameter of forward")


def test_two_ops_of_one_name_are_refused_and_the_first_stays():
    first = Double()
    refused(type("Second", (Double,), {}), r"two ops are called 'test_double'")
    assert REGISTRY["test_double"] is first


def test_every_op_that_is_exported_is_registered_under_its_name():
    for name in ops.__all__:
        op = getattr(ops, name)
        assert op.name == name
        assert REGISTRY[name] is op


# -- binding


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ((1, 2, 3, 4, 5), {}, r"test_recorder\(\) takes 4 arguments \('x', 'y', 'z', 'shift'\), got 5"),
        ((1, 2), {"w": 3}, r"test_recorder\(\) has no argument 'w'; it takes x, y, z, shift"),
        ((1, 2), {"keep": True}, r"has no argument 'keep'"),
        ((1, 2), {"sign": 3}, r"has no argument 'sign'"),
        ((1, 2), {"x": 3}, r"test_recorder\(\) got 'x' twice, by place and by name"),
        ((1,), {}, r"test_recorder\(\) misses y"),
        ((), {"z": 1}, r"test_recorder\(\) misses x, y"),
    ],
)
def test_wrong_arguments_are_named(args, kwargs, message):
    with pytest.raises(OpError, match=message):
        Recorder().bind(args, kwargs)


def test_binding_fills_in_names_and_defaults_in_order():
    op = Recorder()
    assert op.bind((1, 2), {}) == [1, 2, None, 0.5]
    assert op.bind((1,), {"shift": 3, "y": 2}) == [1, 2, None, 3]
    assert op.bind((), {"z": 4, "y": 2, "x": 1}) == [1, 2, 4, 0.5]


# -- what backward gets

X, Y, Z = np.array([1.0, -2.0]), np.array([3.0, 4.0]), np.array([5.0, 6.0])


@pytest.mark.parametrize(
    ("needs", "declared"),
    [
        (0b001, {"y", "z"}),
        (0b010, {"x", "z", "sign"}),
        (0b100, {"out"}),
        (0b011, {"x", "y", "z", "sign"}),
        (0b111, {"x", "y", "z", "sign", "out"}),
    ],
)
def test_vjp_gets_what_is_declared_for_the_needed_inputs_and_none_of_the_rest(needs, declared):
    op = Recorder()
    values = op.bind((X, Y, Z), {"shift": 7})
    out, residuals = op.run(values, keep=True)
    saving = op.saving(needs, 3)
    kept = op.arguments(saving, values, out, residuals)
    op.vjp(np.ones(2), *kept)
    assert {name for name, value in op.seen.items() if value is not None} == declared
    assert set(saving.names) == declared
    assert [kept[slot] is op.seen[name] for name, slot in zip(saving.names, saving.slots, strict=True)] == [True] * len(
        declared
    )
    flags, shapes, shift = op.attributes
    assert tuple(flags) == tuple(bool(needs >> k & 1) for k in range(3))
    assert flags._fields == ("x", "y", "z")
    assert shapes == [(2,), (2,), (2,)]
    assert shift == 7


def test_what_is_kept_holds_no_other_array():
    op = Recorder()
    values = op.bind((X, Y, Z), {})
    out, residuals = op.run(values, keep=True)
    kept = op.arguments(op.saving(0b100, 3), values, out, residuals)
    assert [item for item in kept if isinstance(item, np.ndarray)] == [out]


def test_an_input_that_was_not_given_is_none_and_has_no_shape():
    op = Recorder()
    assert op.backward(np.ones(2), X, Y)[2] is None
    flags, shapes, _ = op.attributes
    assert not flags.z
    assert shapes[2] == ()


@pytest.mark.parametrize("keep", [True, False])
def test_forward_is_told_whether_anything_will_be_kept(keep):
    op = Recorder()
    _, residuals = op.run(op.bind((X, Y), {}), keep)
    assert op.kept is keep
    assert (residuals[0] is not None) is keep


def test_differentiating_by_an_input_without_a_rule_names_it():
    class Half(Double):
        name = "test_half"

        def forward(self, x: Array, y: Array) -> Array:
            return np.multiply(x, y)

        def vjp(self, d_out: Array) -> Any:
            return d_out, None

    op = Half()
    with pytest.raises(OpError, match=r"test_half has no derivative by `y`; pass it without requires_grad, or use"):
        op.saving(0b10, 2)
    assert op.backward(X, X, Y)[1] is None


def test_a_sequence_of_inputs_gets_one_flag_and_one_shape_each():
    class Total(Op):
        name = "test_total"
        saves = {"parts": ()}

        def forward(self, parts: Sequence[Array]) -> Array:
            return np.sum(np.stack(parts), axis=0)

        def vjp(self, d_out: Array, needs: Any, shapes: Any) -> Any:
            self.seen = needs, shapes
            return tuple(np.array(d_out) if need else None for need in needs)

        def flops(self) -> int:
            return 0

    op = Total()
    gradients = op.backward(np.ones(2), [X, Y, Z])
    assert len(gradients) == 3
    assert op.seen == ((True, True, True), [(2,), (2,), (2,)])
    assert op.saving(0b101, 3).needs == (True, False, True)


# -- the notes' interface


def test_backward_gives_one_array_for_one_input_and_a_tuple_for_several():
    np.testing.assert_array_equal(Double().backward(np.ones(2), X), [2, 2])
    assert isinstance(ops.multiply.backward(np.ones(2), X, Y), tuple)


def test_backward_and_jacobian_of_an_op_without_derivative_say_so():
    class Constant(Double):
        name = "test_constant"
        saves = {}

    op = Constant()
    for run in (lambda: op.backward(X, X), lambda: op.jacobian(X)):
        with pytest.raises(OpError, match="test_constant has no derivative"):
            run()


def test_a_jacobian_row_by_row_has_the_outputs_shape_then_the_inputs():
    x, y = np.arange(6.0).reshape(2, 3), np.arange(3.0)
    by_x, by_y = ops.multiply.jacobian(x, y)
    assert by_x.shape == (2, 3, 2, 3)
    assert by_y.shape == (2, 3, 3)
    np.testing.assert_array_equal(by_x, np.einsum("ia,jb,j->ijab", np.eye(2), np.eye(3), y))
    np.testing.assert_array_equal(by_y, np.einsum("ij,ja->ija", x, np.eye(3)))


@pytest.mark.parametrize("b", [np.array([0.5, -0.5]), None])
def test_a_closed_jacobian_equals_the_one_row_by_row(b):
    h, W = np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(3, 2)
    closed = ops.linear.jacobian(h, W, b)
    rows = [ops.linear.backward(unit.reshape(2, 2), h, W, b) for unit in np.eye(4)]
    for k, jacobian in enumerate(closed):
        if jacobian is None:
            assert b is None
            assert k == 2
            continue
        stacked = np.stack([row[k] for row in rows]).reshape(jacobian.shape)
        np.testing.assert_array_equal(jacobian, stacked)


def test_the_jacobian_of_an_output_without_elements_has_none():
    by_x, by_y = ops.add.jacobian(np.ones((0, 3)), np.ones(3, np.float32))
    assert (by_x.shape, by_y.shape) == ((0, 3, 0, 3), (0, 3, 3))
    by_weight = ops.embedding.jacobian(np.zeros(0, int), np.ones((2, 3)))[1]
    assert by_weight.shape == (0, 3, 2, 3)


def test_the_jacobian_of_an_op_with_several_outputs_says_what_to_do():
    with pytest.raises(OpError, match="split has several outputs: take the Jacobian of one of them"):
        ops.split.jacobian(X, 1)


def test_flops_are_counted_from_parameters_by_name():
    op = Recorder()
    values = op.bind((X, Y), {"shift": 3})
    out, _ = op.run(values, keep=False)
    assert op.count_flops(values, out) == 231


def test_a_scalar_result_becomes_an_array():
    class Constant(Double):
        name = "test_number"

        def forward(self, x: Array) -> Any:
            return 3.0

    out, _ = Constant().run([X], keep=False)
    assert isinstance(out, np.ndarray)
    assert out.shape == ()


def test_a_sequence_of_arrays_is_looked_through_for_two_byte_types():
    import ml_dtypes

    narrow = np.ones((2, 3), ml_dtypes.bfloat16)
    wide = np.ones((2, 3), np.float32)
    assert ops.stack([narrow, narrow]).dtype == ml_dtypes.bfloat16
    assert ops.stack([wide, wide]).dtype == np.float32
    assert ops.concatenate([wide, wide]).dtype == np.float32


def test_annotations_may_be_objects_as_in_modules_that_do_not_postpone_them():
    class Shifted(Double):
        """2 x + y; its annotations are no text."""

        name = "test_shifted"
        saves = {"x": (), "y": ()}

        def forward(self, x, y=None, scale=2.0):
            return np.multiply(x, scale) if y is None else np.add(np.multiply(x, scale), y)

        forward.__annotations__ = {"x": Array, "y": Array | None, "scale": float}

        def vjp(self, d_out):
            return np.multiply(d_out, 2), d_out

    class Gathered(Double):
        """The first of several; its annotation is no text."""

        name = "test_gathered"
        saves = {"xs": ()}

        def forward(self, xs):
            return xs[0]

        forward.__annotations__ = {"xs": Sequence[Array]}

    assert Shifted().inputs == ("x", "y")
    assert Gathered().variadic == 0

"""Compiled operators compute what the numpy reference computes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.ir import TensorType
from eecompile.operators import OPERATORS
from eecompile.reference import evaluate
from tests.lowering.operator_cases import CASES, Case, draw

tvm = pytest.importorskip("tvm")
from tvm import te  # noqa: E402

from eecompile.targets.lowering import approximations  # noqa: E402
from eecompile.targets.lowering.operators import (  # noqa: E402
    COMPUTED,
    UnsupportedOperator,
    compute,
)

#: Reads past a buffer are likeliest where loops are not vectorised away: the plainest target.
TARGET = "llvm"


def _function(case: Case, expected: np.ndarray, constants: Any = None) -> Any:
    """The case as a TIR function of its inputs and its result."""
    inputs = [
        None if x is None else te.placeholder(x.shape, x.dtype.name, name=name)
        for name, x in zip(case.op.inputs, case.inputs, strict=True)
    ]
    (y,) = compute(case.op, inputs, {"y": TensorType.of(expected)}, constants)
    return te.create_prim_func([*(x for x in inputs if x is not None), y])


class Compiled:
    """Cases compiled into one library, since each compilation has a price of its own."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.cases = cases
        self.expected = [evaluate(case.op, case.inputs)[0] for case in cases]
        functions = {
            f"case{i}": _function(case, self.expected[i]).with_attr("global_symbol", f"case{i}")
            for i, case in enumerate(cases)
        }
        self.library = tvm.compile(tvm.IRModule(functions), target=TARGET)

    def run(self, i: int) -> np.ndarray:
        """The i-th case's result, from code."""
        result = tvm.runtime.tensor(np.zeros_like(self.expected[i]))
        inputs = [tvm.runtime.tensor(x) for x in self.cases[i].inputs if x is not None]
        self.library[f"case{i}"](*inputs, result)
        found: np.ndarray = result.numpy()
        return found

    def check(self, i: int) -> None:
        """Floats within 4e-6 of max(1, |expected|), everything else exactly.

        Resized floats within 2e-5: positions are float32, and their error of some 3e-6 (at position
        40) is multiplied by the slope between two elements.
        """
        found, expected = self.run(i), self.expected[i]
        assert found.dtype == expected.dtype
        if expected.dtype.kind == "f":
            scale = np.clip(np.abs(expected), 1, 1e30)
            atol = 2e-5 if self.cases[i].kind == "Resize" else 4e-6
            np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=atol)
        else:
            np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return Compiled(CASES)


def test_every_operator_is_defined_and_tried() -> None:
    assert set(COMPUTED) == set(OPERATORS) == {case.kind for case in CASES}


@pytest.mark.parametrize("i", range(len(CASES)), ids=lambda i: CASES[i].label)
def test_compiled_case_equals_reference(compiled: Compiled, i: int) -> None:
    compiled.check(i)


def test_compiled_code_calls_nothing_but_libm_and_its_own_entry_points(compiled: Compiled) -> None:
    text = compiled.library.mod.inspect_source("ll")
    called = set(re.findall(r"^declare .*?@([\w.]+)\(", text, re.MULTILINE))
    foreign = {name for name in called if not name.startswith(("llvm.", "TVMFFIError"))}
    assert foreign <= {"fmodf"}, "symbols that C's libm does not have"


def _check(*cases: Case) -> None:
    library = Compiled(cases)
    for i in range(len(cases)):
        library.check(i)


shapes = st.lists(st.integers(1, 4), max_size=4).map(tuple)


@st.composite
def broadcasts(draw_from: st.DrawFn) -> Case:
    """A binary operator over any two shapes that numpy broadcasts together."""
    whole = draw_from(shapes)

    def part(seed: int) -> np.ndarray:
        kept = whole[draw_from(st.integers(0, len(whole))) :]
        shape = tuple(1 if draw_from(st.booleans()) else extent for extent in kept)
        return np.asarray(draw(shape, seed=seed))

    return Case(draw_from(st.sampled_from(["Add", "Less", "Max"])), (part(0), part(1)), {})


@settings(max_examples=8, deadline=None)
@given(st.lists(broadcasts(), min_size=5, max_size=5))
def test_any_shapes_broadcast(cases: list[Case]) -> None:
    _check(*cases)


@st.composite
def pools(draw_from: st.DrawFn) -> Case:
    """Any average pool: padding, uncounted padding, dilation."""
    extent, kernel = draw_from(st.integers(1, 9)), draw_from(st.integers(1, 4))
    dilation, stride = draw_from(st.integers(1, 2)), draw_from(st.integers(1, 3))
    pads = draw_from(st.integers(0, 2)), draw_from(st.integers(0, 2))
    reach = (kernel - 1) * dilation + 1
    extra = draw_from(st.integers(0, 2)) + max(0, reach - extent - sum(pads))
    attributes = {
        "kernel_shape": (kernel,),
        "strides": (stride,),
        "dilations": (dilation,),
        "pads": pads,
        "extra": (extra,),
        "count_include_pad": draw_from(st.integers(0, 1)),
    }
    return Case("AveragePool", (draw((1, 2, extent)),), attributes)


@settings(max_examples=8, deadline=None)
@given(st.lists(pools(), min_size=5, max_size=5))
def test_any_average_pool_divides_by_what_counts(cases: list[Case]) -> None:
    _check(*cases)


@st.composite
def resizes(draw_from: st.DrawFn) -> Case:
    """Any resize of a line to a given size."""
    extent, size = draw_from(st.integers(1, 40)), draw_from(st.integers(1, 60))
    modes = [
        "half_pixel",
        "half_pixel_symmetric",
        "pytorch_half_pixel",
        "align_corners",
        "asymmetric",
    ]
    nearest = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
    scale, mode = size / extent, draw_from(st.sampled_from(["nearest", "linear", "cubic"]))
    if mode == "nearest" and draw_from(st.booleans()):
        # As files hold scales: whole positions and ties must come out as such all the same.
        scale = float(np.float32(scale))
    attributes = {
        "mode": mode,
        "coordinate_transformation_mode": draw_from(st.sampled_from(modes)),
        "nearest_mode": draw_from(st.sampled_from(nearest)),
        "scales": (1.0, 1.0, scale),
        "sizes": (1, 1, size),
        "cubic_coeff_a": -0.75,
    }
    return Case("Resize", (draw((1, 1, extent)),), attributes)


@settings(max_examples=10, deadline=None)
@given(st.lists(resizes(), min_size=6, max_size=6))
def test_any_resize_reads_the_same_elements(cases: list[Case]) -> None:
    _check(*cases)


@st.composite
def pads(draw_from: st.DrawFn) -> Case:
    """Any padding and cropping, also further than the array is long."""
    mode = draw_from(st.sampled_from(["constant", "reflect", "edge", "wrap"]))
    extents = draw_from(st.lists(st.integers(1, 5), min_size=1, max_size=2))
    begins, ends = [], []
    for extent in extents:
        begins.append(draw_from(st.integers(1 - extent, 7)))
        ends.append(draw_from(st.integers(1 - extent - min(0, begins[-1]), 7)))
    attributes = {"pads": (*begins, *ends), "mode": mode, "value": -1.5}
    return Case("Pad", (draw(extents),), attributes)


@settings(max_examples=8, deadline=None)
@given(st.lists(pads(), min_size=5, max_size=5))
def test_any_padding_mirrors_the_same_elements(cases: list[Case]) -> None:
    _check(*cases)


def test_indices_out_of_range_are_not_read() -> None:
    indices = np.array([-(2**40), -9, -4, 3, 9, 2**40 + 1])
    _check(
        Case("Gather", (draw((4, 3)), indices), {"axis": 0}),
        Case("GatherElements", (draw((6,)), indices[1:5]), {"axis": 0}),
        Case("Gather", (draw((4,)), indices[1:5].astype(np.int32)), {"axis": 0}),
    )


def test_division_by_integer_zero_does_not_end_the_process() -> None:
    pair = np.array([5, -5, 0]), np.array([0, 2, 0])
    library = Compiled([Case("Div", pair, {}), Case("Mod", pair, {})])
    assert library.run(0)[1] == -2
    assert library.run(1)[1] == 1


def test_extreme_values_saturate() -> None:
    limits = np.array([np.inf, -np.inf, 3e38, -3e38, 89.0, -89.0, -104.0, 0.0], np.float32)
    kinds = ("Exp", "Sigmoid", "Tanh", "Erf", "Softplus")
    _check(*(Case(kind, (limits,), {}) for kind in kinds))
    row = {"axis": 0, "keepdims": 0, "select_last_index": 0}
    lowest = np.full(3, -np.inf, np.float32)
    _check(Case("ArgMax", (lowest,), row), Case("Softmax", (limits[2:],), {"axis": 0}))


@pytest.mark.parametrize("exponent", [-1.0, -0.5, 0.5, 1.0, 2.0, 3.0])
def test_known_exponent_needs_no_power_function(exponent: float) -> None:
    value = np.asarray(exponent, np.float32)
    case = Case("Pow", (np.abs(draw((4, 3))) + np.float32(0.1), value), {})
    (expected,) = evaluate(case.op, case.inputs)
    function = _function(case, expected, {"x1": value})
    assert "pow(" not in function.script()
    result = tvm.runtime.tensor(np.zeros_like(expected))
    tvm.compile(function, target=TARGET)(*map(tvm.runtime.tensor, case.inputs), result)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (Case("Erf", (draw((3,), "int64"),), {}), "int64"),
        (Case("Add", (draw((3,), "int64"), draw((3,), "int32")), {}), "int32"),
        (Case("Pad", (draw((3,)),), {"pads": (1, 1), "mode": "mirror", "value": 0.0}), "mirror"),
        (Case("Celu", (draw((3,)),), {"alpha": -1.0}), "alpha"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_unsupported_operator_is_refused_by_name(case: Case, reason: str) -> None:
    with pytest.raises(UnsupportedOperator, match=reason) as error:
        _function(case, draw((3,)))
    assert f"`{case.kind}`" in str(error.value)
    assert error.value.op == case.op


def _exact(function: Any) -> Any:
    return np.vectorize(function, otypes=[np.float64])


APPROXIMATED: dict[str, tuple[Any, Any]] = {
    "exp": (approximations.exp, _exact(lambda x: math.exp(x) if x < 700 else math.inf)),
    "bounded_exp": (
        approximations.bounded_exp,
        _exact(lambda x: math.exp(max(min(x, 87), -87))),
    ),
    "expm1_negative": (approximations.expm1_negative, _exact(lambda x: math.expm1(min(x, 0)))),
    "sigmoid": (approximations.sigmoid, _exact(lambda x: 1 / (1 + math.exp(-x)))),
    "silu": (approximations.silu, _exact(lambda x: x / (1 + math.exp(-x)))),
    "softplus": (
        approximations.softplus,
        _exact(lambda x: max(x, 0) + math.log1p(math.exp(-abs(x)))),
    ),
    "tanh": (approximations.tanh, _exact(math.tanh)),
    "erf": (approximations.erf, _exact(math.erf)),
    "mish": (
        approximations.mish,
        _exact(lambda x: x * math.tanh(max(x, 0) + math.log1p(math.exp(-abs(x))))),
    ),
}


@pytest.mark.parametrize("vector", [1, 8])
@pytest.mark.parametrize("name", APPROXIMATED)
def test_approximation_is_within_a_millionth(name: str, vector: int) -> None:
    approximate, exact = APPROXIMATED[name]
    small = np.geomspace(1e-20, 1, 2000)
    points = np.concatenate([np.linspace(-86, 88, 16384), np.linspace(-5, 5, 8192), small, -small])
    points = points[: len(points) // 8 * 8].astype(np.float32)
    x = te.placeholder(points.shape, "float32", name="x")
    y = te.compute(points.shape, lambda i: approximate(x(i)), name="y")
    schedule = tvm.s_tir.Schedule(te.create_prim_func([x, y]))
    (loop,) = schedule.get_loops(schedule.get_sblock("y"))
    if vector > 1:
        schedule.vectorize(schedule.split(loop, [None, vector])[1])
    library = tvm.compile(schedule.mod, target=TARGET)
    if vector > 1:
        text = library.mod.inspect_source("ll")
        assert re.search(rf"fmul .*<{vector} x float>", text)
        assert not re.search(r"fmul .*float %", re.sub(r"<\d+ x float>", "", text))
    result = tvm.runtime.tensor(np.zeros_like(points))
    library(tvm.runtime.tensor(points), result)
    expected = exact(points.astype(np.float64))
    error = np.abs(result.numpy() - expected) / np.maximum(np.abs(expected), 1.2e-38)
    assert error.max() < 1e-6

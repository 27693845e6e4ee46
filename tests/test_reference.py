"""The numpy reference says what ONNX Runtime says, operator by operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.ir import Graph, Op, TensorType
from eecompile.operators import OPERATORS
from eecompile.reference import evaluate, run_graph
from eecompile.shapes import infer_types
from tests.lowering.operator_cases import CASES, Case, draw, onnx_model

ort = pytest.importorskip("onnxruntime")


def _in_onnx_runtime(case: Case, result: np.ndarray) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    model = onnx_model(case, result).SerializeToString()
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = {n: x for n, x in zip(case.op.inputs, case.inputs, strict=True) if x is not None}
    return session.run(None, feeds)[0]


def assert_agree(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """Same type; floats within `tolerance` of max(1, |expected|), everything else exactly."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    if expected.dtype.kind == "f":
        scale = np.maximum(1, np.abs(expected))
        np.testing.assert_allclose(found / scale, expected / scale, rtol=0, atol=tolerance)
    else:
        np.testing.assert_array_equal(found, expected)


def _check(case: Case) -> None:
    (found,) = evaluate(case.op, case.inputs)
    assert_agree(found, _in_onnx_runtime(case, found), 1e-5)


def test_every_operator_has_a_case() -> None:
    assert {case.kind for case in CASES} == set(OPERATORS)


def test_every_case_uses_exactly_the_attributes_of_the_table() -> None:
    for case in CASES:
        names = OPERATORS[case.kind].attributes
        allowed = {name.removesuffix("?") for name in names}
        required = {name for name in names if not name.endswith("?")}
        assert required <= set(case.attributes) <= allowed, case.label


#: `Keep` is none of ONNX's operators.
ONNX_CASES = [case for case in CASES if case.kind != "Keep"]


@pytest.mark.parametrize("case", ONNX_CASES, ids=lambda case: case.label)
def test_case_equals_onnx_runtime(case: Case) -> None:
    _check(case)


def test_inferred_types_are_those_of_the_results() -> None:
    for case in CASES:
        types = [None if x is None else TensorType.of(x) for x in case.inputs]
        (result,) = evaluate(case.op, case.inputs)
        assert infer_types(case.op, types) == (TensorType.of(result),), case.label


shapes = st.lists(st.integers(1, 4), max_size=4).map(tuple)


@st.composite
def broadcastable(draw_from: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes that numpy broadcasts together."""
    whole = draw_from(shapes)

    def part() -> tuple[int, ...]:
        kept = whole[draw_from(st.integers(0, len(whole))) :]
        return tuple(1 if draw_from(st.booleans()) else extent for extent in kept)

    return part(), part()


@settings(max_examples=30, deadline=None)
@given(broadcastable(), st.sampled_from(["Add", "Less", "Max", "Pow"]))
def test_any_two_shapes_broadcast_as_in_onnx(
    pair: tuple[tuple[int, ...], tuple[int, ...]], kind: str
) -> None:
    a, b = (draw(shape, seed=seed) for seed, shape in enumerate(pair))
    _check(Case(kind, (np.asarray(np.abs(a)), b), {}))


@st.composite
def pools(draw_from: st.DrawFn) -> Case:
    """Pools over any extents with padding smaller than the kernel."""
    extents = draw_from(st.lists(st.integers(3, 9), min_size=1, max_size=2))
    kernel, strides, begins, ends = [], [], [], []
    for extent in extents:
        size = draw_from(st.integers(1, min(3, extent)))
        kernel.append(size)
        strides.append(draw_from(st.integers(1, 3)))
        begins.append(draw_from(st.integers(0, size - 1)))
        ends.append(draw_from(st.integers(0, size - 1)))
    attributes: dict[str, Any] = {
        "kernel_shape": tuple(kernel),
        "strides": tuple(strides),
        "pads": (*begins, *ends),
    }
    if draw_from(st.booleans()):
        return Case(
            "MaxPool", (draw((1, 2, *extents)),), attributes | {"dilations": (1,) * len(extents)}
        )
    attributes["count_include_pad"] = draw_from(st.integers(0, 1))
    attributes["extra"] = (0,) * len(extents)
    return Case("AveragePool", (draw((1, 2, *extents)),), attributes)


@settings(max_examples=40, deadline=None)
@given(pools())
def test_any_pool_is_that_of_onnx(case: Case) -> None:
    _check(case)


@st.composite
def resizes(draw_from: st.DrawFn) -> Case:
    """Any resize of a small image to given sizes."""
    extents = draw_from(st.tuples(st.integers(1, 8), st.integers(2, 8)))
    sizes = (1, 1, *draw_from(st.tuples(st.integers(1, 17), st.integers(1, 17))))
    shape = (1, 1, *extents)
    modes = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"]
    nearest = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
    attributes = {
        "mode": draw_from(st.sampled_from(["nearest", "linear"])),
        "coordinate_transformation_mode": draw_from(st.sampled_from(modes)),
        "nearest_mode": draw_from(st.sampled_from(nearest)),
        "scales": tuple(a / b for a, b in zip(sizes, shape, strict=True)),
        "sizes": sizes,
        "cubic_coeff_a": -0.75,
    }
    return Case("Resize", (draw(shape),), attributes)


@settings(max_examples=60, deadline=None)
@given(resizes())
def test_any_resize_is_that_of_onnx(case: Case) -> None:
    _check(case)


@st.composite
def slices(draw_from: st.DrawFn) -> Case:
    """Any slice in the neutral form, of either direction."""
    shape = draw_from(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    walks = []
    for extent in shape:
        step = draw_from(st.sampled_from([-3, -2, -1, 1, 2, 3]))
        if step > 0:
            start = draw_from(st.integers(0, extent - 1))
            end = draw_from(st.integers(start + 1, extent))
        else:
            start = draw_from(st.integers(0, extent - 1))
            end = draw_from(st.integers(-1, start - 1))
        walks.append((start, end, step))
    starts, ends, steps = zip(*walks, strict=True)
    attributes = {"starts": starts, "ends": ends, "steps": steps, "axes": tuple(range(len(shape)))}
    return Case("Slice", (draw(shape),), attributes)


@settings(max_examples=40, deadline=None)
@given(slices())
def test_any_slice_is_that_of_onnx(case: Case) -> None:
    _check(case)


def _run(kind: str, *inputs: np.ndarray, **attributes: Any) -> np.ndarray:
    (result,) = evaluate(Case(kind, inputs, attributes).op, inputs)
    return result


def test_indices_out_of_range_take_the_nearest_element() -> None:
    data = np.arange(4, dtype=np.float32)
    indices = np.array([-9, -4, 3, 9])
    np.testing.assert_array_equal(_run("Gather", data, indices, axis=0), [0, 0, 3, 3])


def test_division_by_integer_zero_does_not_raise() -> None:
    _run("Div", np.array([5, -5]), np.array([0, 2]))
    _run("Mod", np.array([5, -5]), np.array([0, 2]))


def _conv(name: str, x: str, channels: Sequence[int], stride: int) -> tuple[Op, np.ndarray]:
    weight = draw((channels[1], channels[0], 3, 3)) / np.float32(10 * channels[0])
    attributes: dict[str, Any] = {
        "strides": (stride, stride),
        "pads": (1, 1, 1, 1),
        "dilations": (1, 1),
        "group": 1,
    }
    return Op(name, "Conv", (x, f"{name}.w"), (name,), attributes), weight


def test_run_graph_gives_the_named_outputs_of_a_chain() -> None:
    first, w1 = _conv("a", "x", (3, 4), 1)
    second, w2 = _conv("b", "r", (4, 2), 2)
    relu = Op("relu", "Relu", ("a",), ("r",))
    graph = Graph("g", ("x",), ("b", "r"), (first, relu, second), {"a.w": w1, "b.w": w2})
    x = draw((1, 3, 8, 8))
    found = run_graph(graph, {"x": x})
    (a,) = evaluate(first, [x, w1])
    (b,) = evaluate(second, [np.maximum(a, 0), w2])
    assert list(found) == ["b", "r"]
    np.testing.assert_array_equal(found["b"], b)
    np.testing.assert_array_equal(found["r"], np.maximum(a, 0))
    assert found["b"].shape == (1, 2, 4, 4)


@pytest.mark.parametrize("case", [c for c in CASES if c.kind == "Keep"], ids=lambda c: c.label)
def test_keep_looks_at_the_score_of_each_channels_group(case: Case) -> None:
    x, scores = case.inputs
    assert x is not None and scores is not None
    (found,) = evaluate(case.op, case.inputs)
    size = x.shape[1] // scores.shape[1]
    for channel in range(x.shape[1]):
        kept = scores[0, channel // size] > 0
        expected = x[:, channel] if kept else np.zeros_like(x[:, channel])
        np.testing.assert_array_equal(found[:, channel], expected)

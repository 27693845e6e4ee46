"""Neutral operators to try: attributes, inputs, and the ONNX model that means the same.

Used by the tests of the numpy reference (against ONNX Runtime) and of the compiled operators
(against the reference), so that both see the same cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eecompile.ir import Op

__all__ = ["CASES", "Case", "draw", "onnx_model"]


@dataclass(frozen=True)
class Case:
    """An operator and its inputs, an array each or None where it is absent."""

    kind: str
    inputs: tuple[np.ndarray | None, ...]
    attributes: dict[str, Any]

    @property
    def op(self) -> Op:
        names = ["" if x is None else f"x{i}" for i, x in enumerate(self.inputs)]
        return Op("case", self.kind, tuple(names), ("y",), self.attributes)

    @property
    def label(self) -> str:
        types = [
            "-" if x is None else f"{x.dtype.name}{list(x.shape)}".replace(" ", "")
            for x in self.inputs
        ]
        told = [f"{k}={v}".replace(" ", "") for k, v in self.attributes.items()]
        return " ".join([self.kind, *types, *told])


def draw(shape: Sequence[int], dtype: str = "float32", seed: int = 0) -> np.ndarray:
    """Reproducible values: normal floats, small integers of both signs, even bools."""
    rng = np.random.default_rng([seed, *shape])
    if dtype == "float32":
        return rng.normal(0, 2, shape).astype(np.float32)
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    low = 0 if dtype.startswith("u") else -9
    return rng.integers(low, 10, shape).astype(dtype)


CASES: list[Case] = []


def _case(kind: str, *inputs: Any, **attributes: Any) -> None:
    arrays = tuple(None if x is None else np.asarray(x) for x in inputs)
    CASES.append(Case(kind, arrays, attributes))


def _elementwise() -> None:
    wide = np.concatenate([draw((200,)), np.linspace(-30, 30, 100, dtype=np.float32)])
    wide = np.concatenate([wide, np.array([0, 0.5, 1.5, -0.5, -2.5, 1e-8, -1e-4], np.float32)])
    positive = np.abs(wide) + np.float32(1e-3)
    for kind in [
        "Abs",
        "Ceil",
        "Cos",
        "Erf",
        "Exp",
        "Floor",
        "HardSwish",
        "Mish",
        "Neg",
        "Relu",
        "Round",
        "Sigmoid",
        "Sign",
        "Sin",
        "Softplus",
        "Softsign",
        "Tanh",
    ]:
        _case(kind, wide)
    for kind in ("Log", "Sqrt", "Reciprocal"):
        _case(kind, positive)
    _case("Sqrt", np.float32(4))
    _case("Not", draw((2, 3), "bool"))
    for kind in ("Abs", "Neg", "Relu", "Sign"):
        _case(kind, draw((3, 4), "int32"))
    for kind in ("Abs", "Neg", "Sign"):
        _case(kind, draw((3, 4), "int64"))
    for kind in [
        "Add",
        "Div",
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Max",
        "Min",
        "Mod",
        "Mul",
        "Sub",
    ]:
        _case(kind, draw((2, 3, 4)), draw((3, 1), seed=1))
        _case(kind, draw((4,), "int64"), _nonzero(draw((5, 1), "int64", 1)))
    for kind in ("And", "Or", "Xor"):
        _case(kind, draw((3, 4), "bool"), draw((4,), "bool", 1))
    _case("Equal", draw((3, 4), "bool"), draw((4,), "bool", 1))
    _case("Add", draw((2, 3)), np.float32(1.5))
    _case("Div", draw((6,), "int32"), _nonzero(draw((6,), "int32", 1)))
    _case("PRelu", draw((2, 3, 4)), draw((3, 1), seed=1))
    _case("Pow", np.abs(draw((3, 4))), draw((4,), seed=1))
    _case("Pow", draw((3, 4)), np.float32(2))
    _case("Pow", draw((3, 4), "int64"), np.array([0, 1, 2, 3]))
    for kind, attributes in (
        ("Celu", {"alpha": 1.5}),
        ("Clip", {"min": -1.0, "max": 2.5}),
        ("Clip", {"min": 0.0, "max": float("inf")}),
        ("Elu", {"alpha": 0.7}),
        ("Gelu", {"approximate": "none"}),
        ("Gelu", {"approximate": "tanh"}),
        ("HardSigmoid", {"alpha": 0.2, "beta": 0.4}),
        ("LeakyRelu", {"alpha": 0.1}),
        ("Selu", {"alpha": 1.6732632, "gamma": 1.050701}),
        ("ThresholdedRelu", {"alpha": 0.5}),
    ):
        _case(kind, wide, **attributes)
    _case("Clip", draw((12,), "int64"), min=-3.0, max=float("inf"))
    _case("Clip", draw((12,), "int8"), min=float("-inf"), max=4.0)
    for source in ("float32", "int64", "bool", "uint8", "int8"):
        for to in ("float32", "int32", "bool", "int64"):
            _case("Cast", draw((5, 3), source), to=to)
    _case("Cast", np.abs(draw((9,))), to="uint8")
    _case("Where", draw((2, 1, 3), "bool"), draw((4, 1)), draw((3,), seed=1))
    _case("Where", draw((4,), "bool"), draw((4,), "int64"), draw((1,), "int64", 1))
    for shape in ((1, 6, 3, 5), (1, 6, 7), (1, 6)):
        _case("Keep", draw(shape), np.array([[1.0, -2.0, 0.0]], np.float32))


def _nonzero(x: np.ndarray) -> np.ndarray:
    return np.where(x == 0, np.array(7, x.dtype), x)


def _convolutions() -> None:
    plain = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1), "group": 1}
    image = draw((1, 4, 9, 8))
    cases: list[tuple[tuple[int, ...], bool, dict[str, Any]]] = [
        ((6, 4, 3, 3), True, {"pads": (1, 1, 1, 1)}),
        ((6, 4, 1, 1), False, {"strides": (2, 2)}),
        ((6, 2, 3, 2), True, {"group": 2, "pads": (0, 1, 2, 0), "strides": (2, 1)}),
        ((4, 1, 3, 3), True, {"group": 4, "pads": (2, 2, 2, 2), "dilations": (2, 2)}),
        ((8, 1, 3, 3), False, {"group": 4}),
    ]
    for shape, biased, changed in cases:
        bias = draw(shape[:1], seed=2) if biased else None
        _case("Conv", image, draw(shape, seed=1), bias, **plain | changed)
    line = {"strides": (2,), "pads": (1, 2), "dilations": (1,), "group": 1}
    _case("Conv", draw((2, 3, 11)), draw((5, 3, 3), seed=1), draw((5,)), **line)
    plain["output_padding"] = (0, 0)
    image = draw((1, 4, 4, 5))
    cases = [
        ((4, 3, 3, 3), True, {}),
        ((4, 3, 3, 2), True, {"strides": (2, 3), "pads": (1, 0, 0, 1), "output_padding": (1, 2)}),
        ((4, 2, 3, 3), True, {"group": 2, "dilations": (2, 1), "strides": (1, 2)}),
        ((4, 1, 1, 1), False, {"group": 4, "strides": (2, 2)}),
    ]
    for shape, biased, changed in cases:
        bias = draw((shape[1] * changed.get("group", 1),), seed=2) if biased else None
        _case("ConvTranspose", image, draw(shape, seed=1), bias, **plain | changed)
    line |= {"output_padding": (1,), "pads": (0, 1)}
    _case("ConvTranspose", draw((1, 3, 6)), draw((3, 2, 4), seed=1), **line)


def _products() -> None:
    shapes: list[tuple[tuple[int, ...], tuple[int, ...]]] = [
        ((3, 4), (4, 5)),
        ((2, 1, 3, 4), (5, 4, 2)),
        ((4,), (4, 5)),
        ((2, 3, 4), (4,)),
        ((4,), (4,)),
    ]
    for a, b in shapes:
        _case("MatMul", draw(a), draw(b, seed=1))
    _case("MatMul", draw((3, 4), "int32"), draw((4, 2), "int32", 1))


def _pools() -> None:
    image = draw((1, 2, 8, 9))
    for kernel, strides, pads, dilations in (
        ((2, 2), (2, 2), (0, 0, 0, 0), (1, 1)),
        ((3, 3), (2, 1), (1, 1, 1, 0), (1, 1)),
        ((3, 2), (1, 2), (0, 1, 1, 0), (2, 3)),
    ):
        pool: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "pads": pads}
        _case("MaxPool", image, **pool, dilations=dilations)
        for counted in (0, 1):
            _case("AveragePool", image, **pool, count_include_pad=counted, dilations=dilations)
    pool = {"kernel_shape": (3,), "strides": (2,), "pads": (1, 1)}
    _case("MaxPool", draw((1, 2, 8), "int8"), **pool, dilations=(1,))
    _case("AveragePool", draw((1, 2, 8)), **pool, count_include_pad=1)
    # As a host resolves ceil_mode: 8 rows give 4 windows, the last reaching 1 beyond.
    for pads, extra in (((0, 0, 0, 0), (1, 0)), ((1, 1, 1, 1), (1, 0)), ((0, 2, 1, 1), (0, 1))):
        pool = {"kernel_shape": (3, 3), "strides": (2, 2), "pads": pads, "extra": extra}
        for counted in (0, 1):
            _case("AveragePool", image, **pool, count_include_pad=counted)


def _axes() -> None:
    x = draw((2, 3, 4, 5))
    c = (np.abs(draw((4,), seed=i)) + np.float32(0.1) for i in range(4))
    _case("BatchNormalization", draw((2, 4, 3)), *c, epsilon=1e-5)
    _case("LayerNormalization", x, draw((5,)), draw((5,), seed=1), axis=3, epsilon=1e-5)
    _case("LayerNormalization", x, draw((4, 5)), axis=2, epsilon=1e-3)
    _case("InstanceNormalization", x, draw((3,)), draw((3,), seed=1), epsilon=1e-4)
    for groups in (1, 2, 6):
        parameters = draw((6,)), draw((6,), seed=1)
        _case(
            "GroupNormalization", draw((2, 6, 3, 2)), *parameters, epsilon=1e-4, num_groups=groups
        )
    for kind in ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"):
        for axes, keepdims in (((1,), 0), ((0, 2), 1), ((0, 1, 2, 3), 0), ((2, 3), 0)):
            _case(kind, x, axes=axes, keepdims=keepdims)
    for kind in ("ReduceMax", "ReduceProd", "ReduceSum"):
        _case(kind, draw((3, 4), "int64"), axes=(1,), keepdims=0)
    few = np.round(draw((3, 6, 4)))
    for kind in ("ArgMax", "ArgMin"):
        for axis, keepdims, last in ((0, 0, 0), (1, 1, 1), (2, 0, 1)):
            _case(kind, few, axis=axis, keepdims=keepdims, select_last_index=last)
        _case(kind, draw((5,), "int32"), axis=0, keepdims=0, select_last_index=0)
    for exclusive, reverse in ((0, 0), (0, 1), (1, 0), (1, 1)):
        _case("CumSum", draw((3, 5)), axis=1, exclusive=exclusive, reverse=reverse)
        _case("CumSum", draw((3, 5), "int64"), axis=0, exclusive=exclusive, reverse=reverse)
    for kind in ("LogSoftmax", "Softmax"):
        for axis in (1, 3):
            _case(kind, x * 9, axis=axis)


def _moving() -> None:
    x = draw((2, 3, 4, 5))
    for dtype in ("float32", "int64", "bool", "uint8"):
        of = [draw((2, n, 3), dtype, n) for n in (1, 4, 2)]
        _case("Concat", *of, axis=1)
        data = draw((4, 5), dtype)
        _case("Transpose", draw((2, 3, 4), dtype), perm=(2, 0, 1))
        _case("Reshape", draw((2, 3, 4), dtype), shape=(4, 6))
        _case("Slice", data, starts=(1, 0), ends=(3, 5), axes=(0, 1), steps=(1, 2))
        _case("Slice", data, starts=(4,), ends=(-1,), axes=(1,), steps=(-2,))
        _case("Slice", data, starts=(3, 3), ends=(0, 0), axes=(0, 1), steps=(-1, -3))
        _case("Gather", data, np.array([[0, -1, 3], [2, 2, -4]]), axis=0)
        _case("Expand", draw((3, 1), dtype), shape=(2, 3, 4))
        _case("Tile", draw((2, 3), dtype), repeats=(2, 3))
        value = 1 if dtype != "float32" else 0.25
        _case("Pad", data, pads=(1, 0, 2, 3), mode="constant", value=value)
    _case("Reshape", draw((1, 1)), shape=())
    _case("Reshape", np.float32(3), shape=(1, 1, 1))
    _case("Gather", x, np.array(-1), axis=2)
    _case("Gather", x, np.array([1, 0, 1], np.int32), axis=3)
    indices = np.array([[0, -1], [2, 1]])
    _case("GatherElements", draw((3, 4)), indices, axis=1)
    _case("GatherElements", draw((3, 4), "int64"), indices, axis=0)
    for axis in (0, 1, 2):
        hot = {"depth": 4, "off_value": -1.0, "on_value": 2.0}
        _case("OneHot", np.array([[0, 3, -1], [4, 1, -5]]), axis=axis, **hot)
    hot = {"depth": 3, "off_value": 0, "on_value": 1}
    _case("OneHot", np.array([0, 2]), axis=1, **hot, to="int64")
    for mode in ("reflect", "edge", "wrap"):
        _case("Pad", draw((3, 4, 5)), pads=(0, 2, 1, 0, 1, 3), mode=mode, value=0.0)
    _case("Pad", draw((3, 4)), pads=(-1, 2, 1, -2), mode="constant", value=1.5)
    for mode in ("DCR", "CRD"):
        _case("DepthToSpace", draw((2, 12, 2, 3)), blocksize=2, mode=mode)
    _case("SpaceToDepth", draw((2, 3, 4, 6)), blocksize=2)


def _resize() -> None:
    image = draw((1, 2, 4, 6))
    for transformation in [
        "half_pixel",
        "half_pixel_symmetric",
        "pytorch_half_pixel",
        "align_corners",
        "asymmetric",
    ]:
        for sizes in ((1, 2, 8, 9), (1, 2, 1, 4)):
            scales = tuple(a / b for a, b in zip(sizes, image.shape, strict=True))
            shared = {
                "scales": scales,
                "sizes": sizes,
                "coordinate_transformation_mode": transformation,
                "cubic_coeff_a": -0.75,
            }
            for mode in ("linear", "cubic"):
                _case("Resize", image, mode=mode, nearest_mode="floor", **shared)
            for nearest in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
                _case("Resize", image, mode="nearest", nearest_mode=nearest, **shared)
    float32_scales = tuple(float(np.float32(s)) for s in (1, 1, 1 / 3, 0.7))
    told = {"coordinate_transformation_mode": "asymmetric", "cubic_coeff_a": -0.5}
    for mode in ("nearest", "linear", "cubic"):
        x = draw((1, 1, 9, 10))
        _case("Resize", x, mode=mode, scales=float32_scales, nearest_mode="floor", **told)
    x = draw((1, 3, 5, 5), "uint8")
    _case("Resize", x, mode="nearest", scales=(1.0, 1.0, 2.0, 3.0), nearest_mode="floor", **told)


def _quantisation() -> None:
    x = np.concatenate([draw((60,)), np.array([0.25, 0.75, 1.25, -0.25, 1e9, -1e9], np.float32)])
    for dtype in ("uint8", "int8"):
        zero = np.array(3, dtype)
        _case("QuantizeLinear", x, np.float32(0.5), zero, axis=1)
        _case("QuantizeLinear", x, np.array([0.02], np.float32), np.array([5], dtype), axis=0)
        _case("DequantizeLinear", draw((3, 4), dtype), np.float32(0.1), zero, axis=1)
        scales = np.array([0.1, 0.3, 0.01], np.float32)
        zeros = np.array([0, 3, 7], dtype)
        _case("QuantizeLinear", draw((2, 3, 4)), scales, zeros, axis=1)
        _case("DequantizeLinear", draw((2, 3, 4), dtype), scales, zeros, axis=1)
    _case("QuantizeLinear", x, np.float32(0.1), axis=1)
    _case("DequantizeLinear", draw((5,), "int32"), np.float32(0.125), axis=0)


_elementwise()
_convolutions()
_products()
_pools()
_axes()
_moving()
_resize()
_quantisation()

#: Attributes that ONNX takes as an int64 input instead, in the order of its inputs.
_AS_INPUTS = {
    "CumSum": ("axis",),
    "Expand": ("shape",),
    "Reshape": ("shape",),
    "Slice": ("starts", "ends", "axes", "steps"),
    "Tile": ("repeats",),
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"), ("axes",)),
}


def onnx_model(case: Case, result: np.ndarray) -> Any:
    """The ONNX model of one node that means what the case means; its result is of this type."""
    from onnx import TensorProto, helper, numpy_helper

    attributes = dict(case.attributes)
    names = list(case.op.inputs)
    constants: list[Any] = []

    def constant(values: Any, dtype: str) -> None:
        names.append(f"c{len(names)}")
        constants.append(numpy_helper.from_array(np.asarray(values, dtype), names[-1]))

    for name in _AS_INPUTS.get(case.kind, ()):
        value = attributes.pop(name)
        if name == "ends":  # Only the neutral form says "before the first" with -1.
            backward = [s < 0 and e == -1 for s, e in zip(attributes["steps"], value, strict=True)]
            value = [-(10**6) if b else e for b, e in zip(backward, value, strict=True)]
        constant(value, "int64")
    x = case.inputs[0]
    assert x is not None
    match case.kind:
        case "Clip":
            for bound in (attributes.pop("min"), attributes.pop("max")):
                if np.isinf(bound):
                    names.append("")
                else:
                    constant(bound, x.dtype.name)
        case "Pad":
            constant(attributes.pop("pads"), "int64")
            constant(attributes.pop("value"), x.dtype.name)
        case "OneHot":
            constant(attributes.pop("depth"), "int64")
            values = [attributes.pop("off_value"), attributes.pop("on_value")]
            constant(values, attributes.pop("to", "float32"))
        case "Resize":
            names.append("")
            scales, sizes = attributes.pop("scales"), attributes.pop("sizes", None)
            if sizes is None:
                constant(scales, "float32")
            else:
                names.append("")
                constant(sizes, "int64")
        case "Cast":
            attributes["to"] = helper.np_dtype_to_tensor_dtype(np.dtype(attributes["to"]))
        case "Mod":
            attributes["fmod"] = int(x.dtype.kind == "f")
        case "AveragePool":
            attributes["ceil_mode"] = int(any(attributes.pop("extra", ())))
    node = helper.make_node(case.kind, names, ["y"], **attributes)
    given = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        )
        for name, value in zip(case.op.inputs, case.inputs, strict=True)
        if value is not None
    ]
    kind = helper.np_dtype_to_tensor_dtype(result.dtype)
    assert kind != TensorProto.UNDEFINED
    graph = helper.make_graph(
        [node],
        "case",
        given,
        [helper.make_tensor_value_info("y", kind, result.shape)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)

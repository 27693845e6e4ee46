"""The neutral operators: ONNX's names and semantics, compile-time parameters as attributes.

Hosts translate to these (`passes/fx_host.py`, `passes/onnx_host.py`); `targets/lowering` compiles
these; heads are written in these. What an operator means is ONNX's definition at opset 21 but for
what stands here; `reference.py` says it in numpy. Rules that hold for all:

- Layout is the source's (N, C, H, W for images). Lowering chooses its own layouts.
- Shape parameters are attributes and are normalised: axes are non-negative and sorted, `Slice`
  bounds are clamped into the shape, `Reshape` shapes hold no 0 or -1, pads are
  (begin..., end...) over the dimensions the operator pads, `auto_pad` is resolved.
- Every attribute of the table is present, also where ONNX has a default; those marked "?" may be
  absent and then take the default told beside them. Booleans are 0 or 1.
- Operators have exactly one output. (MaxPool's indices, Dropout's mask ... : refused by hosts.)
- Values are float32, int64, int32, bool, uint8 or int8. Arithmetic never promotes: a and b have
  one type. Comparisons give bool, ArgMax and ArgMin int64, the rest the type of their first value
  input unless the table says otherwise. float16 and float64 are cast to float32 by the hosts.
- NaN and division by an integer zero are not specified (compiled code does not trap on them).
- Aliases are rewritten by the hosts, so that one thing has one form:
    Gemm -> MatMul (+ Add)            Flatten, Squeeze, Unsqueeze -> Reshape
    GlobalAveragePool -> ReduceMean   GlobalMaxPool -> ReduceMax
    Split, Chunk -> Slice             Identity, Dropout (inference) -> nothing
    Upsample -> Resize                ReduceL2, ReduceSumSquare, ReduceLogSumExp -> compositions
    Silu -> Sigmoid, Mul              Sum, Mean (variadic) -> Add ...
    Softmax before opset 13 -> Reshape, Softmax, Reshape (unless its axis is the last)
    Constant, Shape, ConstantOfShape, Range and anything with constant inputs -> folded constants
    QLinearConv, QLinearAdd ... -> DequantizeLinear, the float operator, QuantizeLinear
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BINARY", "OPERATORS", "UNARY", "Operator"]


@dataclass(frozen=True, slots=True)
class Operator:
    """Signature: input names ("?" = may be absent, "*" = any number), attributes ("?" likewise)."""

    inputs: tuple[str, ...]
    attributes: tuple[str, ...] = ()


#: Element-wise operators of one tensor, without attributes. Abs, Neg, Relu and Sign also take
#: integers, Not takes bool only, the rest float32. Round is half to even, HardSwish is
#: x * clip(x / 6 + 1/2, 0, 1), Softplus log(1 + e^x), Mish x * tanh(Softplus(x)).
UNARY = (
    "Abs Ceil Cos Erf Exp Floor HardSwish Log Mish Neg Not Reciprocal Relu Round "
    "Sigmoid Sign Sin Softplus Softsign Sqrt Tanh"
).split()

#: Element-wise operators of two tensors, with numpy's broadcasting. And, Or, Xor: bool only.
#: Div of integers truncates towards 0. Mod has the sign of the divisor for integers (ONNX fmod=0)
#: and of the dividend for floats (fmod=1). PRelu is a where a >= 0, else a * b, b broadcast as
#: numpy does: a per-channel slope is (C, 1, 1), never (C,).
BINARY = (
    "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Or PRelu Pow Sub Xor"
).split()

#: axes: all the reduced ones, named; keepdims 0 or 1. ReduceMean: float32 only.
_REDUCTIONS = "ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum".split()

OPERATORS: dict[str, Operator] = {
    **{kind: Operator(("x",)) for kind in UNARY},
    **{kind: Operator(("a", "b")) for kind in BINARY},
    **{kind: Operator(("x",), ("axes", "keepdims")) for kind in _REDUCTIONS},
    # Multiply-accumulate operators: 1-D or 2-D (by the rank of w), any group. pads are of the
    # spatial dimensions; b is (C_out,).
    # Conv: w (C_out, C_in / group, k...).
    # ConvTranspose: w (C_in, C_out / group, k...); output_shape is resolved into pads, extent =
    # (in - 1) stride + (k - 1) dilation + 1 + output_padding - pad_begin - pad_end.
    "Conv": Operator(("x", "w", "b?"), ("strides", "pads", "dilations", "group")),
    "ConvTranspose": Operator(
        ("x", "w", "b?"), ("strides", "pads", "dilations", "group", "output_padding")
    ),
    # numpy.matmul: batch dimensions broadcast, 1-D operands are vectors.
    "MatMul": Operator(("a", "b")),
    # Normalisation, always with running statistics. Channels are axis 1 and scale, bias, mean,
    # variance are (C,), also in GroupNormalization; LayerNormalization is over axis ... rank - 1,
    # scale and bias broadcast against those dimensions.
    "BatchNormalization": Operator(("x", "scale", "bias", "mean", "variance"), ("epsilon",)),
    "LayerNormalization": Operator(("x", "scale", "bias?"), ("axis", "epsilon")),
    "InstanceNormalization": Operator(("x", "scale", "bias"), ("epsilon",)),
    "GroupNormalization": Operator(("x", "scale", "bias"), ("epsilon", "num_groups")),
    # Element-wise with parameters.
    # Cast: `to` is numpy's dtype name; float to integer truncates, anything to bool is != 0.
    # Clip: min and max are floats, -inf / inf where there is no bound; min(max(x, lo), hi).
    # Celu: max(x, 0) + min(0, alpha (e^(x/alpha) - 1)).  Elu: alpha (e^x - 1) where x < 0.
    # HardSigmoid: clip(alpha x + beta, 0, 1).  Selu: gamma (x > 0 ? x : alpha (e^x - 1)).
    # ThresholdedRelu: x where x > alpha, else 0.  Where: all three broadcast.
    "Cast": Operator(("x",), ("to",)),
    "Celu": Operator(("x",), ("alpha",)),
    "Clip": Operator(("x",), ("min", "max")),
    "Elu": Operator(("x",), ("alpha",)),
    "Gelu": Operator(("x",), ("approximate",)),  # "none" or "tanh"
    "HardSigmoid": Operator(("x",), ("alpha", "beta")),
    "LeakyRelu": Operator(("x",), ("alpha",)),
    "Selu": Operator(("x",), ("alpha", "gamma")),
    "ThresholdedRelu": Operator(("x",), ("alpha",)),
    "Where": Operator(("condition", "a", "b")),
    # Keep, a channel gate's mask: x is (1, C, ...), scores float32 (1, groups), C % groups == 0.
    # Channel c is x's where scores[0, c // (C / groups)] > 0, else 0.
    "Keep": Operator(("x", "scores")),
    # Pooling over all dimensions after the second, extents floor((in + pads - reach) / stride) + 1,
    # reach = (kernel - 1) dilation + 1: ceil_mode is resolved by the host, which adds what is
    # missing at the end (as ONNX and torch do, a window that would start in the end padding is
    # dropped; then the end padding is too long, which is harmless, or trimmed).
    # MaxPool: that goes to pads; padding never wins.
    # AveragePool: pads are those of the source; the missing goes to `extra`, one number per spatial
    # dimension, appended at its end. The sum is divided by the number of the window's positions
    # that lie in x, or with count_include_pad in x or pads; `extra` positions never count. Where
    # none counts the result is 0.
    "MaxPool": Operator(("x",), ("kernel_shape", "strides", "pads", "dilations")),
    "AveragePool": Operator(
        ("x",),
        # extra?: none. dilations?: 1.
        ("kernel_shape", "strides", "pads", "count_include_pad", "extra?", "dilations?"),
    ),
    # Along an axis. The argument of an extremum is the first, or with select_last_index the last.
    "ArgMax": Operator(("x",), ("axis", "keepdims", "select_last_index")),
    "ArgMin": Operator(("x",), ("axis", "keepdims", "select_last_index")),
    "CumSum": Operator(("x",), ("axis", "exclusive", "reverse")),
    "LogSoftmax": Operator(("x",), ("axis",)),
    "Softmax": Operator(("x",), ("axis",)),
    # Moving data, of any type.
    "Concat": Operator(("*",), ("axis",)),
    # mode: "DCR" (ONNX's default) or "CRD" (torch's pixel_shuffle). x is 4-D.
    "DepthToSpace": Operator(("x",), ("blocksize", "mode")),
    "Expand": Operator(("x",), ("shape",)),  # shape: that of the result
    # Gather, GatherElements: indices are int64 or int32; a negative one counts from the end; one
    # out of range is ONNX's error, here it takes the nearest element (no read out of bounds).
    "Gather": Operator(("data", "indices"), ("axis",)),
    "GatherElements": Operator(("data", "indices"), ("axis",)),
    # OneHot: the new dimension, `depth` long, stands at `axis` of the result; a negative index
    # counts from the end, one out of [-depth, depth) gives off_value everywhere. to: dtype of the
    # result (numpy's name), default float32.
    "OneHot": Operator(("indices",), ("axis", "depth", "off_value", "on_value", "to?")),
    # Pad: pads over ALL dimensions, (begin..., end...), negative ones crop (before the others pad).
    # mode: constant, reflect, edge, wrap. value: a number, used by constant.
    "Pad": Operator(("x",), ("pads", "mode", "value")),
    "Reshape": Operator(("x",), ("shape",)),
    # Resize. mode: nearest, linear, cubic. scales: a float per dimension, result / input, those
    # that positions are computed with (the host fills in sizes / shape where the source gave
    # sizes). sizes?: the shape of the result, default floor(float32(shape * scales)).
    # coordinate_transformation_mode: half_pixel, half_pixel_symmetric, pytorch_half_pixel,
    # align_corners, asymmetric. nearest_mode (mode nearest only): round_prefer_floor,
    # round_prefer_ceil, floor, ceil. cubic_coeff_a: -0.75 (ONNX, torch) or -0.5; cubic only.
    # Positions outside take the nearest element (exclude_outside=0, no antialias).
    "Resize": Operator(
        ("x",),
        (
            "mode",
            "scales",
            "coordinate_transformation_mode",
            "nearest_mode",
            "cubic_coeff_a",
            "sizes?",
        ),
    ),
    # Slice: one entry an axis. steps > 0: start <= end, both in [0, dim]; steps < 0: start in
    # [-1, dim - 1], end in [-1, start], and -1 means before the first element, NOT the last one.
    # The extent is ceil((end - start) / step).
    "Slice": Operator(("x",), ("starts", "ends", "axes", "steps")),
    "SpaceToDepth": Operator(("x",), ("blocksize",)),
    "Tile": Operator(("x",), ("repeats",)),  # one per dimension
    "Transpose": Operator(("x",), ("perm",)),
    # Quantisation: per tensor (scale and zero_point of one element) or along `axis` (1-D, then of
    # that extent); zero_point has the quantised type. Quantised types: uint8, int8, uint16, int16,
    # int32 (DequantizeLinear only). Without zero_point it is 0 and QuantizeLinear gives uint8.
    # QuantizeLinear: saturate(round_half_even(x / scale) + zero_point).
    "DequantizeLinear": Operator(("x", "scale", "zero_point?"), ("axis",)),
    "QuantizeLinear": Operator(("x", "scale", "zero_point?"), ("axis",)),
}

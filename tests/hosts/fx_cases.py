# mypy: disable-error-code="arg-type,assignment,misc"
"""One call or more for each translation rule of the PyTorch host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = ["CASES", "Case"]

Array = np.ndarray[Any, Any]
A = torch.ops.aten


@dataclass(frozen=True)
class Case:
    """A call of the overload `key` on arrays; each array becomes an input of the network."""

    key: str
    call: Callable[..., Any]
    inputs: tuple[Array, ...]


CASES: list[Case] = []


def _case(key: str, call: Callable[..., Any], *inputs: Array) -> None:
    CASES.append(Case(f"aten.{key}", call, inputs))


def _f(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).normal(0, 2, shape).astype(np.float32)


def _positive(*shape: int, seed: int = 0) -> Array:
    return np.abs(_f(*shape, seed=seed)) + np.float32(0.1)


def _i(*shape: int, low: int = -9, high: int = 10, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).integers(low, high, shape)


def _b(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng([seed, *shape]).integers(0, 2, shape).astype(bool)


def _products() -> None:
    _case("linear.default", lambda x, w, b: A.linear(x, w, b), _f(2, 5, 4), _f(3, 4), _f(3))
    _case("linear.default", lambda x, w: A.linear(x, w), _f(4), _f(3, 4))
    _case("matmul.default", A.matmul, _f(2, 3, 4), _f(4, 5))
    _case("matmul.default", A.matmul, _f(4), _f(4, 5))
    _case("mm.default", A.mm, _f(3, 4), _f(4, 5))
    _case("bmm.default", A.bmm, _f(2, 3, 4), _f(2, 4, 5))
    _case("mv.default", A.mv, _f(3, 4), _f(4))
    _case("dot.default", A.dot, _f(4), _f(4, seed=1))
    _case("addmm.default", A.addmm, _f(5), _f(3, 4), _f(4, 5))
    half = {"beta": 0.5, "alpha": 2.0}
    _case("addmm.default", lambda c, x, y: A.addmm(c, x, y, **half), _f(5), _f(3, 4), _f(4, 5))
    _case("baddbmm.default", A.baddbmm, _f(2, 3, 5), _f(2, 3, 4), _f(2, 4, 5))
    for equation, a, b in [
        ("bqd,bkd->bqk", (2, 3, 4), (2, 5, 4)),
        ("nhqk,nkhd->nqhd", (1, 2, 3, 4), (1, 4, 2, 5)),
        ("ij,k->kij", (2, 3), (4,)),
    ]:
        call = lambda x, y, e=equation: A.einsum(e, [x, y])  # noqa: E731
        _case("einsum.default", call, _f(*a), _f(*b))
    q, k, v = _f(1, 2, 5, 4), _f(1, 2, 6, 4), _f(1, 2, 6, 3)
    attention = A.scaled_dot_product_attention
    _case("scaled_dot_product_attention.default", lambda *t: attention(*t), q, k, v)
    _case("scaled_dot_product_attention.default", lambda *t: attention(*t), q, k, v, _f(5, 6))
    seen = np.tril(np.ones((5, 6), bool), 2)
    _case("scaled_dot_product_attention.default", lambda *t: attention(*t), q, k, v, seen)
    causal = lambda q, k, v: attention(q, k, v, None, 0.0, True, scale=0.3)  # noqa: E731
    _case("scaled_dot_product_attention.default", causal, q, k, v)
    _case("embedding.default", A.embedding, _f(7, 3), _i(2, 5, low=0, high=7))


def _convolutions() -> None:
    x1, x2 = _f(1, 4, 11), _f(1, 4, 9, 8)
    w1, w2, bias = _f(6, 2, 3), _f(6, 2, 3, 2), _f(6)
    _case("conv1d.default", lambda x, w, b: A.conv1d(x, w, b, [2], [1], [2], 2), x1, w1, bias)
    conv2 = lambda x, w, b: A.conv2d(x, w, b, [2, 1], [1, 2], [1, 2], 2)  # noqa: E731
    _case("conv2d.default", conv2, x2, w2, bias)
    _case("conv2d.default", conv2, x2[0], w2, bias)
    _case("conv1d.padding", lambda x, w: A.conv1d(x, w, None, [1], "same", [3], 2), x1, w1)
    _case("conv2d.padding", lambda x, w: A.conv2d(x, w, None, [1, 1], "same", [1, 1], 2), x2, w2)
    _case("conv2d.padding", lambda x, w: A.conv2d(x, w, None, [2, 2], "valid", [1, 1], 2), x2, w2)
    wt1, wt2 = _f(4, 3, 3), _f(4, 3, 3, 2)
    up1 = lambda x, w: A.conv_transpose1d(x, w, None, [2], [1], [1], 2, [1])  # noqa: E731
    up2 = lambda x, w, b: A.conv_transpose2d(  # noqa: E731
        x, w, b, [2, 3], [1, 0], [1, 0], 2, [1, 2]
    )
    _case("conv_transpose1d.default", up1, x1, wt1)
    _case("conv_transpose2d.input", up2, x2, wt2, bias)
    general = lambda x, w, b: A.convolution(  # noqa: E731
        x, w, b, [2, 1], [1, 0], [1, 1], False, [0, 0], 2
    )
    _case("convolution.default", general, x2, w2, bias)
    turned = lambda x, w: A.convolution(  # noqa: E731
        x, w, None, [2, 2], [1, 1], [1, 1], True, [1, 0], 1
    )
    _case("convolution.default", turned, x2, wt2)


def _pools() -> None:
    x1, x2 = _f(1, 3, 13), _f(1, 3, 10, 13)
    _case("max_pool1d.default", lambda x: A.max_pool1d(x, [3], [2], [1], [1], True), x1)
    _case("max_pool2d.default", lambda x: A.max_pool2d(x, [3, 2]), x2)
    for ceil in (False, True):
        pool = lambda x, c=ceil: A.max_pool2d(x, [3, 2], [3, 2], [1, 1], [1, 2], c)  # noqa: E731
        _case("max_pool2d.default", pool, x2)
        both = lambda x, c=ceil: A.max_pool2d_with_indices(  # noqa: E731
            x, [3, 3], [2, 2], [1, 0], [1, 1], c
        )[0]
        _case("max_pool2d_with_indices.default#", both, x2)
        for counted in (False, True):
            mean = lambda x, c=ceil, n=counted: A.avg_pool2d(  # noqa: E731
                x, [3, 4], [2, 3], [1, 2], c, n
            )
            _case("avg_pool2d.default", mean, x2)
            line = lambda x, c=ceil, n=counted: A.avg_pool1d(x, [4], [3], [2], c, n)  # noqa: E731
            _case("avg_pool1d.default", line, x1)
    divided = lambda x: A.avg_pool2d(x, [2, 2], [2, 2], [1, 1], False, True, 3)  # noqa: E731
    _case("avg_pool2d.default", divided, x2)
    one = lambda x: A.max_pool1d_with_indices(x, [3], [2])[0]  # noqa: E731
    _case("max_pool1d_with_indices.default#", one, x1)
    for size in ([1, 1], [5, 13], [3, 4], [20, 2]):
        mean = lambda x, s=size: A.adaptive_avg_pool2d(x, s)  # noqa: E731
        _case("adaptive_avg_pool2d.default", mean, x2)
        most = lambda x, s=size: A.adaptive_max_pool2d(x, s)[0]  # noqa: E731
        _case("adaptive_max_pool2d.default#", most, x2)
    _case("adaptive_avg_pool1d.default", lambda x: A.adaptive_avg_pool1d(x, [4]), x1)
    _case("adaptive_max_pool1d.default#", lambda x: A.adaptive_max_pool1d(x, [4])[0], x1)
    _case("_adaptive_avg_pool2d.default", lambda x: A._adaptive_avg_pool2d(x, [2, 5]), x2)


def _normalisation() -> None:
    x, c = _f(1, 6, 5, 4), (_f(6), _f(6, seed=1), _f(6, seed=2), _positive(6))
    norm = A.batch_norm
    call = lambda x, w, b, m, v: norm(x, w, b, m, v, False, 0.1, 1e-3, False)  # noqa: E731
    _case("batch_norm.default", call, x, *c)
    bare = lambda x, m, v: norm(x, None, None, m, v, False, 0.1, 1e-3, False)  # noqa: E731
    _case("batch_norm.default", bare, _f(3, 6), *c[2:])
    native = lambda x, w, b, m, v: A._native_batch_norm_legit_no_training(  # noqa: E731
        x, w, b, m, v, 0.1, 1e-3
    )[0]
    _case("_native_batch_norm_legit_no_training.default#", native, x, *c)
    own = lambda x, w, b: A.instance_norm(  # noqa: E731
        x, w, b, None, None, True, 0.1, 1e-5, False
    )
    _case("instance_norm.default", own, x, *c[:2])
    kept = lambda x, m, v: A.instance_norm(  # noqa: E731
        x, None, None, m, v, False, 0.1, 1e-5, False
    )
    _case("instance_norm.default", kept, x, *c[2:])
    _case("group_norm.default", lambda x, w, b: A.group_norm(x, 3, w, b), x, *c[:2])
    _case("group_norm.default", lambda x: A.group_norm(x, 2), x)
    _case("layer_norm.default", lambda x, w, b: A.layer_norm(x, [4], w, b), x, _f(4), _f(4, seed=3))
    _case("layer_norm.default", lambda x: A.layer_norm(x, [5, 4]), x)
    parts = lambda x, w: A.native_layer_norm(x, [4], w, None, 1e-5)[0]  # noqa: E731
    _case("native_layer_norm.default#", parts, x, _f(4))
    _case("rms_norm.default", lambda x, w: A.rms_norm(x, [4], w, 1e-5), x, _f(4))


def _activations() -> None:
    x = _f(2, 6, 4)
    for name in [
        "hardsigmoid",
        "hardswish",
        "log_sigmoid",
        "mish",
        "relu",
        "relu6",
        "selu",
        "sigmoid",
        "silu",
        "tanh",
    ]:
        _case(f"{name}.default", getattr(A, name), x)
    _case("hardtanh.default", lambda x: A.hardtanh(x, -1.5, 0.5), x)
    for approximate in ("none", "tanh"):
        call = lambda x, a=approximate: A.gelu(x, approximate=a)  # noqa: E731
        _case("gelu.default", call, x)
    _case("elu.default", lambda x: A.elu(x, 0.7), x)
    _case("elu.default", lambda x: A.elu(x, 1.3, 1.1), x)
    _case("celu.default", lambda x: A.celu(x, 0.7), x)
    _case("leaky_relu.default", lambda x: A.leaky_relu(x, 0.2), x)
    _case("prelu.default", A.prelu, x, _f(6))
    _case("prelu.default", A.prelu, _f(2, 6), _f(1))
    _case("softplus.default", lambda x: A.softplus(x), x)
    _case("softplus.default", lambda x: A.softplus(x, 2.5), x)
    _case("threshold.default", lambda x: A.threshold(x, 0.5, 0.0), x)
    _case("threshold.default", lambda x: A.threshold(x, 0.5, -1.0), x)
    _case("glu.default", lambda x: A.glu(x, 1), x)
    for name in ("softmax", "log_softmax"):
        _case(f"{name}.int", lambda x, n=name: getattr(A, n).int(x, 1), x)
        _case(f"_{name}.default", lambda x, n=name: getattr(A, f"_{n}")(x, -1, False), x)


def _resizing() -> None:
    x1, x2 = _f(1, 2, 7), _f(1, 2, 5, 7)
    for name, x in [("nearest1d", x1), ("nearest2d", x2)]:
        size = [9, 11][: x.ndim - 2]
        for prefix in ("upsample_", "_upsample_"):
            full = prefix + (name if prefix == "upsample_" else name.replace("est", "est_exact"))
            op = getattr(A, full)
            _case(f"{full}.vec", lambda x, o=op: o.vec(x, None, [2.0] * (x.ndim - 2)), x)
            _case(f"{full}.vec", lambda x, o=op, s=size: o.vec(x, s, None), x)
            _case(f"{full}.default", lambda x, o=op, s=size: o.default(x, s), x)
    for name, x in [("linear1d", x1), ("bilinear2d", x2), ("bicubic2d", x2)]:
        op, size = getattr(A, f"upsample_{name}"), [9, 11][: x.ndim - 2]
        for corners in (False, True):
            vec = lambda x, o=op, c=corners: o.vec(x, None, c, [1.7] * (x.ndim - 2))  # noqa: E731
            _case(f"upsample_{name}.vec", vec, x)
            call = lambda x, o=op, c=corners, s=size: o.default(x, s, c)  # noqa: E731
            _case(f"upsample_{name}.default", call, x)


def _arithmetic() -> None:
    x, y, i, j = _f(2, 3, 4), _positive(3, 1), _i(2, 3, 4), _i(3, 1, low=1)
    names = "abs ceil cos erf exp expm1 floor neg reciprocal round sign sin square special_erf"
    for name in names.split():
        _case(f"{name}.default", getattr(A, name), x)
    for name in ["log", "log1p", "log2", "rsqrt", "sqrt"]:
        _case(f"{name}.default", getattr(A, name), _positive(3, 5))
    for name in ["abs", "neg", "sign", "sqrt"]:
        _case(f"{name}.default", getattr(A, name), _i(3, 5, low=0))
    for name in ["logical_not", "bitwise_not"]:
        _case(f"{name}.default", getattr(A, name), _b(3, 5))
    for name in ["add", "sub", "mul", "div"]:
        op = getattr(A, name)
        for a, b in [(x, y), (x, j), (i, j), (i, y)]:
            _case(f"{name}.Tensor", op.Tensor, a, b)
        _case(f"{name}.Tensor", lambda x, o=op: o.Tensor(x, 2.5), x)
        _case(f"{name}.Scalar", lambda x, o=op: o.Scalar(x, 3), i)
        _case(f"{name}.Scalar", lambda x, o=op: o.Scalar(x, 2.5), i)
    _case("add.Tensor", lambda x, y: A.add(x, y, alpha=-2), x, y)
    _case("sub.Tensor", lambda x, y: A.sub(x, y, alpha=3), i, j)
    _case("add.Tensor", A.add.Tensor, _b(3, 4), _b(3, 4, seed=1))
    _case("mul.Tensor", A.mul.Tensor, _b(3, 4), _b(3, 4, seed=1))
    _case("mul.Tensor", A.mul.Tensor, x, _b(3, 1))
    _case("true_divide.Tensor", A.true_divide.Tensor, x, y)
    _case("rsub.Tensor", lambda x, y: A.rsub.Tensor(x, y, alpha=2), x, y)
    _case("rsub.Scalar", lambda x: A.rsub.Scalar(x, 1.5), x)
    for mode in (None, "floor", "trunc"):
        call = lambda x, y, m=mode: A.div.Tensor_mode(x, y, rounding_mode=m)  # noqa: E731
        _case("div.Tensor_mode", call, x, y)
        _case("div.Tensor_mode", call, i, j)
        number = lambda x, m=mode: A.div.Scalar_mode(x, 3, rounding_mode=m)  # noqa: E731
        _case("div.Scalar_mode", number, i)
    for name in ("floor_divide", "remainder", "fmod"):
        op, first = getattr(A, name), "default" if name == "floor_divide" else "Tensor"
        _case(f"{name}.{first}", getattr(op, first), x, y)
        _case(f"{name}.Scalar", lambda x, o=op: o.Scalar(x, 1.5), x)
        if name != "fmod":
            _case(f"{name}.{first}", getattr(op, first), i, j)
    for name in ("maximum", "minimum"):
        _case(f"{name}.default", getattr(A, name), x, y)
    _case("max.other", A.max.other, x, y)
    _case("min.other", A.min.other, i, j)
    _case("pow.Tensor_Scalar", lambda x: A.pow(x, 2), x)
    _case("pow.Tensor_Scalar", lambda x: A.pow(x, 0.5), y)
    _case("pow.Tensor_Tensor", A.pow.Tensor_Tensor, y, _f(3, 4))
    _case("pow.Scalar", lambda x: A.pow.Scalar(2.0, x), x)


def _choosing() -> None:
    x, y, i, mask = _f(2, 3, 4), _f(3, 1), _i(2, 3, 4, low=-1, high=2), _b(2, 3, 4)
    for name in ["eq", "ne", "lt", "le", "gt", "ge"]:
        op = getattr(A, name)
        _case(f"{name}.Tensor", op.Tensor, i, _i(3, 1, low=-1, high=2))
        _case(f"{name}.Tensor", op.Tensor, i, y)
        _case(f"{name}.Tensor", op.Tensor, mask, _b(3, 1))
        _case(f"{name}.Scalar", lambda x, o=op: o.Scalar(x, 0), i)
        _case(f"{name}.Scalar", lambda x, o=op: o.Scalar(x, 0.5), i)
    for name in ("and", "or", "xor"):
        a, b = _b(3, 4), _b(3, 4, seed=1)
        _case(f"logical_{name}.default", getattr(A, f"logical_{name}"), a, b)
        _case(f"bitwise_{name}.Tensor", getattr(A, f"bitwise_{name}").Tensor, a, b)
        call = lambda x, n=name: getattr(A, f"bitwise_{n}").Scalar(x, True)  # noqa: E731
        _case(f"bitwise_{name}.Scalar", call, a)
        _case(f"__{name}__.Tensor", getattr(A, f"__{name}__").Tensor, a, b)
    _case("where.self", A.where.self, mask, x, y)
    _case("where.ScalarSelf", lambda m, x: A.where.ScalarSelf(m, 1.0, x), mask, x)
    _case("where.ScalarOther", lambda m, x: A.where.ScalarOther(m, x, 1.0), mask, x)
    _case("where.Scalar", lambda m: A.where.Scalar(m, 1.0, 0.0), mask)
    _case("masked_fill.Scalar", lambda x, m: A.masked_fill(x, m, -1e9), x, mask)
    _case("masked_fill.Tensor", A.masked_fill.Tensor, x, mask, np.float32(3).reshape(()))
    for low, high in [(-1, 0.5), (None, 1), (0.25, None)]:
        _case("clamp.default", lambda x, a=low, b=high: A.clamp(x, a, b), x)
    _case("clamp.default", lambda x: A.clamp(x, 0, 1), _i(3, 4))
    _case("clamp_min.default", lambda x: A.clamp_min(x, 0.5), x)
    _case("clamp_max.default", lambda x: A.clamp_max(x, 0.5), x)
    _case("clamp.Tensor", A.clamp.Tensor, x, y, y + 1)
    _case("clamp_min.Tensor", A.clamp_min.Tensor, x, y)
    _case("clamp_max.Tensor", A.clamp_max.Tensor, x, y)
    _case("addcmul.default", lambda *t: A.addcmul(*t, value=0.5), x, y, y)
    _case("addcdiv.default", lambda *t: A.addcdiv(*t, value=-2), x, y, _positive(3, 1))
    _case("lerp.Scalar", lambda x, y: A.lerp(x, y, 0.3), x, y)
    _case("lerp.Tensor", A.lerp.Tensor, x, y, _f(4))


def _reductions() -> None:
    x, i = _f(2, 3, 4), _i(2, 3, 4)
    for dims, keep in [([1], True), ([-1, 0], False), ([], False)]:
        _case("mean.dim", lambda x, d=dims, k=keep: A.mean.dim(x, d, k), x)
        _case("sum.dim_IntList", lambda x, d=dims, k=keep: A.sum.dim_IntList(x, d, k), i)
        _case("amax.default", lambda x, d=dims, k=keep: A.amax(x, d, k), x)
        _case("amin.default", lambda x, d=dims, k=keep: A.amin(x, d, k), x)
    _case("sum.dim_IntList", lambda x: A.sum.dim_IntList(x, [1]), _b(2, 3))
    _case("prod.dim_int", lambda x: A.prod.dim_int(x, -2, True), x)
    for name in ["mean", "sum", "prod", "max", "min"]:
        _case(f"{name}.default", getattr(A, name).default, x)
    for name in ("argmax", "argmin"):
        op = getattr(A, name)
        _case(f"{name}.default", lambda x, o=op: o(x), x)
        _case(f"{name}.default", lambda x, o=op: o(x, -2, True), x)
    for name in ("max", "min"):
        op = getattr(A, name)
        for index in (0, 1):
            _case(f"{name}.dim#", lambda x, o=op, n=index: o.dim(x, -1)[n], x)
    for correction in (None, 0, 1):
        call = lambda x, c=correction: A.var.correction(x, [0, 2], correction=c)  # noqa: E731
        _case("var.correction", call, x)
    _case("std.correction", lambda x: A.std.correction(x, [1], correction=1, keepdim=True), x)
    _case("var.dim", lambda x: A.var.dim(x, [1], False, True), x)
    _case("std.dim", lambda x: A.std.dim(x, [1]), x)
    for index in (0, 1):
        call = lambda x, n=index: A.var_mean.correction(x, [1], correction=0)[n]  # noqa: E731
        _case("var_mean.correction#", call, x)
    for order in (2, 1, float("inf")):
        call = lambda x, o=order: A.linalg_vector_norm(x, o, [1], True)  # noqa: E731
        _case("linalg_vector_norm.default", call, x)
    _case("norm.ScalarOpt_dim", lambda x: A.norm.ScalarOpt_dim(x, 2, [1], True), x)
    _case("logsumexp.default", lambda x: A.logsumexp(x, [1, 2]), x * 40)
    _case("cumsum.default", lambda x: A.cumsum(x, 1), x)
    _case("cumsum.default", lambda x: A.cumsum(x, -1), _b(2, 3))


def _moving() -> None:
    x = _f(2, 3, 4)
    for name in ["alias", "contiguous", "clone", "detach", "lift_fresh_copy"]:
        _case(f"{name}.default", lambda x, n=name: getattr(A, n)(x) + 1, x)
    for name in ["alpha_dropout", "dropout", "feature_alpha_dropout", "feature_dropout"]:
        _case(f"{name}.default", lambda x, n=name: getattr(A, n)(x, 0.5, False) + 1, x)
    _case("to.dtype", lambda x: A.to.dtype(x, torch.int64), x)
    _case("to.dtype", lambda x: A.to.dtype(x, torch.float64) * 2, x)
    _case("to.device", lambda x: A.to.device(x, "cpu", torch.int32), x)
    _case("to.dtype_layout", lambda x: A.to.dtype_layout(x, dtype=torch.bool), x)
    _case("to.other", A.to.other, x, _i(2))
    _case("_to_copy.default", lambda x: A._to_copy(x, dtype=torch.int64), x)
    _case("type_as.default", A.type_as, x, _i(2))
    _case("_unsafe_view.default", lambda x: A._unsafe_view(x, [6, 4]), x)
    _case("flatten.using_ints", lambda x: A.flatten(x, 1), x)
    _case("reshape.default", lambda x: A.reshape(x, [-1, 2]), x)
    _case("reshape_as.default", A.reshape_as, x, _f(6, 4))
    _case("view.default", lambda x: A.view(x, [4, -1]), x)
    _case("view_as.default", A.view_as, x, _f(6, 4))
    _case("squeeze.default", lambda x: A.squeeze(x), _f(1, 3, 1))
    _case("squeeze.dim", lambda x: A.squeeze.dim(x, -1), _f(1, 3, 1))
    _case("squeeze.dims", lambda x: A.squeeze.dims(x, [0, 2]), _f(1, 3, 1))
    _case("unflatten.int", lambda x: A.unflatten(x, -1, [2, -1]), x)
    _case("unsqueeze.default", lambda x: A.unsqueeze(x, -2), x)
    _case("expand.default", lambda x: A.expand(x, [5, -1, 4]), _f(3, 1))
    _case("expand_as.default", A.expand_as, _f(3, 1), x)
    _case("broadcast_to.default", lambda x: A.broadcast_to(x, [2, 3, 4]), _f(3, 1))
    _case("permute.default", lambda x: A.permute(x, [2, 0, -2]), x)
    _case("movedim.intlist", lambda x: A.movedim.intlist(x, [0, -1], [2, 0]), x)
    _case("transpose.int", lambda x: A.transpose(x, 0, -1), x)
    _case("t.default", A.t, _f(3, 4))
    _case("numpy_T.default", A.numpy_T, _f(3, 4))
    _case("mT.default", A.mT, _f(3, 4))
    _case("pixel_shuffle.default", lambda x: A.pixel_shuffle(x, 2), _f(1, 8, 3, 2))
    _case("pixel_unshuffle.default", lambda x: A.pixel_unshuffle(x, 2), _f(1, 3, 4, 6))
    _case("channel_shuffle.default", lambda x: A.channel_shuffle(x, 2), _f(1, 6, 2, 2))
    _case("cat.default", lambda x, y: A.cat([x, y], -2), x, _f(2, 5, 4))
    _case("concat.default", lambda x, y: A.concat([x, y], 1), x, _i(2, 5, 4))
    _case("concatenate.default", lambda x, y: A.concatenate([x, y], 1), x, _f(2, 5, 4))
    _case("stack.default", lambda x, y: A.stack([x, y], -1), x, _f(2, 3, 4, seed=1))
    _case("repeat.default", lambda x: A.repeat(x, [2, 1, 1, 3]), x)
    _case("tile.default", lambda x: A.tile(x, [2, 3]), x)
    _case("repeat_interleave.self_int", lambda x: A.repeat_interleave.self_int(x, 3, 1), x)
    _case("repeat_interleave.self_int", lambda x: A.repeat_interleave.self_int(x, 2), x)


def _cutting() -> None:
    x = _f(2, 7, 4)
    for start, end, step in [(1, 6, 2), (-3, 2**63 - 1, 1), (None, -1, 3), (5, 2, 1)]:
        call = lambda x, s=(start, end, step): A.slice(x, 1, *s)  # noqa: E731
        _case("slice.Tensor", call, x)
    _case("narrow.default", lambda x: A.narrow(x, 1, -4, 3), x)
    _case("select.int", lambda x: A.select(x, -2, -1), x)
    for index in (0, 2):
        _case("split.Tensor#", lambda x, n=index: A.split.Tensor(x, 3, 1)[n], x)
        _case("unsafe_split.Tensor#", lambda x, n=index: A.unsafe_split(x, 3, 1)[n], x)
        _case("split.sizes#", lambda x, n=index: A.split.sizes(x, [2, 4, 1], 1)[n], x)
        sizes = lambda x, n=index: A.split_with_sizes(x, [2, 4, 1], 1)[n]  # noqa: E731
        _case("split_with_sizes.default#", sizes, x)
        _case("chunk.default#", lambda x, n=index: A.chunk(x, 3, 1)[n], x)
        pieces = lambda x, n=index: A.tensor_split.sections(x, 3, 1)[n]  # noqa: E731
        _case("tensor_split.sections#", pieces, x)
        _case("unbind.int#", lambda x, n=index: A.unbind(x, 1)[n], x)
    _case("flip.default", lambda x: A.flip(x, [0, -1]), x)
    _case("roll.default", lambda x: A.roll(x, [2, -1], [1, 2]), x)
    _case("copy.default", A.copy, x, _i(7, 4))
    _case("fill.Tensor", A.fill.Tensor, x, np.array(2.0, np.float32))
    part = lambda x, y: A.slice_scatter(x, y, 1, 2, -2)  # noqa: E731
    _case("slice_scatter.default", part, x, _f(2, 3, 4))
    _case("select_scatter.default", lambda x, y: A.select_scatter(x, y, 1, -1), x, _f(2, 4))
    index = np.array([3, 0, 3])
    _case("index_select.default", lambda x, i: A.index_select(x, 1, i), x, index)
    _case("gather.default", lambda x, i: A.gather(x, 1, i), x, _i(2, 3, 4, low=0, high=7))
    _case("gather.default", lambda x, i: A.gather(x, 1, i), x, _i(1, 3, 2, low=0, high=7))
    _case("index.Tensor", lambda x, i: A.index.Tensor(x, [None, i]), x, index)
    _case("index.Tensor", lambda x, i: A.index.Tensor(x, [i]), x, np.array([[1, -1]]))
    plane = _f(1, 2, 5, 6)
    for mode in ("reflect", "replicate", "circular"):
        call = lambda x, m=mode: A.pad(x, [1, 2, 2, 0], m)  # noqa: E731
        _case("pad.default", call, plane)
    _case("pad.default", lambda x: A.pad(x, [1, 2, 0, 3, 1, 1], "constant", 1.5), plane)
    _case("pad.default", lambda x: A.pad(x, [-1, 2, 0, -2]), plane)
    _case("constant_pad_nd.default", lambda x: A.constant_pad_nd(x, [1, 2], 4), plane)
    for name in ("reflection", "replication"):
        two = lambda x, n=name: getattr(A, f"{n}_pad2d")(x, [1, 2, 2, 0])  # noqa: E731
        _case(f"{name}_pad2d.default", two, plane)
        one = lambda x, n=name: getattr(A, f"{n}_pad1d")(x, [1, 2])  # noqa: E731
        _case(f"{name}_pad1d.default", one, plane[0])


for _group in (
    _products,
    _convolutions,
    _pools,
    _normalisation,
    _activations,
    _resizing,
    _arithmetic,
    _choosing,
    _reductions,
    _moving,
    _cutting,
):
    _group()

"""Maximum and average pooling."""

from __future__ import annotations

from math import prod
from typing import Any

from tvm import te, tirx

from eecompile.hardware import Machine
from eecompile.targets.lowering.schedules.loops import stages
from eecompile.targets.lowering.schedules.windows import window_of, windowed_input
from eecompile.targets.lowering.spec import KernelSpec, Scheduled

__all__ = ["pool"]

Expr = Any


def pool(spec: KernelSpec, machine: Machine) -> Scheduled:
    """Maximum or average pooling of channels-last tensors."""
    (x_at,) = spec.anchor.inputs
    tensors = spec.tensors()
    x = tensors[x_at]
    step = spec.anchor
    window = window_of(step, spec.operands[x_at].type.shape, step.attribute("kernel_shape"))
    fill = 0.0 if step.kind == "AveragePool" else tirx.min_value(str(x.dtype)).value
    read, _ = windowed_input(x, window, step.type.shape[1:-1], fill=fill)
    taps = [te.reduce_axis((0, k), name=f"tap{i}") for i, k in enumerate(window.kernel)]
    reducer = te.sum if step.kind == "AveragePool" else te.max

    def element(*index: Expr) -> Expr:
        batch, *place, c = index
        return reducer(read(batch, place, taps, c), axis=taps)

    result = te.compute(step.type.shape, element, name="pooled")
    if step.kind == "AveragePool":
        result = _averaged(result, spec)
    return stages(spec, tensors, spec.epilogue(tensors, result), machine)


def _averaged(total: te.Tensor, spec: KernelSpec) -> te.Tensor:
    """Sums over windows divided by the number of elements that count in each."""
    (x_at,) = spec.anchor.inputs
    kernel = spec.anchor.attribute("kernel_shape")
    n = len(kernel)
    pads, strides = spec.anchor.attribute("pads"), spec.anchor.attribute("strides")
    dilations = spec.anchor.attribute("dilations") or (1,) * n
    counted = bool(spec.anchor.attribute("count_include_pad"))
    extent = spec.operands[x_at].type.shape[1:-1]
    padded = any(pads) or any(spec.anchor.attribute("extra") or ())

    def element(*index: Expr) -> Expr:
        if not padded:
            return total(*index) * tirx.const(1 / prod(kernel), "float32")
        count: Expr = tirx.const(1, "int32")
        for i, place in enumerate(index[1:-1]):
            low = -pads[i] if counted else 0
            high = extent[i] + (pads[n + i] if counted else 0)
            first = place * strides[i] - pads[i]
            if dilations[i] == 1:
                reach = tirx.min(first + kernel[i], high) - tirx.max(first, low)
                count *= tirx.max(reach, 0)
                continue
            inside: Expr = tirx.const(0, "int32")
            for tap in range(kernel[i]):
                at = first + tap * dilations[i]
                inside += tirx.all(at >= low, at < high).astype("int32")
            count *= inside
        # A window in which nothing counts gives 0.
        return total(*index) / tirx.max(count, 1).astype("float32")

    return te.compute(total.shape, element, name="averaged")

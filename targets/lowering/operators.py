"""The tensor expression of every neutral operator, in the source's layout.

What stands here is the definition that schedules may replace, and what everything without a
schedule of its own is compiled from. Nothing in it calls anything but C's libm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from tvm import te

from eecompile.ir import Op, TensorType
from eecompile.targets.lowering.compute_axes import AXES
from eecompile.targets.lowering.compute_elementwise import ELEMENTWISE, power_of
from eecompile.targets.lowering.compute_moving import MOVING
from eecompile.targets.lowering.compute_windows import WINDOWS
from eecompile.targets.lowering.errors import UnsupportedOperator

__all__ = ["COMPUTED", "UnsupportedOperator", "compute"]

#: kind -> function(op, inputs, result type) that gives the result's tensor expression.
COMPUTED: dict[str, Callable[[Op, list[te.Tensor], TensorType], te.Tensor]] = {
    **ELEMENTWISE,
    **AXES,
    **MOVING,
    **WINDOWS,
}


def compute(
    op: Op,
    inputs: Sequence[te.Tensor | None],
    graph_types: Mapping[str, TensorType],
    constants: Mapping[str, np.ndarray] | None = None,
) -> list[te.Tensor]:
    """The operator's results as tensor expressions over `inputs`.

    Args:
        op: in the neutral form (see `eecompile.operators`).
        inputs: a tensor for each of `op.inputs`, None where an optional one is absent.
        graph_types: value name -> type, at least of the operator's results.
        constants: value name -> array of inputs whose values are known; a power with a known
            exponent then needs no call.

    Raises:
        UnsupportedOperator: no such operator here, or not with these element types or attributes.
    """
    define = COMPUTED.get(op.kind)
    if define is None:
        raise UnsupportedOperator(op, "no compiled form")
    result = graph_types[op.outputs[0]]
    while inputs and inputs[-1] is None:
        inputs = inputs[:-1]
    if op.kind == "Pow":
        short = _known_power(op, inputs, result, constants or {})
        if short is not None:
            return [short]
    defined = define(op, list(inputs), result)
    if any(defined.same_as(x) for x in inputs):
        # A function's results are buffers of its own, also where there is nothing to do.
        return [te.compute(result.shape, lambda *i: defined(*i), name="copy")]
    return [defined]


def _known_power(
    op: Op,
    inputs: Sequence[te.Tensor],
    result: TensorType,
    constants: Mapping[str, np.ndarray],
) -> te.Tensor | None:
    base, exponent = inputs[0], constants.get(op.inputs[1])
    if exponent is None or exponent.size != 1 or str(base.dtype) != "float32":
        return None
    if tuple(int(extent) for extent in base.shape) != result.shape:
        return None
    power = float(exponent.reshape(()))
    if power_of(te.const(1.0, "float32"), power) is None:
        return None
    return te.compute(result.shape, lambda *i: power_of(base(*i), power), name="pow")

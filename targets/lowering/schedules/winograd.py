"""Winograd convolution: F(2x2, 3x3) and F(4x4, 3x3), with the schedule that is fastest.

A tile of m x m outputs takes (m + 2)**2 products per pair of channels instead of 9 m**2: 2.25 and
4 times fewer. What is added are transforms, linear in the channels, and weights 1.8 and 4 times as
large. Errors are within `Transform.error_bound`: relative to the largest output, over random inputs
and weights of 16 to 512 channels and against float64, the largest were 1.3e-6 for m = 2 and 3.8e-6
for m = 4, where those of the direct kernel were 2.0e-6. F(6x6, 3x3) is left out: with the points 0,
1, 2, 1/2 its error was five times that of m = 4, and it saves a fifth of the products at most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from eecompile.hardware import Machine
from eecompile.ir import TensorType
from eecompile.targets.lowering.schedules.emit import Kernel, element
from eecompile.targets.lowering.schedules.kept import (
    as_kept,
    bias_operands,
    input_gate,
    kept_of,
    left_out,
    output_gate,
    suited,
)
from eecompile.targets.lowering.schedules.panels import blocked
from eecompile.targets.lowering.schedules.windows import window_of
from eecompile.targets.lowering.schedules.winograd_code import phases
from eecompile.targets.lowering.schedules.winograd_plan import (
    Plan,
    Problem,
    best_plan,
    direct_cost,
    plan_cost,
)
from eecompile.targets.lowering.schedules.winograd_points import TILES, Transform, transform
from eecompile.targets.lowering.schedules.winograd_transforms import Memory
from eecompile.targets.lowering.spec import KernelSpec, Packed, PerThread, Scheduled, Scratch

__all__ = ["candidates", "chosen", "problem_of", "winograd"]

#: Largest error bound of one kernel, relative to its largest output. Errors of a network's kernels
#: are independent and add in squares: fifty such kernels stay within 1e-4 of a result.
_ALLOWED = 2e-5

#: Estimated gain below which the direct kernel is kept, as the more exact one.
_GAIN = 1.1

#: Steps that turn an error, however small, into one of a whole unit: quantised kernels are exact.
_STEPPED = frozenset(
    ["Ceil", "DequantizeLinear", "Floor", "Mod", "QuantizeLinear", "Round", "Sign", "Trunc"]
)

#: Steps before the convolution that are computed, again for each tile, while it reads its input.
_READABLE = frozenset(["Add", "Clip", "Mul", "Relu", "Sub", "Transpose"])

#: Bytes of a float32.
_ITEM = 4

Expr = Any


def problem_of(spec: KernelSpec, machine: Machine) -> Problem | None:
    """The convolution where it is one that `winograd` computes."""
    anchor = spec.anchor
    if anchor.kind != "Conv" or not anchor.attribute("channels_last"):
        return None
    x_at, w_at, *_ = anchor.inputs
    x = _type(spec, x_at)
    weight = spec.operands[w_at]
    if len(x.shape) != 4 or x.dtype != "float32" or not weight.constant:
        return None
    if any(step.kind in _STEPPED or step.type.dtype != "float32" for step in spec.steps):
        return None
    if any(step.kind not in _READABLE for step in spec.steps[: spec.before]):
        return None
    window = window_of(anchor, x.shape, weight.type.shape[2:])
    steps = {*window.strides, *window.dilations, *window.spread, anchor.attribute("group")}
    if steps != {1} or window.kernel != (3, 3) or 0 in spec.anchor.type.shape:
        return None
    batch, height, width, inputs = x.shape
    outputs = anchor.type.shape
    result = (batch, outputs[1], outputs[2], outputs[3])
    kept, seen = output_gate(spec, machine), input_gate(spec)
    top, left = window.begins
    each, summed = kept.each if kept else 0, seen.each if seen else 0
    shape = (batch, height, width, inputs)
    return Problem(shape, result, top, left, each, summed, machine.lanes)


def candidates(spec: KernelSpec, machine: Machine) -> tuple[int, ...]:
    """Tiles by which `winograd` may compute the kernel, beside the direct schedule."""
    problem = problem_of(spec, machine)
    if problem is None:
        return ()
    return tuple(m for m in TILES if transform(m).error_bound(problem.shape[3]) <= _ALLOWED)


def chosen(spec: KernelSpec, machine: Machine) -> int | None:
    """The tile that is estimated to be fastest; None for the direct kernel."""
    problem, tiles = problem_of(spec, machine), candidates(spec, machine)
    if problem is None:
        return None
    machine = suited(spec, machine)
    costs = {m: plan_cost(best_plan(problem, machine, m), machine) for m in tiles}
    best = min(costs, key=lambda m: costs[m], default=None)
    if best is None or costs[best] * _GAIN > direct_cost(problem, machine):
        return None
    return best


def winograd(spec: KernelSpec, machine: Machine, tile: int, plan: Plan | None = None) -> Scheduled:
    """A 3x3 convolution of stride 1 by F(tile x tile, 3 x 3).

    Args:
        spec: a kernel that has `candidates`.
        machine: what the code is for.
        tile: one of them.
        plan: default: the one of least estimated cost.
    """
    gate = output_gate(spec, machine)
    problem = problem_of(spec, machine)
    machine = suited(spec, machine)
    assert problem is not None, "no convolution for Winograd's algorithm"
    plan = plan or best_plan(problem, machine, tile)
    whole, spec = spec, as_kept(spec, gate)
    x_at, w_at, *_ = spec.anchor.inputs
    kernel = Kernel(spec, unread=[w_at])
    given = spec.prologue(kernel.tensors) if spec.before else kernel.tensors[x_at]

    def private(elements: int, held: bool = True) -> Expr:
        nbytes = elements * _ITEM
        return kernel.add((elements,), "float32", PerThread(nbytes) if held else Scratch(nbytes))

    pack = _packing(plan.transform, machine.lanes, plan.blocks)
    memory = Memory(
        kernel,
        lambda *index: element(given, index, kernel.known),
        [kernel.operand(i) for i in bias_operands(spec.anchor) if i >= 0],
        kernel.add((plan.weight_elements,), "float32", Packed(w_at, pack)),
        private(plan.source_elements * (1 if plan.fused else plan.count), plan.fused),
        private(plan.column_elements),
        private(plan.sum_elements),
        kept_of(kernel, gate),
        kept_of(kernel, input_gate(spec)),
    )
    others = left_out(kernel, whole, gate, machine.lanes)
    return kernel.finished(*phases(plan, memory), *others)


def _type(spec: KernelSpec, value: int) -> TensorType:
    """Type of an operand or of what a step makes."""
    count = len(spec.operands)
    return spec.operands[value].type if value < count else spec.steps[value - count].type


def _packing(t: Transform, lanes: int, together: int) -> Callable[[np.ndarray], np.ndarray]:
    """Weights (O, I, 3, 3) -> [O / lanes / together][points][I][together][lanes], G w G^T.

    Computed in float64 and rounded once.
    """
    g = np.array([[float(x) for x in row] for row in t.kernel])

    def pack(w: np.ndarray) -> np.ndarray:
        outputs, inputs = w.shape[:2]
        u = (g @ w.astype(np.float64) @ g.T).astype(np.float32)
        vectors = blocked(u.reshape(outputs, inputs, t.size**2), lanes)
        groups = vectors.reshape(-1, together, inputs, t.size**2, lanes)
        return np.ascontiguousarray(groups.transpose(0, 3, 2, 1, 4))

    return pack

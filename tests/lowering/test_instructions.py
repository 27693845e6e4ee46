"""Inner loops of kernels: fused multiply-adds of whole vectors, sums in registers.

Read from the assembly for each machine, so that no such processor is needed.
"""

from __future__ import annotations

import re
from functools import cache

import pytest

pytest.importorskip("tvm")
from eecompile.hardware import Machine, machine
from eecompile.ir import Graph
from eecompile.targets.lowering.schedules import Choice, choices, dense
from eecompile.targets.lowering.spec import KernelSpec
from tests.lowering.assembly import Kernel, kernels_of
from tests.lowering.cases import conv, matmul

ARM = ["arm-cpu", "cortex-a55", "neoverse-n1"]
X86 = ["x86-64-v3", "x86-64-v4"]

#: A place on the stack.
SLOT = re.compile(r"-?\d*\(%r[sb]p")

KERNELS: dict[str, Graph] = {
    "3x3": conv(64, 64, 28, 3, dilation=2),
    "3x3-winograd": conv(128, 128, 14, 3),
    "3x3-strides": conv(32, 64, 28, 3, stride=2),
    "1x1": conv(64, 128, 14, 1),
    "1x1-residual": conv(96, 64, 28, 1, residual=True),
    "groups": conv(128, 128, 14, 3, group=2),
    "7x7-stem": conv(3, 64, 64, 7, stride=2),
    "depthwise": conv(96, 96, 28, 3, group=96),
    "matrices": matmul(128, 384, 384),
    "computed-matrices": matmul(128, 64, 128, batch=2, constant=False),
    "one-row": matmul(1, 512, 1000),
}


def tile_of(choice: Choice, spec: KernelSpec, target: Machine) -> int:
    """Sums that a choice keeps in registers."""
    numbers = dict(choice.numbers)
    match choice.family:
        case "conv" | "winograd":
            return numbers["width"] * numbers["blocks"]
        case "depthwise":
            return numbers["rows"] * numbers["columns"]
        case "matmul":
            rows, blocks = numbers["rows"], numbers["blocks"]
            deep = spec.operands[spec.anchor.inputs[0]].type.shape[-1]
            return rows * blocks * dense.splits(rows, blocks, deep, target)
    raise ValueError(choice.family)


@cache
def the_kernel(name: str, target: Machine) -> Kernel:
    """The kernel of a case that multiplies."""
    (found,) = [kernel for kernel in kernels_of(KERNELS[name], target) if kernel.use.macs]
    return found


@pytest.mark.parametrize("target", [*ARM, *X86])
@pytest.mark.parametrize("name", KERNELS)
def test_loops_are_whole_tiles_of_fused_multiply_adds(name: str, target: str) -> None:
    where = machine(target)
    kernel = the_kernel(name, where)
    loop = kernel.hot(where.lanes)
    choice = choices(kernel.spec, where)[0]
    tile = tile_of(choice, kernel.spec, where)
    products = [one for one in loop.instructions if one.is_product(where.lanes)]
    assert products and all(one.is_fused for one in products)
    assert loop.scalar_products == 0
    assert loop.calls == []
    # The compiler may unroll a loop once more: whole steps of the tile.
    assert len(products) % tile == 0, str(choice)


@pytest.mark.parametrize("target", ARM)
@pytest.mark.parametrize("name", KERNELS)
def test_sums_stay_in_registers(name: str, target: str) -> None:
    where = machine(target)
    kernel = the_kernel(name, where)
    loop = kernel.hot(where.lanes)
    choice = choices(kernel.spec, where)[0]
    assert loop.spills == []
    if choice.family == "depthwise":
        # All taps of a tile are one loop body, in which the sums begin as copies of the bias.
        assert len(loop.copies) < tile_of(choice, kernel.spec, where)
        return
    assert loop.copies == []
    sums = {one.destination for one in loop.instructions if one.is_product(where.lanes)}
    assert len(sums) == tile_of(choice, kernel.spec, where), str(choice)


@pytest.mark.parametrize("target", X86)
@pytest.mark.parametrize("name", [name for name in KERNELS if name != "depthwise"])
def test_one_sum_at_most_leaves_its_register(name: str, target: str) -> None:
    # The tiles measured best fill the registers of x86; depthwise ones are measured with spills.
    where = machine(target)
    loop = the_kernel(name, where).hot(where.lanes)
    places = {match[0] for one in loop.vector_spills if (match := SLOT.search(one.operands))}
    assert len(places) <= 1


@pytest.mark.parametrize("name", KERNELS)
def test_products_are_of_vectors_without_fused_instructions(name: str) -> None:
    where = machine("x86-64")
    loop = the_kernel(name, where).hot(where.lanes)
    names = [one.name for one in loop.instructions]
    assert names.count("mulps") == loop.products(4) >= 4
    assert names.count("addps") >= names.count("mulps")
    assert loop.scalar_products == 0
    assert loop.calls == []

"""Work is counted in the kernels there are: instructions, bytes, kernels."""

from __future__ import annotations

import pytest

pytest.importorskip("tvm")
from eecompile.cost import WIDE_BYTES, Work
from eecompile.hardware import machine
from eecompile.ir import Graph
from eecompile.targets.lowering import compile_functions
from eecompile.text import parse_graph
from tests.lowering.cases import conv, matmul

ARM = machine("arm-cpu")


def work(graph: Graph, target: str = "arm-cpu") -> Work:
    plain = (*graph.inputs, *graph.outputs)
    (function,) = compile_functions([graph], machine(target), plain=plain).functions
    return function.work


def relu(shape: str) -> Graph:
    return parse_graph(
        f"graph g(x: float32[{shape}]) -> (y: float32[{shape}]) {{ y: float32[{shape}] = Relu(x) }}"
    )


@pytest.mark.parametrize(("target", "lanes"), [("arm-cpu", 4), ("x86-64-v3", 8), ("x86-64-v4", 16)])
def test_an_element_wise_kernel_is_a_load_an_operation_and_a_store_a_vector(
    target: str, lanes: int
) -> None:
    found = work(relu("1, 64, 32, 32"), target)
    vectors = 64 * 32 * 32 // lanes
    assert (found.operations, found.accesses, found.divisions) == (vectors, 2 * vectors, 0)
    assert (found.macs, found.elements, found.kernels, found.lanes) == (0, 65536, 1, lanes)
    assert (found.value_bytes, found.weight_bytes) == (2 * 4 * 65536, 0)


def test_wide_values_are_told_apart_by_what_a_kernel_touches() -> None:
    found = work(relu("1, 64, 32, 32"))  # 512 KiB in and out
    assert found.wide_bytes == tuple(2**19 if size < 2**19 else 0 for size in WIDE_BYTES)


def test_products_are_one_instruction_each_with_their_sums() -> None:
    found = work(matmul(128, 384, 384))
    products = 128 * 384 * 384 // 4
    assert found.macs == 4 * products
    # The bias, and what the rows of the last tile have too many: at most a twentieth.
    assert products + 128 * 384 // 4 <= found.operations <= 1.05 * products
    # Sums are in registers: fewer loads than two a product.
    assert found.accesses < 1.2 * products
    assert found.weight_bytes == 4 * (384 * 384 + 384)
    assert found.value_bytes == 4 * 2 * 128 * 384


def test_winograds_products_are_fewer_than_the_sources() -> None:
    found = work(conv(128, 128, 14, 3))
    assert found.macs == 128 * 128 * 9 * 14 * 14
    assert found.operations < 0.6 * found.macs / 4


def test_depthwise_products_are_told_apart() -> None:
    found = work(conv(96, 96, 28, 3, group=96))
    assert found.macs == found.depthwise_macs == 96 * 9 * 28 * 28
    # Three windows in a row of ReLU and bias each: the border's products are left out or made up.
    assert 0.9 * found.macs / 4 <= found.operations <= 1.5 * found.macs / 4
    assert work(conv(128, 128, 14, 3, group=2)).depthwise_macs == 0


def test_divisions_are_counted_by_vector() -> None:
    graph = parse_graph(
        """graph g(a: float32[1, 64], b: float32[1, 64]) -> (y: float32[1, 64]) {
            y: float32[1, 64] = Div(a, b) }"""
    )
    found = work(graph)
    assert (found.divisions, found.operations, found.accesses) == (16, 16, 48)


def test_a_loop_over_a_part_of_the_rows_counts_what_it_visits() -> None:
    # 49 rows in strips of more than one: the last strip is short, and counts as the others do.
    found = work(conv(16, 16, 49, 1))
    products = 16 * 16 * 49 * 49 // 4
    assert products <= found.operations <= 1.2 * products


def test_work_of_a_function_is_that_of_its_kernels() -> None:
    graph = conv(8, 8, 8, 3)
    plain = (*graph.inputs, *graph.outputs)
    (function,) = compile_functions([graph], ARM, plain=plain).functions
    assert function.work == sum((use.work for use in function.kernels), Work())
    assert function.macs == function.work.macs == 8 * 8 * 9 * 64

"""Kernels of every family as graphs of one operator and what follows it, written as text."""

from __future__ import annotations

from eecompile.ir import Graph
from eecompile.text import parse_graph

__all__ = ["conv", "matmul", "pool", "rows"]


def conv(
    inputs: int,
    outputs: int,
    size: int | tuple[int, int],
    kernel: int,
    *,
    stride: int = 1,
    dilation: int = 1,
    group: int = 1,
    residual: bool = False,
    pad: int | None = None,
) -> Graph:
    """A convolution with bias and ReLU, "same" padding unless `pad` says otherwise."""
    height, width = (size, size) if isinstance(size, int) else size
    reach = (kernel - 1) * dilation
    pad = reach // 2 if pad is None else pad
    high, wide = ((extent + 2 * pad - reach - 1) // stride + 1 for extent in (height, width))
    result = f"float32[1, {outputs}, {high}, {wide}]"
    second, last = (f", r: {result}", "s") if residual else ("", "c")
    added = f"s: {result} = Add(c, r)" if residual else ""
    return parse_graph(
        f"""graph conv(x: float32[1, {inputs}, {height}, {width}]{second}) -> (y: {result}) {{
            const w: float32[{outputs}, {inputs // group}, {kernel}, {kernel}] = random(0)
            const b: float32[{outputs}] = random(1)
            c: {result} = Conv(x, w, b; strides=({stride}, {stride}),
                pads=({pad}, {pad}, {pad}, {pad}), dilations=({dilation}, {dilation}),
                group={group})
            {added}
            y: {result} = Relu({last})
        }}"""
    )


def matmul(rows: int, deep: int, columns: int, *, batch: int = 1, constant: bool = True) -> Graph:
    """A product with a constant matrix and a bias, or of two computed ones."""
    lead = f"{batch}, " if batch > 1 else ""
    result = f"float32[{lead}{rows}, {columns}]"
    matrix = f"float32[{'' if constant else lead}{deep}, {columns}]"
    weights = f"const w: {matrix} = random(0)" if constant else ""
    second = "" if constant else f", w: {matrix}"
    return parse_graph(
        f"""graph matmul(x: float32[{lead}{rows}, {deep}]{second}) -> (y: {result}) {{
            {weights}
            const b: float32[{columns}] = random(1)
            p: {result} = MatMul(x, w)
            y: {result} = Add(p, b)
        }}"""
    )


def pool(kind: str, channels: int, size: int, kernel: int, stride: int) -> Graph:
    """A pool with half the kernel as padding."""
    pad = kernel // 2
    out = (size + 2 * pad - kernel) // stride + 1
    extra = ", count_include_pad=0, extra=(0, 0)" if kind == "AveragePool" else ", dilations=(1, 1)"
    return parse_graph(
        f"""graph pool(x: float32[1, {channels}, {size}, {size}]) ->
            (y: float32[1, {channels}, {out}, {out}]) {{
            y: float32[1, {channels}, {out}, {out}] = {kind}(x; kernel_shape=({kernel}, {kernel}),
                strides=({stride}, {stride}), pads=({pad}, {pad}, {pad}, {pad}){extra})
        }}"""
    )


def rows(kind: str, count: int, length: int) -> Graph:
    """Something done with every row of a matrix."""
    matrix, vector = f"float32[{count}, {length}]", f"float32[{length}]"
    bodies = {
        "softmax": f"y: {matrix} = Softmax(x; axis=1)",
        "norm": f"""const s: {vector} = random(0)
            const b: {vector} = random(1)
            y: {matrix} = LayerNormalization(x, s, b; axis=1, epsilon=1e-05)""",
        "sigmoid": f"y: {matrix} = Sigmoid(x)",
        "transpose": f"y: float32[{length}, {count}] = Transpose(x; perm=(1, 0))",
        "mean": f"y: float32[{count}, 1] = ReduceMean(x; axes=(1,), keepdims=1)",
        "first mean": f"y: float32[1, {length}] = ReduceMean(x; axes=(0,), keepdims=1)",
    }
    types = {
        "transpose": f"float32[{length}, {count}]",
        "mean": f"float32[{count}, 1]",
        "first mean": f"float32[1, {length}]",
    }
    return parse_graph(
        f"graph rows(x: {matrix}) -> (y: {types.get(kind, matrix)}) {{ {bodies[kind]} }}"
    )

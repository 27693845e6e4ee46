"""Kernels of every family as graphs of one operator and what follows it, written as text."""

from __future__ import annotations

from dataclasses import replace

from eecompile.ir import Graph
from eecompile.text import parse_graph

__all__ = ["ODD", "conv", "matmul", "pool", "renamed", "rows"]


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


def renamed(graph: Graph, prefix: str) -> Graph:
    """The graph under another name, with values of its own: names are shared between graphs."""

    def name(value: str) -> str:
        return f"{prefix}.{value}" if value else value

    ops = tuple(
        replace(op, inputs=tuple(map(name, op.inputs)), outputs=tuple(map(name, op.outputs)))
        for op in graph.ops
    )
    return Graph(
        prefix,
        tuple(map(name, graph.inputs)),
        tuple(map(name, graph.outputs)),
        ops,
        {name(key): value for key, value in graph.constants.items()},
        {name(key): value for key, value in graph.types.items()},
    )


#: Shapes whose every dimension leaves something over, and the smallest there are.
ODD: dict[str, Graph] = {
    "channels that fill no vector": conv(3, 5, 9, 3),
    "channels that fill vectors but one": conv(16, 31, (5, 11), 3),
    "one pixel": conv(19, 21, 1, 3),
    "one pixel, 1x1": conv(7, 33, 1, 1),
    "1x1 with a residual sum": conv(12, 20, 7, 1, residual=True),
    "1x1 with strides": conv(16, 24, 7, 1, stride=2),
    "strides": conv(8, 24, 7, 3, stride=2, residual=True),
    "strides wider than the window": conv(8, 8, 11, 2, stride=3, pad=0),
    "dilation": conv(8, 16, 9, 3, dilation=2),
    "7x7 window of 3 channels": conv(3, 16, 15, 7, stride=2),
    "padding wider than the picture": conv(4, 8, 2, 7),
    "groups": conv(12, 18, 7, 3, group=3),
    "groups of whole vectors": conv(32, 32, 6, 3, group=2),
    "Winograd, whole tiles": conv(32, 32, 8, 3),
    "Winograd, tiles cut off": conv(32, 32, 7, 3, residual=True),
    "Winograd, deep": conv(64, 48, (7, 13), 3),
    "depthwise": conv(24, 24, 7, 3, group=24),
    "depthwise with a tail": conv(21, 21, 9, 3, group=21, residual=True),
    "depthwise with strides": conv(16, 16, 9, 5, group=16, stride=2),
    "depthwise, one pixel": conv(17, 17, 1, 3, group=17),
    "dense 3x5": matmul(3, 5, 7),
    "dense, one row": matmul(1, 37, 19),
    "dense, one column": matmul(9, 16, 1),
    "dense, whole tiles": matmul(32, 16, 32),
    "computed matrices": matmul(7, 9, 13, batch=2, constant=False),
    "computed matrices, one row": matmul(1, 16, 16, constant=False),
    "softmax of 5": rows("softmax", 3, 5),
    "softmax of 37": rows("softmax", 2, 37),
    "norm of 19": rows("norm", 5, 19),
    "element by element": rows("sigmoid", 3, 11),
    "mean of rows": rows("mean", 5, 29),
    "mean of columns": rows("first mean", 5, 29),
    "transpose": rows("transpose", 13, 21),
    "largest of windows": pool("MaxPool", 19, 7, 3, 2),
    "mean of windows": pool("AveragePool", 33, 6, 3, 1),
}

"""Blocks with a channel gate as graphs, and what is checked about their compiled form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from eecompile.hardware import Machine
from eecompile.ir import Graph
from eecompile.reference import run_graph
from eecompile.text import parse_graph
from tests.lowering.calling import Loaded, compile_plain, inputs_of

__all__ = ["bottleneck", "convolutions", "inverted", "line", "scores_of", "summed", "worst"]


def _conv(kernel: int, stride: int = 1, group: int = 1) -> str:
    pad = kernel // 2
    return (
        f"strides=({stride}, {stride}), pads=({pad}, {pad}, {pad}, {pad}), "
        f"dilations=(1, 1), group={group}"
    )


def _image(channels: int, size: tuple[int, int]) -> str:
    return f"float32[1, {channels}, {size[0]}, {size[1]}]"


def convolutions(
    channels: tuple[int, int, int],
    groups: int,
    size: tuple[int, int],
    kernels: tuple[int, int] = (3, 3),
    *,
    stride: int = 1,
    gated: bool = True,
    outputs: Sequence[str] = ("y",),
) -> Graph:
    """A convolution, a gate on its activation, and a convolution of that with a residual."""
    inputs, inner, last = channels
    out = ((size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1)
    t, u = _image(inner, size), _image(last, out)
    types = {"k": t, "y": u}
    kept = f"k: {t} = Keep(r, s)" if gated else ""
    results = ", ".join(f"{name}: {types[name]}" for name in outputs)
    scores = f", s: float32[1, {groups}]" if gated else ""
    return parse_graph(
        f"""graph block(x: {_image(inputs, size)}, q: {u}{scores}) -> ({results}) {{
            const w: float32[{inner}, {inputs}, {kernels[0]}, {kernels[0]}] = random(0)
            const v: float32[{last}, {inner}, {kernels[1]}, {kernels[1]}] = random(1)
            const b: float32[{inner}] = random(2)
            const c: float32[{last}] = random(3)
            a: {t} = Conv(x, w, b; {_conv(kernels[0])})
            r: {t} = Relu(a)
            {kept}
            d: {u} = Conv({"k" if gated else "r"}, v, c; {_conv(kernels[1], stride)})
            e: {u} = Add(d, q)
            y: {u} = Relu(e)
        }}"""
    )


def inverted(
    inputs: int, wide: int, groups: int, size: tuple[int, int], gates: str, stride: int = 1
) -> Graph:
    """An inverted residual, gated before its depthwise convolution ("a"), behind it ("b")."""
    out = ((size[0] - 1) // stride + 1, (size[1] - 1) // stride + 1)
    t, u, y = _image(wide, size), _image(wide, out), _image(inputs, out)
    first = f"k: {t} = Keep(f, s)" if "a" in gates else ""
    second = f"l: {u} = Keep(h, s)" if "b" in gates else ""
    return parse_graph(
        f"""graph block(x: {_image(inputs, size)}, s: float32[1, {groups}]) -> (y: {y}) {{
            const w: float32[{wide}, {inputs}, 1, 1] = random(0)
            const v: float32[{wide}, 1, 3, 3] = random(1)
            const p: float32[{inputs}, {wide}, 1, 1] = random(2)
            const b: float32[{wide}] = random(3)
            const c: float32[{wide}] = random(4)
            const d: float32[{inputs}] = random(5)
            e: {t} = Conv(x, w, b; {_conv(1)})
            f: {t} = Clip(e; min=0.0, max=6.0)
            {first}
            g: {u} = Conv({"k" if first else "f"}, v, c; {_conv(3, stride, wide)})
            h: {u} = Clip(g; min=0.0, max=6.0)
            {second}
            y: {y} = Conv({"l" if second else "h"}, p, d; {_conv(1)})
        }}"""
    )


def bottleneck(inputs: int, growth: int, groups: int, size: tuple[int, int], last: bool) -> Graph:
    """DenseNet's layer with its concatenation; gated inside, or `last`, what it adds."""
    wide = 2 * growth
    i, t, u, y = (_image(c, size) for c in (inputs, wide, growth, inputs + growth))
    return parse_graph(
        f"""graph block(x: {i}, s: float32[1, {groups}]) -> (y: {y}) {{
            const m: float32[{inputs}, 1, 1] = random(0)
            const w: float32[{wide}, {inputs}, 1, 1] = random(1)
            const v: float32[{growth}, {wide}, 3, 3] = random(2)
            const b: float32[{wide}] = random(3)
            n: {i} = Mul(x, m)
            o: {i} = Relu(n)
            a: {t} = Conv(o, w, b; {_conv(1)})
            r: {t} = Relu(a)
            {"" if last else f"k: {t} = Keep(r, s)"}
            c: {u} = Conv({"r" if last else "k"}, v; {_conv(3)})
            {f"l: {u} = Keep(c, s)" if last else ""}
            y: {y} = Concat(x, {"l" if last else "c"}; axis=1)
        }}"""
    )


def line(channels: tuple[int, int], groups: int, length: int, group: int = 1) -> Graph:
    """A gated convolution over one dimension, and one that reads it."""
    inputs, inner = channels
    t, shape = f"float32[1, {inner}, {length}]", "strides=(1,), pads=(1, 1), dilations=(1,)"
    return parse_graph(
        f"""graph block(x: float32[1, {inputs}, {length}], s: float32[1, {groups}]) -> (y: {t}) {{
            const w: float32[{inner}, {inputs // group}, 3] = random(0)
            const v: float32[{inner}, {inner}, 3] = random(1)
            a: {t} = Conv(x, w; {shape}, group={group})
            k: {t} = Keep(a, s)
            y: {t} = Conv(k, v; {shape}, group=1)
        }}"""
    )


def summed(inputs: int, channels: int, groups: int, size: int, group: int) -> Graph:
    """A grouped convolution with a sum before its gate and another one behind."""
    t = _image(channels, (size, size))
    return parse_graph(
        f"""graph block(x: {_image(inputs, (size, size))}, q: {t}, s: float32[1, {groups}]) ->
            (y: {t}) {{
            const w: float32[{channels}, {inputs // group}, 3, 3] = random(0)
            a: {t} = Conv(x, w; {_conv(3, 1, group)})
            b: {t} = Add(a, q)
            k: {t} = Keep(b, s)
            z: {t} = Add(k, q)
            y: {t} = Relu(z)
        }}"""
    )


def scores_of(kept: Sequence[bool | int]) -> np.ndarray:
    """Scores that keep these groups; of the others one is no number, one is 0."""
    low = [-1.0, float("nan"), 0.0, -0.0]
    return np.array([[2.0 if k else low[i % 4] for i, k in enumerate(kept)]], np.float32)


def worst(
    graph: Graph, target: Machine | None, masks: Iterable[Sequence[bool | int]], seed: int = 0
) -> float:
    """Largest difference from the reference with any of the masks, all masks as one call's samples.

    It is relative to the largest value of the output. Workspace and outputs hold what is no number.
    """
    compiled = compile_plain(graph, target)
    inputs = inputs_of(graph, seed)
    samples = [{**inputs, "s": scores_of(mask)} for mask in masks]
    stacked = [np.stack([sample[name] for sample in samples]) for name in graph.inputs]
    found = Loaded(compiled)(compiled.functions[0].symbol, stacked, len(samples))
    error = 0.0
    for index, sample in enumerate(samples):
        expected = run_graph(graph, sample)
        for name, results in zip(graph.outputs, found, strict=True):
            scale = max(float(np.abs(expected[name]).max()), 1e-6)
            assert np.isfinite(results[index]).all()
            error = max(error, float(np.abs(results[index] - expected[name]).max()) / scale)
    return error

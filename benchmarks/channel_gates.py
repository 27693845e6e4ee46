"""Blocks with a channel gate: time against the share of channels kept, beside what the MACs say.

    python -m benchmarks.channel_gates [BLOCK ...] [--groups 4] [--rounds 31] [--threads 1] [--json]

Each block is compiled twice, with its gate and without; calls with 1 .. all groups kept and calls
of the block without a gate take turns (`turns`). A figure is the median, over the rounds, of the
ratio to the block without a gate in the same round. MACs are `kept_macs`; `off` is what the time
that was saved or spent differs from them, as a share of the whole block's time.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from benchmarks.machine import describe_machine
from benchmarks.turns import ratio, take_turns
from eecompile.hardware import machine
from eecompile.ir import Graph
from eecompile.kept_macs import kept_macs
from eecompile.targets.loaded import LoadedLibrary
from eecompile.targets.lowering import compile_functions
from eecompile.text import parse_graph

__all__ = ["BLOCKS", "Block", "Row", "main", "measure"]


@dataclass(frozen=True)
class Block:
    """Operators as text; a line with GATED is there with a gate only, one with PLAIN without."""

    inputs: int
    size: int
    channels: int
    outputs: int
    lines: str

    def graph(self, groups: int) -> Graph:
        """The block behind channels-last memory, with a gate of so many groups or none at 0."""
        drop, mark = ("PLAIN", "GATED") if groups else ("GATED", "PLAIN")
        lines = [line.replace(mark, "") for line in self.lines.split("\n") if drop not in line]
        scores = f", s: float32[1, {groups}]" if groups else ""
        n = self.size
        x = f"float32[1, {n}, {n}, {self.inputs}]"
        result = f"float32[1, {self.outputs}, {n}, {n}]"
        return parse_graph(
            f"graph block(t: {x}{scores}) -> (y: {result}) {{\n"
            f"x: float32[1, {self.inputs}, {n}, {n}] = Transpose(t; perm=(0, 3, 1, 2))\n"
            + "\n".join(lines)
            + "\n}"
        )


def _conv(kernel: int, group: int = 1) -> str:
    pad = kernel // 2
    return f"strides=(1, 1), pads=({pad}, {pad}, {pad}, {pad}), dilations=(1, 1), group={group}"


def _residual(channels: int, size: int) -> Block:
    """ResNet's basic block, its inner channels gated."""
    t, w = f"float32[1, {channels}, {size}, {size}]", f"float32[{channels}, {channels}, 3, 3]"
    lines = f"""const w: {w} = random(0)
        const v: {w} = random(1)
        const b: float32[{channels}] = random(2)
        a: {t} = Conv(x, w, b; {_conv(3)})
        r: {t} = Relu(a)
        GATED k: {t} = Keep(r, s)
        GATED c: {t} = Conv(k, v, b; {_conv(3)})
        PLAIN c: {t} = Conv(r, v, b; {_conv(3)})
        d: {t} = Add(c, x)
        y: {t} = Relu(d)"""
    return Block(channels, size, channels, channels, lines)


def _inverted(inputs: int, size: int, factor: int, behind: bool) -> Block:
    """MobileNetV2's inverted residual, gated in front of its depthwise convolution or behind."""
    wide = inputs * factor
    t, u = (f"float32[1, {c}, {size}, {size}]" for c in (wide, inputs))
    lines = f"""const w: float32[{wide}, {inputs}, 1, 1] = random(0)
        const v: float32[{wide}, 1, 3, 3] = random(1)
        const q: float32[{inputs}, {wide}, 1, 1] = random(2)
        const b: float32[{wide}] = random(3)
        const d: float32[{inputs}] = random(4)
        e: {t} = Conv(x, w, b; {_conv(1)})
        f: {t} = Clip(e; min=0.0, max=6.0)
        GATED {"" if behind else f"k: {t} = Keep(f, s)"}
        GATED g: {t} = Conv({"f" if behind else "k"}, v, b; {_conv(3, wide)})
        PLAIN g: {t} = Conv(f, v, b; {_conv(3, wide)})
        h: {t} = Clip(g; min=0.0, max=6.0)
        GATED {f"l: {t} = Keep(h, s)" if behind else ""}
        GATED o: {u} = Conv({"l" if behind else "h"}, q, d; {_conv(1)})
        PLAIN o: {u} = Conv(h, q, d; {_conv(1)})
        y: {u} = Add(o, x)"""
    return Block(inputs, size, wide, inputs, lines)


def _bottleneck(inputs: int, size: int, growth: int, last: bool = False) -> Block:
    """DenseNet's layer; the gate is between its convolutions, or `last`, at its result."""
    wide = 4 * growth
    t, u, i = (f"float32[1, {c}, {size}, {size}]" for c in (wide, growth, inputs))
    k = "r" if last else "k"
    lines = f"""const m: float32[{inputs}, 1, 1] = random(5)
        const w: float32[{wide}, {inputs}, 1, 1] = random(0)
        const v: float32[{growth}, {wide}, 3, 3] = random(1)
        const b: float32[{wide}] = random(2)
        p: {i} = Mul(x, m)
        o: {i} = Relu(p)
        a: {t} = Conv(o, w, b; {_conv(1)})
        r: {t} = Relu(a)
        GATED {"" if last else f"k: {t} = Keep(r, s)"}
        GATED c: {u} = Conv({k}, v; {_conv(3)})
        PLAIN c: {u} = Conv(r, v; {_conv(3)})
        GATED {f"l: {u} = Keep(c, s)" if last else ""}
        GATED y: {u} = Relu({"l" if last else "c"})
        PLAIN y: {u} = Relu(c)"""
    return Block(inputs, size, growth if last else wide, growth, lines)


BLOCKS = {
    "resnet56 stage 1": _residual(16, 32),
    "resnet56 stage 2": _residual(32, 16),
    "resnet56 stage 3": _residual(64, 8),
    "resnet18 stage 2": _residual(128, 28),
    "resnet18 stage 3": _residual(256, 14),
    "mobilenet, expanded": _inverted(32, 28, 6, behind=False),
    "mobilenet, depthwise": _inverted(32, 28, 6, behind=True),
    "densenet, inside": _bottleneck(256, 28, 32),
    "densenet, new": _bottleneck(256, 28, 32, last=True),
}


@dataclass(frozen=True)
class Row:
    """One block with some groups kept.

    Attributes:
        share: of the groups.
        macs: of the block without a gate.
        time: median ratio to the block without a gate, with its quartiles.
        plain_s: seconds of a call of the block without a gate.
    """

    block: str
    groups: int
    share: float
    macs: float
    time: tuple[float, float, float]
    plain_s: float


def _bound(graph: Graph, threads: int, kept: Sequence[float]) -> Callable[[], int]:
    """A call of the block with the first groups kept or not, as `kept` says."""
    plain = tuple(name for name in graph.inputs)
    compiled = compile_functions([graph], machine("host"), plain=plain)
    rng = np.random.default_rng(0)
    x = rng.standard_normal(graph.types["t"].shape).astype(np.float32)
    library = LoadedLibrary(compiled, threads)
    inputs = [x, *([np.array([kept], np.float32)] if kept else [])]
    return library.bind(compiled.functions[0].symbol, inputs)[0]


def measure(name: str, groups: int, rounds: int, threads: int) -> list[Row]:
    """A block with every number of groups kept, spread over the channels."""
    block = BLOCKS[name]
    sides = {"plain": _bound(block.graph(0), threads, ())}
    for count in range(groups + 1):
        scores = [
            1.0 if (i + 1) * count // groups > i * count // groups else -1.0 for i in range(groups)
        ]
        sides[str(count)] = _bound(block.graph(groups), threads, scores)
    turns = take_turns(sides, rounds, settled=threads > 1)
    always, each = kept_macs(block.graph(groups))
    rows = []
    for count in range(groups + 1):
        found = ratio(turns[str(count)], turns["plain"])
        share = (always + count * each) / (always + groups * each)
        quartiles = (found.low, found.median, found.high)
        rows.append(Row(name, groups, count / groups, share, quartiles, turns["plain"].median))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("blocks", nargs="*", default=list(BLOCKS), metavar="BLOCK")
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    unknown = set(options.blocks) - set(BLOCKS)
    if unknown:
        parser.error(f"no block {', '.join(sorted(unknown))}; there are {', '.join(BLOCKS)}")
    rows = [
        row
        for name in options.blocks
        for row in measure(name, options.groups, options.rounds, options.threads)
    ]
    if options.json:
        json.dump([asdict(row) for row in rows], sys.stdout, indent=1)
        return
    print(describe_machine())
    print(f"{options.threads} threads, {options.groups} groups; all relative to no gate")
    print(
        f"{'block':22} {'channels':>8} {'plain':>8} {'kept':>5} {'MACs':>6} {'time':>6} "
        "(quartiles)    off"
    )
    for row in rows:
        low, median, high = row.time
        print(
            f"{row.block:22} {BLOCKS[row.block].channels:8} {1e6 * row.plain_s:5.0f} us "
            f"{row.share:5.0%} {row.macs:6.0%} {median:6.0%} ({low:.0%} to {high:.0%}) "
            f"{median - row.macs:+6.0%}"
        )


if __name__ == "__main__":
    main()

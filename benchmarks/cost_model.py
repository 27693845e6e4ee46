"""Fits the shipped cost model on this machine's kernels, and says how well it foretells others.

    python -m benchmarks.suite nets
    python -m benchmarks.cost_model nets/*.onnx --keep times.json
    python -m benchmarks.cost_model --measured times.json

Every network is compiled for several instruction sets, as if for different machines. The model is
fitted without a network, or without an instruction set, and then asked about it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from benchmarks.kernel_times import Measured, measure, read, write
from benchmarks.machine import describe_machine
from eecompile.board import Cluster, DvfsState
from eecompile.cost import Work
from eecompile.cost_model import FEATURES, CostModel, features

__all__ = ["Piece", "fitted", "pieces"]

#: Vector multiply-accumulates and loads of one core a cycle, by instruction set, on the machine
#: the shipped coefficients were fitted on. Source: targets/boards/host.toml (measured: 512 bits at
#: 1 a cycle); AMD, Software Optimization Guide for the Zen 4 Microarchitecture, 2.11: two 256-bit
#: multiply-adds and two loads a cycle. Without fused multiply-adds it would be two as well, but
#: products, sums and broadcasts are instructions of their own there, which nothing here counts:
#: of 1, 1.5 and 2 the one is taken with which the three sets foretell one another best.
_FMA_PER_CYCLE = {"x86-64": 1.5, "x86-64-v3": 2.0, "x86-64-v4": 1.0}
_LOADS_PER_CYCLE = 2.0

#: What its private caches do not hold comes from a third, shared and with a clock of its own,
#: which stands for the memory of boards that have none.
_HERE = CostModel(Cluster("here", "", (0,), (DvfsState("here", None),), l2_bytes=1 << 20))
_LINE_BYTES = 64

#: Pieces that a network is cut into: functions of a network with exits are about as large. Shorter
#: ones than this cannot be measured apart from what calls them.
_PIECES = 20
_SHORTEST_S = 20e-6

#: Smaller networks stay in the first cache, which the model does not know; they are listed apart.
_SMALL_CYCLES = 500_000


@dataclass(frozen=True)
class Piece:
    """Some kernels of a `whole` network one after the other, and the cycles they took."""

    network: str
    target: str
    work: Work
    cycles: float
    whole: Work

    @property
    def features(self) -> tuple[float, ...]:
        """What the cycles are modelled as a sum of; the last is this machine's, not shipped."""
        near = features(self.work, _FMA_PER_CYCLE[self.target], _LOADS_PER_CYCLE)
        far_bytes = _HERE.memory_bytes(self.work, self.whole)
        return (*near, far_bytes / _LINE_BYTES)


def pieces(found: Measured) -> list[Piece]:
    """A network in pieces of about the same time.

    Calls of single kernels from Python find colder caches than those of the whole network: what
    they take longer together is taken off, the same of each but at most half of it.
    """
    seconds = np.array(found.seconds)
    colder = max(0.0, (seconds.sum() - found.whole_s) / len(seconds))
    seconds = seconds - np.minimum(colder, seconds / 2)
    seconds *= found.whole_s / seconds.sum()
    made, work, taken = [], Work(), 0.0
    whole = sum(found.works, Work())
    length_s = max(found.whole_s / _PIECES, _SHORTEST_S)
    for index, (each, time_s) in enumerate(zip(found.works, seconds, strict=True)):
        work, taken = work + each, taken + time_s
        if taken >= length_s or index == len(seconds) - 1:
            cycles = taken * found.clock_hz
            made.append(Piece(found.network, found.target, work, cycles, whole))
            work, taken = Work(), 0.0
    return made


def fitted(given: Sequence[Piece]) -> np.ndarray:
    """Non-negative coefficients with the least sum of relative errors, large ones bounded.

    That of arithmetic is at least 1: no core starts more of it than it can. Weighted least
    squares, the weights from the errors before: what is far off counts less.
    """
    scaled = np.array([piece.features for piece in given])
    scaled /= np.array([piece.cycles for piece in given])[:, None]
    least = np.eye(scaled.shape[1])[0]
    weights = np.ones(len(given))
    for _ in range(30):
        more, _ = nnls(scaled * weights[:, None], (1 - scaled @ least) * weights)
        errors = np.abs(scaled @ (more + least) - 1)
        weights = 1 / np.sqrt(np.maximum(errors, 0.02))
    return np.asarray(more + least)


def _errors(coefficients: np.ndarray, given: Sequence[Piece]) -> tuple[float, np.ndarray]:
    """Of all pieces together, and of each, relative."""
    modelled = np.array([piece.features for piece in given]) @ coefficients
    cycles = np.array([piece.cycles for piece in given])
    return float(modelled.sum() / cycles.sum() - 1), modelled / cycles - 1


def _report(given: Sequence[Piece], left_out: str) -> None:
    """Errors about what was left out of the fit: "network" or "target"."""
    print(f"\nfitted without the {left_out}    full depth   pieces: mean  largest")
    wholes, parts = [], []
    for one in dict.fromkeys(getattr(piece, left_out) for piece in given):
        found = fitted([piece for piece in given if getattr(piece, left_out) != one])
        asked = [piece for piece in given if getattr(piece, left_out) == one]
        for name, target in dict.fromkeys((p.network, p.target) for p in asked):
            some = [p for p in asked if (p.network, p.target) == (name, target)]
            whole, each = _errors(found, some)
            mean, largest = float(np.abs(each).mean()), np.abs(each).max()
            print(f"{name:20} {target:10} {whole:+10.0%} {mean:14.0%} {largest:8.0%}")
            if sum(p.cycles for p in some) >= _SMALL_CYCLES:
                wholes.append(abs(whole))
                parts.append(mean)
    print(
        f"networks of {_SMALL_CYCLES:,} cycles and more: full depth {np.mean(wholes):.1%} in the "
        f"mean, {max(wholes):.0%} at most; pieces {np.mean(parts):.1%} in the mean"
    )


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost_model", description=__doc__)
    parser.add_argument("networks", type=Path, nargs="*", metavar="FILE.onnx")
    parser.add_argument("--measured", type=Path, nargs="+", default=[], metavar="FILE.json")
    parser.add_argument("--keep", type=Path, metavar="FILE.json")
    options = parser.parse_args(arguments)
    print(describe_machine())
    found = [one for path in options.measured for one in read(path)]
    for path in options.networks:
        found += measure(path, list(_FMA_PER_CYCLE))
        print(f"measured {path.stem}", flush=True)
        if options.keep:
            write(options.keep, found)
    if not found:
        parser.error("no networks")
    given = [piece for one in found for piece in pieces(one)]
    clock = np.median([one.clock_hz for one in found])
    print(f"{len(given)} pieces of {len(found)} networks, at {clock / 1e9:.2f} GHz")
    names = (*FEATURES, "cache lines from this machine's L3")
    for name, value in zip(names, fitted(given), strict=True):
        print(f"  {name:32} {value:10.3g}")
    _report(given, "network")
    _report(given, "target")


if __name__ == "__main__":
    main()

"""Seconds of reading, lowering and compiling against depth, and that 1,202 layers come out right.

Equal layers share their kernels, so that depth adds calls and weights, no code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from benchmarks.peers import Subject, compile_file, ours, relative_error

__all__ = ["CIFAR", "LAYERS", "LIMITS_S", "Depth", "growth", "measure_depth"]

#: Name -> layers with weights, shortcuts not counted: the same network deeper and deeper.
CIFAR = {"resnet20": 20, "resnet56": 56, "resnet110": 110, "resnet1202": 1202}

#: The same of all networks that are measured.
LAYERS = {**CIFAR, "resnet18": 18}

#: Name -> seconds that it may take.
LIMITS_S = {"resnet56": 20.0, "resnet18": 20.0}


@dataclass(frozen=True)
class Depth:
    """What compiling a network takes.

    Attributes:
        compile_s: reading the ONNX file, lowering, code generation and linking.
        kernels: kernels emitted.
        calls: kernel calls of one sample.
        error: against float64, relative to the answer's largest element.
    """

    network: str
    layers: int
    compile_s: float
    kernels: int
    calls: int
    error: float

    def text(self) -> str:
        """One line for people."""
        limit = LIMITS_S.get(self.network)
        bar = ""
        if limit is not None:
            bar = f"; <= {limit:.0f} s: {'met' if self.compile_s <= limit else 'missed'}"
        return (
            f"{self.network:<12} {self.layers:5} layers: {self.compile_s:7.2f} s, {self.kernels} "
            f"kernels called {self.calls} times, error {self.error:.0e}{bar}"
        )


def measure_depth(network: Subject) -> Depth:
    """Compiles a network once and runs it."""
    compiled, compile_s = compile_file(network.path)
    (function,) = compiled.functions
    answer = ours(compiled, network, 1).answer
    return Depth(
        network.name,
        LAYERS[network.name],
        compile_s,
        len({use.symbol for use in function.kernels}),
        len(function.kernels),
        relative_error(answer, network.exact()),
    )


def growth(found: Sequence[Depth]) -> str:
    """Seconds for each further layer, from one depth to the next.

    >>> def depth(layers, compile_s):
    ...     return Depth("n", layers, compile_s, 1, 1, 0.0)
    >>> growth([depth(20, 1.0), depth(56, 1.36), depth(110, 2.44)])
    'each further layer: 10.0 ms from 20 to 56, 20.0 ms from 56 to 110'
    """
    steps = _steps(sorted(found, key=lambda depth: depth.layers))
    return "each further layer: " + ", ".join(steps)


def _steps(found: Sequence[Depth]) -> Iterator[str]:
    for less, more in pairwise(found):
        each = (more.compile_s - less.compile_s) / (more.layers - less.layers)
        yield f"{each * 1e3:.1f} ms from {less.layers} to {more.layers}"

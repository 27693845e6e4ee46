"""Where a compiled network's time goes: its kernels one by one, on one thread.

The kernels run in the network's order, so that each finds the caches as the one before left them.
Layers that share a kernel (equal shapes and operators) are added up.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.peak import Limits
from benchmarks.peers import Subject, compile_file
from eecompile.hardware import machine
from eecompile.targets.loaded import LoadedLibrary

if TYPE_CHECKING:
    from eecompile.targets.lowering import KernelUse

__all__ = ["Layer", "Profile", "call_s", "profile", "reason"]

_ROUNDS = 30

#: Shorter kernels spend their time on starting and ending loops.
_SMALL_S = 2e-6

#: Products an output below which a kernel loads more than it multiplies: 7x7 depthwise windows.
_FEW_PRODUCTS = 49

#: Products of 4 bytes moved, up to which weights are not used again: a dense layer on one row.
_ONCE = 1.5

#: Element-wise operators that take as long as tens of multiply-accumulates.
_COSTLY = frozenset("Cos Div Erf Exp Gelu Log Mish Pow Sigmoid Sin Softplus Sqrt Tanh".split())


@dataclass(frozen=True)
class Layer:
    """All calls of one kernel in a network.

    Attributes:
        output: the value that the first of them computes, by its name in the network.
        operators: what it computes, the operator its schedule is chosen by first.
        shape: of the output in memory.
        calls: how often it is called.
        time_s: of one call.
        share: of all calls in the network's time.
        macs: multiply-accumulates of one call.
        nbytes: of the tensors it reads and writes in one call.
        parallel: whether several threads can share it.
    """

    output: str
    operators: tuple[str, ...]
    shape: tuple[int, ...]
    calls: int
    time_s: float
    share: float
    macs: int
    nbytes: int
    parallel: bool

    @property
    def flops(self) -> float:
        """Floating-point operations a second, two for each multiply-accumulate."""
        return 2 * self.macs / self.time_s

    @property
    def title(self) -> str:
        """Operators, shortened."""
        first, *rest = self.operators
        return " ".join([first, *(f"+{kind}" for kind in rest[:3])]) + (" ..." if rest[3:] else "")


@dataclass(frozen=True)
class Profile:
    """A network kernel by kernel, those that take most of its time first.

    Attributes:
        whole_s: a call of the whole network; the kernels' times add up to about that.
        reasons: why each of the first five layers takes the time it takes.
    """

    network: str
    whole_s: float
    layers: tuple[Layer, ...]
    reasons: tuple[str, ...]
    limits: Limits

    def text(self) -> str:
        """A table for people."""
        total = sum(layer.calls * layer.time_s for layer in self.layers)
        calls = sum(layer.calls for layer in self.layers)
        lines = [
            "",
            f"{self.network}, one thread: {calls} calls of {len(self.layers)} kernels take "
            f"{total * 1e3:.3f} ms, the whole network {self.whole_s * 1e3:.3f} ms",
            "calls  us each   share  GFLOP/s of peak       KiB   GB/s  output            operators",
        ]
        lines += [self._line(layer) for layer in self.layers]
        lines.append("most of the time:")
        for layer, why in zip(self.layers, self.reasons, strict=False):
            lines.append(f"  {layer.share:5.1%}  {layer.output} ({layer.title}): {why}")
        return "\n".join(lines)

    def _line(self, layer: Layer) -> str:
        shape = "x".join(map(str, layer.shape))
        return (
            f"{layer.calls:5} {layer.time_s * 1e6:8.2f} {layer.share:7.1%} "
            f"{layer.flops / 1e9:8.1f} {layer.flops / self.limits.flops:7.0%} "
            f"{layer.nbytes / 1024:9.1f} "
            f"{layer.nbytes / layer.time_s / 1e9:6.1f}  {shape:<17} {layer.title}"
        )


def profile(subject: Subject, limits: Limits) -> Profile:
    """Measures every kernel of a network."""
    compiled, _ = compile_file(subject.path, export_kernels=True)
    loaded = LoadedLibrary(compiled)
    symbol = compiled.functions[0].symbol
    whole, _ = loaded.bind(symbol, [subject.x])
    kernels = loaded.bind_kernels(symbol, [subject.x])
    whole()
    rows, wholes = [], []
    for _ in range(_ROUNDS):
        wholes.append(_timed(whole))
        rows.append([_timed(call) for _, call in kernels])
    net = np.median(rows, axis=0) - [call_s(use) for use, _ in kernels]
    layers = _layers([use for use, _ in kernels], np.maximum(net, 1e-9))
    lanes = machine("host").lanes
    far = limits.bandwidth(compiled.weights.nbytes + compiled.functions[0].workspace_bytes)
    reasons = tuple(reason(layer, limits, lanes, far) for layer in layers[:5])
    return Profile(subject.name, float(np.median(wholes)), tuple(layers), reasons, limits)


def _layers(uses: Sequence[KernelUse], times: np.ndarray) -> list[Layer]:
    found: dict[str, list[int]] = {}
    for index, use in enumerate(uses):
        found.setdefault(use.symbol, []).append(index)
    layers = []
    for places in found.values():
        first, own = uses[places[0]], times[places]
        layers.append(
            Layer(
                first.output,
                first.operators,
                first.shape,
                len(places),
                float(own.mean()),
                float(own.sum() / times.sum()),
                first.macs,
                first.nbytes,
                any(phase.threads > 1 for phase in first.call.phases),
            )
        )
    return sorted(layers, key=lambda layer: -layer.share)


def _timed(call: Callable[[], int]) -> float:
    # The thread's own time: a core shared with other programs does not lengthen it.
    begun = time.thread_time_ns()
    call()
    return (time.thread_time_ns() - begun) / 1e9


@cache
def _nothing(phases: int, arguments: int) -> float:
    """Seconds that calls from Python take, beside what the C functions do."""
    code = ctypes.CDLL(None).getppid  # Returns at once, whatever it is called with.
    pointers = [ctypes.c_void_p(64)] * arguments
    begin, end = ctypes.c_int32(0), ctypes.c_int32(1)

    def call() -> int:
        for _ in range(phases):
            code(begin, end, *pointers)
        return 0

    return float(np.median([_timed(call) for _ in range(1000)]))


def call_s(use: KernelUse) -> float:
    """Seconds that calling a kernel from Python takes, beside what the kernel does."""
    return _nothing(len(use.call.phases), len(use.call.arguments))


def reason(layer: Layer, limits: Limits, lanes: int, far: float) -> str:
    """Why a layer takes the time it takes, by rules from its work, its bytes and its shape.

    `far` is the bandwidth to where the network's weights lie, in bytes a second.

    >>> limits = Limits(1e11, ((2**40, 1e10),))
    >>> conv = Layer("y", ("Conv",), (1, 8, 8, 16), 1, 1e-3, 1.0, 47_000_000, 10_000, True)
    >>> reason(conv, limits, 16, 1e10)
    '94 % of the measured peak: only fewer multiplications help'
    >>> add = Layer("y", ("Add",), (1, 8, 8, 16), 1, 1e-3, 1.0, 0, 9_000_000, True)
    >>> reason(add, limits, 16, 1e10)
    'memory-bound: 8789 KiB at 9.0 GB/s of 10 measured'
    """
    compute = 2 * layer.macs / limits.flops / layer.time_s
    rate = limits.bandwidth(layer.nbytes)
    memory = layer.nbytes / rate / layer.time_s
    if layer.time_s < _SMALL_S:
        return f"too small: {layer.time_s * 1e6:.1f} us a call go into starting and ending loops"
    if compute > 1:
        return f"{100 * compute:.0f} % of the peak in direct products: Winograd saves some already"
    if compute >= 0.85:
        return f"{100 * compute:.0f} % of the measured peak: only fewer multiplications help"
    moved = f"{layer.nbytes / 1024:.0f} KiB at {layer.nbytes / layer.time_s / 1e9:.1f} GB/s"
    if 0 < 4 * layer.macs <= _ONCE * layer.nbytes:
        return f"every weight is used once: {moved} of {far / 1e9:.0f} measured for all weights"
    if memory >= 0.6 and memory > compute:
        return f"memory-bound: {moved} of {rate / 1e9:.0f} measured"
    outputs = prod(layer.shape)
    if layer.macs == 0:
        element = layer.time_s / outputs * 1e9
        return (
            f"no multiplications; {element:.2f} ns an element, {100 * memory:.0f} % of what memory "
            "allows: moved or computed element by element, not in whole vectors"
            if element > 0.25
            else f"no multiplications; {element:.2f} ns an element, {100 * memory:.0f} % of what "
            "memory allows: arithmetic of element-wise operators"
        )
    said = f"{100 * compute:.0f} % of the peak, {100 * memory:.0f} % of what memory allows"
    filled = layer.shape[-1] / (-(-layer.shape[-1] // lanes) * lanes)
    if filled < 0.8:
        return f"{said}: {layer.shape[-1]} channels fill {100 * filled:.0f} % of their vectors"
    costly = [kind for kind in layer.operators[1:] if kind in _COSTLY]
    if costly:
        return f"{said}: {', '.join(costly)} of every output beside its products"
    if "Conv" in layer.operators[1:]:
        return f"{said}: a depthwise convolution inside, which loads as often as it multiplies"
    if layer.macs / outputs <= _FEW_PRODUCTS:
        each = f"{layer.macs / outputs:.0f} products an output"
        return f"{said}: {each}, so loads and stores take longer than multiplying"
    if layer.time_s < 5 * _SMALL_S:
        return f"{said}: {layer.time_s * 1e6:.0f} us a call, too short to reach the peak"
    return f"{said}: no rule explains it; overhang of tiles, packing and padding are left"

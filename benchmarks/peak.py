"""What one core of this machine can do: multiply-adds and bytes a second, measured.

A small C program is compiled with the linker that compiled networks are linked with. Shared
machines slow down and speed up, so each figure is the best of many short runs: a bound that
kernels are compared with, not an average.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from eecompile.diagnostics import ToolError
from eecompile.hardware import machine
from eecompile.targets.linkers import find_linkers, remedy

__all__ = ["Limits", "measure_limits"]

#: More chains than latency x throughput of any core's multiply-adds.
_CHAINS = 16
_STEPS = 200_000
_RUNS = 30
_SOURCE = """
typedef float vector __attribute__((vector_size(4 * LANES), aligned(4)));
#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) \\
    DO(8) DO(9) DO(10) DO(11) DO(12) DO(13) DO(14) DO(15)

/* 16 chains of multiply-adds, each waiting for its own last result only. */
float multiply_adds(long steps, float a, float b) {
    vector x = (vector){0} + a, y = (vector){0} + b, sum = {0};
#define BEGIN(i) vector s##i = x * i;
#define STEP(i) s##i = s##i * x + y;
#define END(i) sum += s##i;
    EACH(BEGIN)
    for (long k = 0; k < steps; k++) { EACH(STEP) }
    EACH(END)
    float total = 0;
    for (int i = 0; i < LANES; i++) total += sum[i];
    return total;
}

/* Reads one array and writes another, 4 bytes each way for each of n floats, over and over. */
void stream(long repeats, long n, const float *from, float *to, float a) {
    for (long repeat = 0; repeat < repeats; repeat++) {
        for (long i = 0; i + 4 * LANES <= n; i += 4 * LANES)
            for (int j = 0; j < 4 * LANES; j += LANES)
                *(vector *)(to + i + j) = *(const vector *)(from + i + j) * a;
        __asm__ volatile("" ::: "memory");
    }
}
"""


@dataclass(frozen=True)
class Limits:
    """Of one core.

    Attributes:
        flops: floating-point operations a second, two for each multiply-add.
        bandwidths: (bytes of the arrays read and written together, bytes a second), ascending.
    """

    flops: float
    bandwidths: tuple[tuple[int, float], ...]

    def bandwidth(self, nbytes: int) -> float:
        """Bytes a second of a kernel whose tensors take `nbytes`.

        >>> limits = Limits(1e11, ((1000, 9e10), (1_000_000, 2e10)))
        >>> limits.bandwidth(500), limits.bandwidth(2000), limits.bandwidth(10**9)
        (90000000000.0, 20000000000.0, 20000000000.0)
        """
        at = bisect_left(self.bandwidths, (nbytes, 0.0))
        return self.bandwidths[min(at, len(self.bandwidths) - 1)][1]

    def text(self) -> str:
        """One line for people.

        >>> Limits(1.16e11, ((16384, 8.4e10),)).text()
        'one core: 116 GFLOP/s; reads and writes 84 GB/s in 16 KiB'
        """
        sizes = (f"{rate / 1e9:.0f} GB/s in {size // 1024} KiB" for size, rate in self.bandwidths)
        return f"one core: {self.flops / 1e9:.0f} GFLOP/s; reads and writes {', '.join(sizes)}"


@cache
def measure_limits() -> Limits:
    """What one core does now.

    Raises:
        ToolError: no C compiler.
    """
    here = machine("host")
    code = _compiled(here.lanes)
    code.multiply_adds.restype = ctypes.c_float
    ab = ctypes.c_float(0.999), ctypes.c_float(0.001)
    seconds = _best(lambda: code.multiply_adds(ctypes.c_long(_STEPS), *ab))
    flops = 2 * _CHAINS * here.lanes * _STEPS / seconds
    sizes = [here.l1_bytes // 2, here.l2_bytes // 2, 8 * here.l2_bytes, 128 * here.l2_bytes]
    return Limits(flops, tuple((size, _bandwidth(code, size)) for size in sizes))


def _bandwidth(code: ctypes.CDLL, nbytes: int) -> float:
    source = np.ones(nbytes // 8, np.float32)
    to = np.zeros_like(source)
    # Long enough for the call from Python not to count.
    repeats = max(1, 2**24 // nbytes)
    arguments = (
        ctypes.c_long(repeats),
        ctypes.c_long(len(source)),
        ctypes.c_void_p(source.ctypes.data),
        ctypes.c_void_p(to.ctypes.data),
        ctypes.c_float(1.5),
    )
    return repeats * 2 * source.nbytes / _best(lambda: code.stream(*arguments))


def _best(run: Callable[[], object]) -> float:
    run()
    times = []
    for _ in range(_RUNS):
        begun = time.perf_counter()
        run()
        times.append(time.perf_counter() - begun)
    return min(times)


def _compiled(lanes: int) -> ctypes.CDLL:
    here = machine("host")
    linkers = find_linkers(here)
    if not linkers:
        raise ToolError("No C compiler", remedy(here))
    native = "-march=native" if here.arch == "x86_64" else "-mcpu=native"
    if linkers[0].name == "ziglang":
        native = "-mcpu=native"
    with tempfile.TemporaryDirectory(prefix="eecompile-") as folder:
        source, library = Path(folder) / "peak.c", Path(folder) / "peak.so"
        source.write_text(f"#define LANES {lanes}\n{_SOURCE}", encoding="ascii")
        flags = ("-O2", native, "-ffp-contract=fast", "-fPIC", "-shared")
        subprocess.run(
            [*linkers[0].command, *flags, str(source), "-o", str(library)],
            check=True,
            capture_output=True,
        )
        return ctypes.CDLL(str(library))

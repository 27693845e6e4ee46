"""Full depth of compiled networks against other engines: float32, 1 and 2 threads, one run.

    python -m benchmarks.kernels [NETWORK ...] [--threads 1 2] [--peers onnxruntime ...]
        [--repeats N] [--clock wall] [--no-table] [--layers] [--depth] [--overheads] [--json]

All sides take turns (`turns`), so that they see the same neighbours, clock and temperature; a
figure is the median of the ratios of neighbouring turns, with the quartiles beside it. Answers are
compared first, with the same network in float64: a figure is printed for a right answer only. The
bar is the largest share of ONNX Runtime's time a network is to take.

On a machine that others use, `--clock cpu` takes this process's time on its cores in place of the
time that passes: the same where nobody disturbs. Only for one thread, as waiting would count.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.depth import CIFAR, LAYERS, Depth, growth, measure_depth
from benchmarks.layers import profile
from benchmarks.machine import describe_machine
from benchmarks.overheads import measure_overheads
from benchmarks.peak import measure_limits
from benchmarks.peers import (
    OURS,
    PEERS,
    Side,
    Subject,
    Unavailable,
    compile_file,
    ours,
    relative_error,
)
from benchmarks.suite import BARS, SUITE, export
from benchmarks.turns import Ratio, ratio, take_turns

__all__ = ["Compared", "Row", "compare", "subject"]

#: The largest error against float64, relative to the largest element of the answer.
TOLERANCE = 1e-4

#: Name on the command line -> seconds now.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

#: Every peer but the one with the bar has a turn in every n-th round only.
_RARELY = 3


@dataclass(frozen=True)
class Compared:
    """A peer's time and ours over it, or why there is none."""

    latency_s: float | None = None
    ratio: Ratio | None = None
    error: float | None = None
    unavailable: str = ""


@dataclass(frozen=True)
class Row:
    """One network on one number of threads.

    Attributes:
        error: largest difference from float64, relative to the answer's largest element.
        bar: what ours over ONNX Runtime's time is to be at most; None where none is set.
    """

    network: str
    threads: int
    latency_s: float
    gflops: float
    error: float
    compile_s: float
    bar: float | None
    peers: dict[str, Compared] = field(default_factory=dict)

    def verdict(self) -> str:
        """Whether the bar is met.

        >>> peers = {"onnxruntime": Compared(1.0, Ratio(0.8, 0.85, 0.9))}
        >>> Row("n", 1, 1.0, 1.0, 0.0, 1.0, 0.8, peers).verdict()
        'missed by 0.05'
        """
        found = self.peers.get("onnxruntime")
        if self.bar is None or found is None or found.ratio is None:
            return "-"
        missed = found.ratio.median - self.bar
        return "met" if missed <= 0 else f"missed by {missed:.2f}"


def subject(name: str, folder: Path) -> Subject:
    """A network of the suite with random weights, written to `folder`, and an input."""
    path = folder / f"{name}.onnx"
    model = export(name, path)
    x = np.random.default_rng(0).standard_normal(SUITE[name].shape).astype(np.float32)
    return Subject(name, model, path, x)


def compare(
    network: Subject,
    threads: Sequence[int],
    peers: Sequence[str],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Row]:
    """A row for each number of threads.

    Raises:
        SystemExit: our answer is wrong, or depends on the number of threads.
    """
    exact = network.exact()
    compiled, compile_s = compile_file(network.path)
    rows, answers = [], []
    for count in threads:
        sides = {OURS: ours(compiled, network, count)}
        answers.append(sides[OURS].answer)
        error = relative_error(answers[-1], exact)
        if not error <= TOLERANCE:
            raise SystemExit(f"{network.name}, {count} threads: wrong by {error:.2e}")
        if not np.array_equal(answers[0], answers[-1]):
            raise SystemExit(f"{network.name}: {count} threads give another answer")
        missing = {}
        for peer in peers:
            try:
                sides[peer] = PEERS[peer](network, count)
            except Unavailable as reason:
                missing[peer] = Compared(unavailable=str(reason))
        latency, found = _compared(sides, exact, rounds, clock, settled=count > 1)
        gflops = 2 * compiled.functions[0].macs / latency / 1e9
        bar = BARS.get(network.name)
        row = Row(network.name, count, latency, gflops, error, compile_s, bar, found | missing)
        rows.append(row)
    return rows


def _compared(
    sides: Mapping[str, Side],
    exact: np.ndarray,
    rounds: int,
    clock: Callable[[], float],
    *,
    settled: bool,
) -> tuple[float, dict[str, Compared]]:
    """Our latency, and that of every other side with the ratio to it."""
    calls = {name: side.call for name, side in sides.items()}
    every = {name: _RARELY for name in sides if name not in (OURS, "onnxruntime")}
    turns = take_turns(calls, rounds, every, settled=settled, clock=clock)
    found = {
        name: Compared(
            turns[name].median, ratio(turns[OURS], turns[name]), relative_error(side.answer, exact)
        )
        for name, side in sides.items()
        if name != OURS
    }
    return turns[OURS].median, found


def _table(options: argparse.Namespace, folder: Path, tell: Callable[[str], None]) -> list[Row]:
    tell(_header(options.peers))
    rows = []
    for name in options.networks:
        network = subject(name, folder)
        for row in compare(
            network, options.threads, options.peers, options.repeats, CLOCKS[options.clock]
        ):
            rows.append(row)
            tell(_line(row, options.peers))
    reasons = {(p, c.unavailable) for r in rows for p, c in r.peers.items() if c.unavailable}
    for peer, reason in sorted(reasons):
        tell(f"{peer} left out: {reason}")
    return rows


def _tell(text: str) -> None:
    print(text, flush=True)


def _silent(text: str) -> None:
    pass


def _header(peers: Sequence[str]) -> str:
    columns = [f"{'network':<18} thr {'bar':>4} {'':<14} {OURS + ' ms':>12} GFLOP/s"]
    columns += [f"{peer + ' ms, ours / its':<30}" for peer in peers]
    return "  ".join([*columns, "error, compile s"])


def _line(row: Row, peers: Sequence[str]) -> str:
    bar = "-" if row.bar is None else f"{row.bar:.2f}"
    columns = [
        f"{row.network:<18} {row.threads:>3} {bar:>4} {row.verdict():<14} "
        f"{row.latency_s * 1e3:12.3f} {row.gflops:7.0f}"
    ]
    for peer in peers:
        found = row.peers[peer]
        text = "left out"
        if found.latency_s is not None and found.ratio is not None:
            low, middle, high = found.ratio.low, found.ratio.median, found.ratio.high
            text = f"{found.latency_s * 1e3:8.3f} {middle:5.2f} ({low:.2f} to {high:.2f})"
        columns.append(f"{text:<30}")
    return "  ".join([*columns, f"{row.error:.0e}, {row.compile_s:.1f}"])


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    options = _options(arguments)
    limits = measure_limits()
    report: dict[str, object] = {"machine": describe_machine(), "limits": asdict(limits)}
    tell = _silent if options.json else _tell
    tell(describe_machine())
    tell(limits.text())
    with tempfile.TemporaryDirectory(prefix="eecompile-") as name:
        folder = Path(name)
        if not options.skip_table:
            report["table"] = [asdict(row) for row in _table(options, folder, tell)]
        if options.layers:
            found = [profile(subject(name, folder), limits) for name in options.networks]
            report["layers"] = [asdict(one) for one in found]
            for one in found:
                tell(one.text())
        if options.depth:
            report["depth"] = [asdict(one) for one in _depths(folder, tell)]
        if options.overheads:
            costs = measure_overheads(folder)
            report["overheads"] = [asdict(cost) for cost in costs]
            for cost in costs:
                tell(cost.text())
    if options.json:
        json.dump(report, sys.stdout, indent=1)


def _depths(folder: Path, tell: Callable[[str], None]) -> list[Depth]:
    found = []
    for name in LAYERS:
        found.append(measure_depth(subject(name, folder)))
        tell(found[-1].text())
    tell(growth([one for one in found if one.network in CIFAR]))
    return found


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="default: all with a bar")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--peers", nargs="*", choices=sorted(PEERS), default=list(PEERS))
    parser.add_argument("--repeats", type=int, default=30, help="rounds of turns (default 30)")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--no-table", dest="skip_table", action="store_true")
    parser.add_argument("--layers", action="store_true", help="a profile kernel by kernel")
    parser.add_argument("--depth", action="store_true", help="seconds of compiling by depth")
    parser.add_argument("--overheads", action="store_true", help="what calls and decisions cost")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    options.networks = options.networks or list(BARS)
    if options.clock == "cpu" and options.threads != [1]:
        parser.error("--clock cpu is for --threads 1")
    unknown = [name for name in options.networks if name not in SUITE]
    if unknown:
        parser.error(f"no network {', '.join(unknown)}; there are {', '.join(sorted(SUITE))}")
    return options


if __name__ == "__main__":
    main()

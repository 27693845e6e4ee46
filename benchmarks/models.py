"""The estimates that schedules are chosen by, checked against measurement on this machine.

    python -m benchmarks.models [NETWORK ...] [--worst N] [--json FILE]

For every distinct kernel of the networks with something to choose, all its choices are compiled
and timed in turns (`targets/lowering/measuring.py`). Told are: how often the estimates name the
quickest, and the time that is lost by taking what they name, by family and for the kernels that
lose the most.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.machine import describe_machine
from benchmarks.suite import BARS, SUITE, export
from eecompile.hardware import Machine, machine
from eecompile.ir import Graph
from eecompile.passes.onnx_host import load_onnx
from eecompile.targets.lowering.compile import kernel_counts
from eecompile.targets.lowering.identity import described, kernel_key
from eecompile.targets.lowering.measuring import Measured, measure
from eecompile.targets.lowering.schedules import choices
from eecompile.targets.lowering.spec import KernelSpec
from eecompile.targets.lowering.tuning import winner

__all__ = ["Checked", "lost", "main"]


@dataclass(frozen=True)
class Checked:
    """A kernel's times.

    Attributes:
        kernel, network: what it computes, and the first network that has it.
        uses: calls in all networks.
        family: of what the estimates name.
        model: what the estimates name, and `best` what is quickest by more than noise.
        times_us: choice -> median of a call.
    """

    kernel: str
    network: str
    uses: int
    family: str
    model: str
    best: str
    times_us: dict[str, float]

    @property
    def lost(self) -> float:
        """Time of the estimates' choice over that of the best; 1 where it is the best."""
        return self.times_us[self.model] / self.times_us[self.best]


def check(graphs: dict[str, Graph], where: Machine) -> Iterator[Checked]:
    """Every distinct kernel with more than one choice."""
    found: dict[str, tuple[KernelSpec, str, int]] = {}
    nbytes = {n: sum(array.nbytes for array in g.constants.values()) for n, g in graphs.items()}
    for name, graph in graphs.items():
        for count in kernel_counts([graph], where, (*graph.inputs, *graph.outputs)):
            key = kernel_key(count.spec)
            spec, network, uses = found.get(key, (count.spec, name, 0))
            found[key] = spec, network, uses + count.uses
    for spec, network, uses in found.values():
        offered = choices(spec, where)
        if len(offered) > 1:
            measured = measure(spec, where, offered, math.inf, nbytes[network])
            yield _checked(described(spec), network, uses, measured)


def _checked(kernel: str, network: str, uses: int, measured: Sequence[Measured]) -> Checked:
    first = measured[0]
    return Checked(
        kernel,
        network,
        uses,
        first.choice.family,
        str(first.choice),
        str(winner(measured).choice),
        {str(m.choice): float(np.median(m.times_s)) * 1e6 for m in measured},
    )


def lost(found: Sequence[Checked]) -> str:
    """How often the estimates name the best, and what is lost by them.

    >>> kernels = [Checked("k", "n", 1, "f", "a", b, {"a": 2.0, "b": 1.0}) for b in "ab"]
    >>> lost(kernels)
    '  2 kernels, the best named for 1 (50 %); geometric mean of time lost 1.414, weighted 1.333'
    """
    right = sum(one.model == one.best for one in found)
    mean = math.exp(sum(math.log(one.lost) for one in found) / len(found))
    taken = sum(one.uses * one.times_us[one.model] for one in found)
    least = sum(one.uses * one.times_us[one.best] for one in found)
    return (
        f"{len(found):3} kernels, the best named for {right} ({100 * right / len(found):.0f} %); "
        f"geometric mean of time lost {mean:.3f}, weighted {taken / least:.3f}"
    )


def _tell(found: Sequence[Checked], worst: int) -> None:
    print(f"{'all':<10} {lost(found)}")
    for family in sorted({one.family for one in found}):
        print(f"{family:<10} {lost([one for one in found if one.family == family])}")
    for one in sorted(found, key=lambda one: -one.lost)[:worst]:
        print(f"{one.lost:.2f}  {one.kernel} ({one.network})")
        for choice, time_us in sorted(one.times_us.items(), key=lambda item: item[1]):
            mark = "estimates" if choice == one.model else "best" if choice == one.best else ""
            print(f"      {time_us:9.1f} us  {choice:<60} {mark}".rstrip())


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help="default: all with a bar")
    parser.add_argument("--worst", type=int, default=5, help="kernels to name (default 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all times")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.networks if name not in SUITE]
    if unknown:
        parser.error(f"no network {', '.join(unknown)}; there are {', '.join(sorted(SUITE))}")
    print(describe_machine())
    graphs = {}
    with tempfile.TemporaryDirectory(prefix="eecompile-") as name:
        for network in options.networks or BARS:
            path = Path(name) / f"{network}.onnx"
            export(network, path)
            graphs[network] = load_onnx(path).graph()
    found = list(check(graphs, machine("host")))
    if options.json:
        options.json.write_text(json.dumps([asdict(one) for one in found], indent=1))
    _tell(found, options.worst)


if __name__ == "__main__":
    main()

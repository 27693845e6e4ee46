"""Hard budgets on ResNet-56: every sample's latency against its budget, and what is still right.

    python -m benchmarks.halting [--folder DIR] [--samples 5000] [--shares 25,50,75]
                                 [--gates layers-75.gates.npz]

Eight exits with linear heads, fitted on 20,000 training images; nothing is fitted to the budgets,
which are shares of the median time of a full-depth answer, measured in the same run. Images are the
last 5,000 test images, one after the other: each at full depth, within each budget, and through the
segments alone, which tells how much a single one of them scatters today. Samples during which the
system took the core away are counted apart: nobody can answer without it, and what matters then is
that nothing is begun afterwards. The same budgets are then given in multiply-accumulates, where
what is spent is exact; with ``--gates`` also through the same network with its layer gates, trained
by ``benchmarks.gates``. Needs torch, to export the network; Linux, which counts lost cores.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import eecompile as ee
from benchmarks.gates import LAYERS, WEIGHTS
from benchmarks.machine import describe_machine, shared_data, working_folder
from eecompile.benching.device import timed_round
from eecompile.build_options import BuildOptions
from eecompile.cache import Cache
from eecompile.console import Steps
from eecompile.driver import build
from eecompile.outcomes import wilson
from eecompile.policies import NeverPolicy
from eecompile.runtime.lane import Lane
from eecompile.runtime.session import Session

__all__ = ["Budgeted", "Noise", "main"]

HERE = Path(__file__).parent
EXITS = ("1.2", "1.5", "1.8", "2.2", "2.5", "2.8", "3.2", "3.5")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FIRST = 5000  #: test image that is reported on
_WARM = 200  #: samples before anything counts


@dataclass
class Budgeted:
    """What became of samples with one budget in seconds."""

    share: float
    limit_s: float
    right: list[bool] = field(default_factory=list)
    exits: list[str] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    lost: list[bool] = field(default_factory=list)

    def add(self, net: Session, image: np.ndarray, label: int) -> None:
        """One more sample."""
        before = _cores_lost()
        if np.isinf(self.limit_s):
            answer = net.full_depth(image)
        else:
            answer = net.run(image, budget_s=self.limit_s)
        self.lost.append(_cores_lost() > before)
        self.latencies_s.append(answer.latency_s)
        self.exits.append(answer.exit)
        self.right.append(answer.label == label)

    def line(self) -> str:
        """One line for people.

        >>> times, lost = [0.9e-3, 1.01e-3, 5e-3], [False, False, True]
        >>> found = Budgeted(0.5, 1e-3, [True, False, True], ["a", "a", "a"], times, lost)
        >>> found.line().split("; ")[2]
        '1 of 2 over, by 10.0 us at most, and 1 of 1 that lost the core, by 4.0 ms'
        """
        times, lost = np.array(self.latencies_s), np.array(self.lost)
        undisturbed, disturbed = (np.append(times[k] - self.limit_s, 0.0) for k in (~lost, lost))
        good = wilson(sum(self.right), len(self.right))
        names = sorted(set(self.exits))
        taken = ", ".join(f"{n} {100 * self.exits.count(n) / len(self.exits):.1f} %" for n in names)
        return (
            f"{100 * self.share:.0f} % ({1e3 * self.limit_s:.3f} ms): accuracy "
            f"{100 * good.value:.2f} [{100 * good.low:.2f}, {100 * good.high:.2f}] %; latency "
            f"median {1e3 * np.median(times):.3f}, 99 % within {1e3 * np.quantile(times, 0.99):.3f}"
            f", worst {1e3 * times.max():.3f} ms; {(undisturbed > 0).sum()} of {(~lost).sum()} over"
            f", by {1e6 * undisturbed.max():.1f} us at most, and {(disturbed > 0).sum()} of "
            f"{lost.sum()} that lost the core, by {1e3 * disturbed.max():.1f} ms; exits {taken}"
        )


def _cores_lost() -> int:
    """How often the system has taken the core from this thread so far."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


@dataclass
class Noise:
    """Times of each segment alone, (samples, segments) in seconds, where the core was kept."""

    rows: list[list[float]] = field(default_factory=list)

    @property
    def most_s(self) -> float:
        """How much longer than its median the slowest call of a segment took."""
        times = np.array(self.rows)
        return float((times - np.median(times, axis=0)).max())

    def beyond_s(self, share: float) -> float:
        """Of all calls of segments, this share took longer than its median by more than that."""
        times = np.array(self.rows)
        return float(np.quantile(times - np.median(times, axis=0), 1 - share))


def built(folder: Path, data: Path, gates: Path | None = None) -> Path:
    """The artifact, made where it is not there; with layer gates where their file is given."""
    output = folder / ("halting.artifact" if gates is None else "halting-gated.artifact")
    if output.exists():
        return output
    onnx = folder / "resnet56.onnx"
    if not onnx.exists():
        weights = data / WEIGHTS
        export = (sys.executable, "-m", "benchmarks.networks", "export", "resnet56")
        subprocess.run(
            [*export, "--weights", str(weights), "--onnx", str(onnx)],
            cwd=HERE.parent, check=True, capture_output=True,
        )  # fmt: skip
    written = (HERE / "resnet56.ee").read_text().replace('"cifar10_', f'"{data}/cifar10_')
    lines = [line for line in written.splitlines() if not line.lstrip().startswith("exit ")]
    head = "\n".join(lines[: next(k for k, line in enumerate(lines) if "policy" in line)])
    exits = "".join(
        f'    exit e{number} after "layer{point}" head linear(pool: 4)\n'
        for number, point in enumerate(EXITS, 1)
    )
    if gates is not None:
        source = f'source torch "{HERE / "networks.py"}:resnet56" weights "{data / WEIGHTS}"'
        head = head.replace('source onnx "resnet56.onnx"', source)
        exits += f'    {LAYERS}\n    gates "{gates.resolve()}"\n'
    head = head.replace("output logits: classes(10)\n", f"output logits: classes(10)\n{exits}")
    path = folder / f"{output.stem}.ee"
    path.write_text(f"{head}\npolicy half {{ halt at budget macs <= 50 % }}\n")
    build(path, BuildOptions(output=output), Steps(0, quiet=True), Cache(folder / "cache"))
    return output


def test_images(data: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Those that are reported on, as the network reads them, with their labels."""
    with np.load(data / "cifar10_test.npz") as archive:
        images, labels = archive["images"][_FIRST:], archive["labels"][_FIRST:]
    mean, std = np.array(_MEAN, np.float32), np.array(_STD, np.float32)
    scaled = (images[:count].astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)), labels[:count].astype(np.int64)


def measured(
    net: Session, images: np.ndarray, labels: np.ndarray, shares: Sequence[float]
) -> tuple[Budgeted, list[Budgeted], Noise]:
    """Full depth, each budget and the segments' noise, sample by sample in turn."""
    network, noise = net.manifest.network, Noise()
    lane = Lane(net.library, network.inputs, network.functions(), 1)
    calls = [lane.calls[function.symbol] for function in network.functions()]
    segments = [function.symbol for part in network.segments for function in part.functions]
    places = [k for k, call in enumerate(calls) if call.function.symbol in segments]
    before = [net.full_depth(image[None]).latency_s for image in images[:_WARM]]
    full_s = float(np.median(before))
    whole = Budgeted(1.0, np.inf)
    # A session each: what one has seen of the machine is not for another's budget.
    nets = [(net.clone(), Budgeted(share, share * full_s)) for share in shares]
    for clone, budget in nets:
        for image in images[:_WARM]:
            clone.run(image[None], budget_s=budget.limit_s)
    for row, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        whole.add(net, image[None], label)
        for clone, budget in nets:
            budget.add(clone, image[None], label)
        lost = _cores_lost()
        times = timed_round(lane, calls, {network.inputs[0][0]: images}, row)
        if _cores_lost() == lost:
            noise.rows.append([times[place] for place in places])
    return whole, [budget for _, budget in nets], noise


def counted(net: Session, images: np.ndarray, labels: np.ndarray, shares: Sequence[float]) -> None:
    """Prints what budgets of multiply-accumulates give; what is spent is exact."""
    for share in shares:
        net.set_halt({"macs": share})
        answers = net.run_batch(images)
        good = wilson(int((answers.logits.argmax(axis=1) == labels).sum()), len(labels))
        macs = answers.macs / net.manifest.network.macs
        print(
            f"{100 * share:.0f} % of the MACs: accuracy {100 * good.value:.2f} "
            f"[{100 * good.low:.2f}, {100 * good.high:.2f}] %; spent {100 * macs.mean():.2f} % on "
            f"average, {100 * macs.max():.2f} % at most"
        )


def main() -> None:
    """Prints it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="keep the artifact here, and take it from here")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--gates", type=Path, help="of `benchmarks.gates layers`: compared with")
    parser.add_argument("--shares", default="25,50,75", help="of full depth, in per cent")
    options = parser.parse_args()
    shares = [float(share) / 100 for share in options.shares.split(",")]
    data = shared_data()
    print(describe_machine())
    with working_folder(options.folder) as folder:
        net = ee.load(built(folder, data), threads=1)
        net.set_policy(NeverPolicy(len(EXITS)))
        images, labels = test_images(data, options.samples)
        whole, budgets, noise = measured(net, images, labels, shares)
        times = np.array(whole.latencies_s)
        print(
            f"full depth: accuracy {100 * np.mean(whole.right):.2f} %; latency median "
            f"{1e3 * np.median(times):.3f}, 99 % within {1e3 * np.quantile(times, 0.99):.3f}, "
            f"worst {1e3 * times.max():.3f} ms; {sum(whole.lost)} of {len(times)} lost the core"
        )
        print(
            f"one segment alone takes longer than its median by {1e6 * noise.most_s:.0f} us at "
            f"most, by more than {1e6 * noise.beyond_s(1e-3):.0f} us once in a thousand calls"
        )
        for budget in budgets:
            print(budget.line())
        counted(net, images, labels, shares)
        if options.gates is not None:
            gated = ee.load(built(folder, data, options.gates), threads=1)
            gated.set_policy(NeverPolicy(len(EXITS)))
            print("with gates:")
            counted(gated, images, labels, shares)


if __name__ == "__main__":
    main()

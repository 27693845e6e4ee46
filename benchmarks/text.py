"""Exits of text classifiers, after each layer, on AG News: the whole pipeline.

    python -m benchmarks.text [--kind reader encoder] [--folder DIR] [--seeds 5]
        [--budgets 20 25 30 40 50 60 70 80]

Networks are trained first (see `benchmarks/train_text.py`). Their exits' heads are fitted with the
backbone frozen, on texts it has not seen. Budgets are compared on 7,600 test texts cut into halves
anew for each seed: one half to fit the rules on, the other to report. Needs torch, to train and
export; with a folder that is kept, networks are trained there once.

`reader`: each layer reads on in the text, and exits are right about 73, 82, 85, 86 and 87.5 % of
the time, the end 87.6 %. Rules differ at 20 to 50 % of the multiply-accumulates; above, most fits
cost less than was allowed. Entropy is best from 40 % on, learned scores 0.07 to 0.25 points below.
`encoder`: each layer sees all words; once with layers that all learned to answer, once trained
without exits in mind. Topics of news are told by words more than by their order: a linear
classifier of words is right about as often, and so are all exits of both networks, within half a
point. Every budget that pays for the first exit is kept without loss, and rules differ by less than
halves do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import eecompile as ee
from benchmarks.learned_score import MEASURES, RULES, Recorded, compare, print_table, verdict
from benchmarks.machine import describe_machine, shared_data, working_folder
from benchmarks.resnet56 import command
from benchmarks.train_text import trained
from eecompile.record import CalibrateRecord, TestRecord
from eecompile.runtime.runner import Runner
from eecompile.spec import Budget

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Network:
    """A network to train and build.

    Attributes:
        kind: as of `benchmarks.train_text`, and of the `.ee` file.
        torch: where PyTorch finds it.
        last_only: whether layers before the last did not learn to answer.
    """

    kind: str
    torch: str
    last_only: bool = False

    @property
    def text(self) -> str:
        """The `.ee` file."""
        return (HERE / f"text_{self.kind}.ee").read_text()


NETWORKS: Mapping[str, Network] = {
    "reader": Network("reader", "encoder.py:news_reader"),
    "encoder, all layers trained": Network("encoder", "encoder.py:news_encoder"),
    "encoder, last layer trained": Network("encoder", "encoder.py:news_encoder", last_only=True),
}


def texts(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Ids int64 (7600, length) and labels, of the two files that are cut into halves anew."""
    parts = [np.load(folder / f"{name}.npz") for name in ("calibrate", "test")]
    ids, labels = (np.concatenate([part[key] for part in parts]) for key in ("images", "labels"))
    return ids, labels


def recorded(artifact: Path, ids: np.ndarray, labels: np.ndarray) -> Recorded:
    """What all exits answer, and what they cost."""
    net = ee.load(artifact)
    network = net.manifest.network
    names = {exit_.name: f"{exit_.name}.logits" for exit_ in network.exits}
    wanted = {**names, "final": network.output}
    values = Runner.of(net.library, network).run_all(ids, list(wanted.values()), threads=1)
    return Recorded(
        {name: values[value] for name, value in wanted.items()},
        labels,
        np.cumsum([segment.macs for segment in network.segments]) / network.macs,
        np.array([exit_.macs for exit_ in network.exits]) / network.macs,
    )


def built(folder: Path, network: Network) -> Path:
    """The artifact of the network in a folder."""
    (folder / "text.ee").write_text(network.text)
    target = folder / "text.artifact"
    found, seconds = command("build", str(folder / "text.ee"), "-o", str(target), folder=folder)
    print(
        f"built in {seconds:.0f} s; decisions off it differs from the source by at most "
        f"{found['max_abs_error']:.1e}"
    )
    return target


def routes_agree(folder: Path, network: Network, artifact: Path, ids: np.ndarray) -> None:
    """Build the network from PyTorch too, and compare what both answer."""
    source = f'source torch "{HERE / network.torch}" weights "news.pth"'
    text = network.text.replace('source onnx "news.onnx"', source)
    (folder / "torch.ee").write_text(text.replace("output topic", "output output"))
    target = folder / "torch.artifact"
    command("build", str(folder / "torch.ee"), "-o", str(target), folder=folder)
    onnx, torch = (ee.load(path, "at50").run_batch(ids) for path in (artifact, target))
    same = onnx.exits == torch.exits
    apart = float(np.abs(onnx.logits[same] - torch.logits[same]).max())
    print(f"from PyTorch: {same.sum()} of {len(same)} exits equal, logits of those to {apart:.1e}")


def latencies(folder: Path, artifact: Path, samples: int) -> None:
    """One text at a time, exits and full depth in turn, as `eval` measures them."""
    for policy in ("at50", "at70", "learned", "exact"):
        found, _ = command(
            "eval", str(artifact), "--data", str(folder / "test.npz"), "--policy", policy,
            "--samples", str(samples), "--threads", "1", folder=folder,
        )  # fmt: skip
        ratio = found["mean_latency_s"] / found["full_depth_latency_s"]
        print(
            f"  {policy:8} n {found['n']}, accuracy {100 * found['accuracy']:.2f} % "
            f"(full depth {100 * found['full_depth_accuracy']:.2f} %), "
            f"MACs {100 * found['mean_macs_fraction']:.2f} %, latency {100 * ratio:.2f} % "
            f"({1e3 * found['mean_latency_s']:.3f} of {1e3 * found['full_depth_latency_s']:.3f} ms)"
        )


def report(folder: Path, data: Path, options: argparse.Namespace) -> None:
    """The networks asked for: their exits, budgets and latencies."""
    print(describe_machine())
    budgets = [Budget("macs", share / 100) for share in options.budgets]
    rules = {name: RULES[name] for name in (*MEASURES, "learned_score")}
    for title, network in NETWORKS.items():
        if network.kind not in options.kind:
            continue
        place = folder / title.replace(", ", "_").partition(" ")[0]
        print(f"\n{title}:")
        trained(place, data, network.kind, last_only=network.last_only)
        artifact = built(place, network)
        ids, labels = texts(place)
        known = recorded(artifact, ids, labels)
        right = {name: (own.argmax(1) == labels).mean() for name, own in known.logits.items()}
        print("accuracy: " + ", ".join(f"{name} {100 * r:.2f} %" for name, r in right.items()))
        records = {seed: known.halves(known.exits, seed) for seed in range(options.seeds)}
        rows = compare(records, {"macs": known.costs(known.exits)}, budgets, rules)
        half = len(labels) // 2
        print(f"{options.seeds} seeds, {half:,} texts to fit on, {half:,} held out:")
        print_table(rows)
        _print_verdict(records, verdict(rows))
        print("eval, one text at a time, exits and full depth in turn, one thread:")
        latencies(place, artifact, options.samples)
        if not network.last_only:
            routes_agree(place, network, artifact, ids)
        sys.stdout.flush()


def _print_verdict(
    records: Mapping[int, tuple[CalibrateRecord, TestRecord]],
    found: Mapping[str, tuple[float, float, str]],
) -> None:
    full = [100 * (test.final.argmax(1) == test.labels).mean() for _, test in records.values()]
    print(f"  full depth: {np.mean(full):.2f} ({min(full):.2f} to {max(full):.2f})")
    for budget, (above, error, best) in found.items():
        print(f"  {budget}: learned {above:+.2f} (+- {error:.2f}) points against {best}, the best")


def main(arguments: Sequence[str] | None = None) -> None:
    """Options, then everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, help="keep everything here")
    parser.add_argument("--kind", nargs="+", choices=("reader", "encoder"), default=["reader"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=2000, help="texts whose latency is measured")
    parser.add_argument("--budgets", type=int, nargs="+", default=[20, 25, 30, 40, 50, 60, 70, 80])
    options = parser.parse_args(arguments)
    with working_folder(options.folder) as folder:
        report(folder, shared_data().resolve(), options)


if __name__ == "__main__":
    main()

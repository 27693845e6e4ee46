"""Exits of a text classifier, after each layer of a small encoder, on AG News: the whole pipeline.

    python -m benchmarks.text [--folder DIR] [--seeds 5] [--budgets 20 30 50 60 70 80]

Two networks are trained (see `benchmarks/train_text.py`): one whose layers all learned to answer,
and one that was trained without exits in mind. Their exits' heads are fitted with the backbone
frozen, on texts it has not seen. Budgets are compared on 7,600 test texts cut into halves anew for
each seed: one half to fit the rules on, the other to report. Needs torch, to train and export;
with a folder that is kept, networks are trained there once.

Topics of news are told by words more than by their order: a linear classifier of words is right
about as often, and so are all exits of both networks, within half a point. Every budget that pays
for the first exit is kept without loss; what rules differ by is less than the halves differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
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
#: Kinds of networks, and whether their layers learned to answer.
NETWORKS: Mapping[str, bool] = {"all layers trained": True, "last layer trained": False}
TORCH = f'source torch "{HERE / "encoder.py"}:news_encoder" weights "news.pth"'


def texts(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Ids int64 (7600, 40) and labels: what thresholds are fitted on, and what is reported on."""
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


def built(folder: Path) -> Path:
    """The artifact of the network in a folder."""
    text = (HERE / "text.ee").read_text()
    (folder / "text.ee").write_text(text)
    target = folder / "text.artifact"
    found, seconds = command("build", str(folder / "text.ee"), "-o", str(target), folder=folder)
    print(
        f"built in {seconds:.0f} s; decisions off it differs from the source by at most "
        f"{found['max_abs_error']:.1e}"
    )
    return target


def routes_agree(folder: Path, artifact: Path, ids: np.ndarray) -> None:
    """Build the network from PyTorch too, and compare what both answer."""
    text = (HERE / "text.ee").read_text().replace('source onnx "news.onnx"', TORCH)
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
    """Both networks: their exits, budgets and latencies."""
    print(describe_machine())
    budgets = [Budget("macs", share / 100) for share in options.budgets]
    rules = {name: RULES[name] for name in (*MEASURES, "learned_score")}
    for title, all_layers in NETWORKS.items():
        place = folder / title.partition(" ")[0]
        print(f"\n{title}:")
        trained(place, data, last_only=not all_layers)
        artifact = built(place)
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
        if all_layers:
            routes_agree(place, artifact, ids)
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
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=2000, help="texts whose latency is measured")
    parser.add_argument("--budgets", type=int, nargs="+", default=[20, 30, 50, 60, 70, 80])
    options = parser.parse_args(arguments)
    with working_folder(options.folder) as folder:
        report(folder, shared_data().resolve(), options)


if __name__ == "__main__":
    main()

"""Accuracy against multiply-accumulates of ResNet-56's exits, from one pass of the network.

    python -m benchmarks.exit_accuracy [--exits layer2.1,layer3.1 ...] [--pool 4]

Heads are fitted on 20,000 training images, thresholds on the first 5,000 test images; every figure
is of the last 5,000. Nothing is compiled: this is for finding out where exits pay, in a minute or
two. Recorded features are kept in a temporary folder (about 1.5 GB). Needs torch.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.machine import shared_data
from benchmarks.networks import load_weights, resnet56
from eecompile.cost import graph_macs
from eecompile.datasets import Dataset, Split, open_dataset
from eecompile.heads import Head, HeadJob, fit_heads, make_head
from eecompile.ir import TensorType
from eecompile.outcomes import ExitCosts, Report, evaluate
from eecompile.planning import cut_file
from eecompile.policy_fitting import fit_policy
from eecompile.record import CalibrateRecord, FitRecord, Record, TestRecord, record
from eecompile.spec import Budget, DataSet, DataSource, Normalize, Rule, RuleTerm, Spec

#: Where exits pay best for trained heads, and for class means, which fail in earlier layers.
LINEAR = ("layer2.1", "layer2.4", "layer2.7", "layer3.1", "layer3.3", "layer3.5")
CLASS_MEANS = ("layer2.8", "layer3.2", "layer3.4", "layer3.5", "layer3.6")

INPUT = TensorType("float32", (1, 3, 32, 32))
CLASSES = 10
KINDS: dict[str, type[Record]] = {
    "fit": FitRecord,
    "calibrate": CalibrateRecord,
    "test": TestRecord,
}


def datasets(data: Path) -> dict[str, Dataset]:
    test = str(data / "cifar10_test.npz")
    written = DataSet(
        "cifar10",
        fit=DataSource(str(data / "cifar10_train_20k.npz")),
        calibrate=DataSource(test, stop=5000),
        test=DataSource(test, start=5000),
        normalize=Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    )
    splits: Sequence[Split] = ("fit", "calibrate", "test")
    spec = Spec(data=(written,))
    opened = {split: open_dataset(spec, written, split, INPUT, CLASSES) for split in splits}
    return {split: dataset for split, dataset in opened.items() if dataset is not None}


class Taps:
    """The network with what each head wants of it read off on the way."""

    def __init__(self, weights: Path, heads: Mapping[str, Head], pool: int) -> None:
        self.pool = pool
        self.net = load_weights(resnet56(), weights)
        self.heads = heads
        self._seen: dict[str, torch.Tensor] = {}
        for point in heads:
            self.net.get_submodule(point).register_forward_hook(self._keep(point))

    def _keep(self, point: str) -> Any:
        def hook(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
            self._seen[point] = output

        return hook

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Logits, and at each point what its head's feature graph gives: pooled maps as rows."""
        with torch.inference_mode():
            found = {"logits": self.net(torch.from_numpy(images)).numpy()}
        for point, seen in self._seen.items():
            found[point] = functional.adaptive_avg_pool2d(seen, self.pool).flatten(1).numpy()
        return found

    def types(self) -> dict[str, TensorType]:
        """The tensor at each point, for one image."""
        self(np.zeros(INPUT.shape, np.float32))
        return {point: TensorType("float32", tuple(t.shape)) for point, t in self._seen.items()}


def backbone_macs(weights: Path, fit: Path, points: Sequence[str]) -> list[int]:
    """Multiply-accumulates of each segment when the network is cut at the points."""
    exits = "\n".join(f'exit e{i} after "{p}" head linear' for i, p in enumerate(points))
    networks = Path(__file__).with_name("networks.py")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet56.ee"
        path.write_text(
            f'eecompile 1\nmodel m {{ source torch "{networks}:resnet56" weights "{weights}"\n'
            f"input image: float32[1, 3, 32, 32]\noutput logits: classes(10)\n{exits} }}\n"
            f'data d {{ fit "{fit}" }}\n'
        )
        _, segments, _ = cut_file(path)
    return [segment.macs for segment in segments.segments]


def fitted(
    taps: Taps, data: Mapping[str, Dataset], folder: Path, comparators: bool
) -> tuple[dict[str, Record], dict[str, int]]:
    """The calibrate and test records with the heads' outputs, and each head's MACs."""
    records = {}
    for split, dataset in data.items():
        start = time.perf_counter()
        records[split] = record(
            KINDS[split],
            taps,
            dataset.batches(250),
            output="logits",
            exits=tuple(taps.heads),
            recorded=tuple(taps.heads),
            folder=folder / split,
        )
        print(f"  recorded {split}: {time.perf_counter() - start:.1f} s")
    start = time.perf_counter()
    jobs = {p: HeadJob(h, records["fit"].recorded[p]) for p, h in taps.heads.items()}
    parameters: dict[str, Mapping[str, np.ndarray]] = {
        **fit_heads(jobs, records["fit"].labels, CLASSES, workers=2)
    }
    calibrate = records["calibrate"]
    for point, head in taps.heads.items():
        parameters[point] = head.calibrate(
            parameters[point], calibrate.recorded[point], calibrate.labels
        )
    print(f"  fitted {len(jobs)} heads: {time.perf_counter() - start:.1f} s")
    finished: dict[str, Record] = {}
    for split in ("calibrate", "test"):
        outputs = {
            point: head.logits(records[split].recorded[point], parameters[point])
            for point, head in taps.heads.items()
        }
        found = records[split]
        finished[split] = (
            found.with_outputs(class_means=outputs) if comparators else found.with_outputs(outputs)
        )
    macs = {
        point: graph_macs(taps.heads[point].graph(type_, parameters[point]))
        for point, type_ in taps.types().items()
    }
    return finished, macs


def reports(
    measure: str, heads: Mapping[str, Head], pool: int, budgets: Sequence[Budget], data: Path
) -> Iterator[tuple[Budget, Report]]:
    """Each budget's report on the test record."""
    weights = data / "nets/resnet56_cifar10.th"
    comparators = measure == "class_means"
    segments = backbone_macs(weights, data / "cifar10_train_20k.npz", tuple(heads))
    with tempfile.TemporaryDirectory() as folder:
        taps = Taps(weights, heads, pool)
        records, head_macs = fitted(taps, datasets(data), Path(folder), comparators)
        full = sum(segments)
        costs = {
            "macs": ExitCosts(
                tuple(macs / full for macs in segments),
                tuple(head_macs[point] / full for point in heads),
                1.0,
            )
        }
        calibrate, test = records["calibrate"], records["test"]
        assert isinstance(calibrate, CalibrateRecord)
        assert isinstance(test, TestRecord)
        rule = Rule((RuleTerm("confidence", measure),))
        for budget in budgets:
            policy = fit_policy(rule, budget, calibrate, costs).policy
            yield budget, evaluate(policy, test, costs)


def show(budget: Budget, report: Report) -> None:
    accuracy, cost = report.accuracy, report.costs["macs"]
    missed = report.missed_by(budget)
    print(
        f"  {budget!s:24} accuracy {accuracy.value:.2%} [{accuracy.low:.2%}, {accuracy.high:.2%}]"
        f"  mean_macs_fraction {cost.value:.4f} [{cost.low:.4f}, {cost.high:.4f}]"
        f"  full depth {report.full_depth_accuracy.value:.2%}"
        + (f"  MISSED by {missed:.4f}" if missed else "")
    )
    taken = (f"{n} {s:.0%}" + (f" ({a:.1%})" if a is not None else "") for n, s, a in report.exits)
    print("    " + ", ".join(taken))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exits", help="points, separated by commas")
    parser.add_argument("--pool", type=int, default=4)
    parser.add_argument("--measure", help="only this measure of confidence")
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    data = shared_data()
    torch.set_num_threads(2)
    runs = {
        "max_softmax": ("linear", LINEAR, (0.5, 0.7, 0.8)),
        "class_means": ("class_means", CLASS_MEANS, (0.8, 0.9)),
    }
    for measure, (kind, points, limits) in runs.items():
        if options.measure not in (None, measure):
            continue
        chosen = tuple(options.exits.split(",")) if options.exits else points
        heads = {point: make_head(kind, {"pool": options.pool}) for point in chosen}
        print(f"{kind} heads, confidence({measure}), pool {options.pool}: {', '.join(chosen)}")
        budgets = [*(Budget("macs", limit) for limit in limits), Budget("accuracy_drop", 0.005)]
        for budget, report in reports(measure, heads, options.pool, budgets, data):
            show(budget, report)


if __name__ == "__main__":
    main()

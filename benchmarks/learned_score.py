"""Learned scores against the measures of confidence, at strict budgets, on ResNet-56 (CIFAR-10).

    python -m benchmarks.learned_score [--folder DIR] [--exits 3 4 5 6 7 8] [--seeds 5] [--conv]

Eight heads are fitted on 20,000 training images with the backbone frozen; a network of fewer exits
is the same one with some of them left out, which changes nothing about the others. The 10,000 test
images are cut into halves anew for each seed: one half to fit the rules on, the other to report.
With a folder that is kept the outputs are recorded there once. Needs torch (to export the network).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine, shared_data, working_folder
from benchmarks.resnet56 import WEIGHTS, command, normalized
from eecompile.outcomes import ExitCosts, evaluate
from eecompile.policy_fitting import fit_policy
from eecompile.record import CalibrateRecord, TestRecord
from eecompile.spec import Budget, Name, Rule, RuleTerm

__all__ = ["Row", "compare", "print_table", "verdict"]

HERE = Path(__file__).parent

MEASURES = ("max_softmax", "entropy", "margin")
#: Rules compared, by the names they are printed under.
RULES: Mapping[str, Rule] = {
    **{name: Rule((RuleTerm("confidence", name),)) for name in MEASURES},
    "learned_score": Rule((RuleTerm("learned_score"),)),
    "as published": Rule((RuleTerm("learned_score", None, {"thresholds": Name("quota")}),)),
}
#: What takes the best of several scores, and so has to be as good as the best of them.
LEARNED = "learned_score"

BUDGETS = tuple(Budget("macs", limit) for limit in (0.5, 0.6, 0.7, 0.8))

#: Exits kept for a network of so many.
SUBSETS = {3: "cfg", 4: "bdfg", 5: "bdefg", 6: "bcdefg", 7: "bcdefgh", 8: "abcdefgh"}
CONV = "conv(channels: 32, kernel: 3, layers: 1, pool: 4)"


@dataclass(frozen=True)
class Row:
    """One rule at one budget on samples it was not fitted on; one entry per seed.

    Attributes:
        rule: a name of `RULES`.
        budget: kept with the confidence of a build on the calibration half.
        accuracy: of the answers on the test half, in per cent.
        cost: mean there, in the budget's unit.
        fit_s: seconds the fit took.
    """

    rule: str
    budget: Budget
    accuracy: tuple[float, ...]
    cost: tuple[float, ...]
    fit_s: tuple[float, ...]


def compare(
    records_by_seed: Mapping[int, tuple[CalibrateRecord, TestRecord]],
    costs: Mapping[str, ExitCosts],
    budgets: Sequence[Budget],
    rules: Mapping[str, Rule] = RULES,
) -> list[Row]:
    """Every rule fitted to every budget on the first record of each seed, judged on the second.

    Args:
        records_by_seed: the seed is that of the fit.
        costs: quantity -> what pieces cost; the quantity of every budget among them.
        budgets: of mean costs.
        rules: by name.

    Raises:
        CompileErrors: a budget cannot be kept.
    """
    rows = []
    for budget in budgets:
        for name, rule in rules.items():
            accuracy, cost, fit_s = [], [], []
            for seed, (calibrate, test) in records_by_seed.items():
                start = time.perf_counter()
                fitted = fit_policy(rule, budget, calibrate, costs, seed=seed, levels=False)
                fit_s.append(time.perf_counter() - start)
                held_out = evaluate(fitted.policy, test, costs)
                accuracy.append(100 * held_out.accuracy.value)
                cost.append(held_out.costs[budget.quantity].value)
            rows.append(Row(name, budget, tuple(accuracy), tuple(cost), tuple(fit_s)))
    return rows


def print_table(rows: Iterable[Row]) -> None:
    """Mean and spread (lowest to highest) over seeds; where the cost lies to the budget."""
    print(
        f"  {'budget':22} {'rule':14} {'accuracy':>8} {'lowest':>7} {'highest':>7} "
        f"{'cost / budget':>13} {'at most':>8} {'kept':>5} {'fit s':>6}"
    )
    for row in rows:
        used = 100 * np.array(row.cost) / row.budget.limit
        kept = f"{np.count_nonzero(used <= 100)}/{len(used)}"
        print(
            f"  {row.budget!s:22} {row.rule:14} {np.mean(row.accuracy):8.2f} "
            f"{min(row.accuracy):7.2f} {max(row.accuracy):7.2f} {used.mean():11.2f} % "
            f"{used.max():6.2f} % {kept:>5} {np.mean(row.fit_s):6.1f}"
        )


def verdict(rows: Sequence[Row]) -> dict[str, tuple[float, float, str]]:
    """Budget -> points the learned score is above the best measure, their error, and that measure.

    The best is the one with the highest mean over seeds, which knows the test data: it is a little
    more than any rule can be chosen to have. The standard error is of the mean difference by seed.
    """
    found = {}
    for budget in dict.fromkeys(row.budget for row in rows):
        own = {row.rule: np.array(row.accuracy) for row in rows if row.budget == budget}
        best = max((name for name in own if name in MEASURES), key=lambda name: own[name].mean())
        above = own[LEARNED] - own[best]
        error = above.std(ddof=1) / len(above) ** 0.5 if len(above) > 1 else float("nan")
        found[str(budget)] = (float(above.mean()), float(error), best)
    return found


@dataclass(frozen=True)
class Recorded:
    """What all eight exits answer to the 10,000 test images.

    Attributes:
        logits: exit -> (n, classes); the network's own under "final".
        labels: (n,).
        leaving: cost of leaving at each exit, without heads, the final one last.
        heads: cost of each exit's head.
    """

    logits: Mapping[str, np.ndarray]
    labels: np.ndarray
    leaving: np.ndarray
    heads: np.ndarray

    @property
    def exits(self) -> str:
        """One letter each."""
        return "".join(name for name in self.logits if name != "final")

    def costs(self, kept: str) -> ExitCosts:
        """MACs of the network with some of the exits."""
        places = [self.exits.index(name) for name in kept]
        ends = [*self.leaving[places], self.leaving[-1]]
        segments = np.diff([0.0, *ends]).tolist()
        return ExitCosts(tuple(segments), tuple(self.heads[places].tolist()), 1.0)

    def halves(self, kept: str, seed: int) -> tuple[CalibrateRecord, TestRecord]:
        """A random half to fit on, and the other."""
        order = np.random.default_rng(seed).permutation(len(self.labels))
        first, second = np.split(order, 2)
        return (
            CalibrateRecord(tuple(kept), **self._rows(kept, first)),
            TestRecord(tuple(kept), **self._rows(kept, second)),
        )

    def _rows(self, kept: str, rows: np.ndarray) -> dict[str, Any]:
        logits = {name: self.logits[name][rows] for name in kept}
        return {"labels": self.labels[rows], "final": self.logits["final"][rows], "logits": logits}


def recorded(folder: Path, data: Path, conv: bool) -> Recorded:
    """From the folder where they are recorded already."""
    kind = "conv" if conv else "linear"
    path = folder / f"{kind}.npz"
    if not path.exists():
        _record(folder, data, kind, path)
    with np.load(path) as archive:
        found = dict(archive)
    labels, leaving, heads = (found.pop(name) for name in ("labels", "leaving", "heads"))
    return Recorded(found, labels, leaving, heads)


def _record(folder: Path, data: Path, kind: str, path: Path) -> None:
    """Builds the network with its exits, and runs all of them."""
    import subprocess

    import eecompile as ee
    from eecompile.runtime.runner import Runner

    subprocess.run(
        [
            sys.executable, "-m", "benchmarks.networks", "export", "resnet56",
            "--weights", str(data / WEIGHTS), "--onnx", str(folder / "resnet56.onnx"),
        ],
        cwd=HERE.parent, check=True, capture_output=True,
    )  # fmt: skip
    text = (HERE / "learned_score.ee").read_text().replace('"cifar10_', f'"{data}/cifar10_')
    if kind == "conv":
        text = text.replace("linear(pool: 4)", CONV)
    (folder / f"{kind}.ee").write_text(text)
    artifact = str(folder / f"{kind}.artifact")
    _, seconds = command("build", str(folder / f"{kind}.ee"), "-o", artifact, folder=folder)
    print(f"built with {kind} heads in {seconds:.0f} s")
    with np.load(data / "cifar10_test.npz") as archive:
        images, labels = archive["images"], archive["labels"].astype(np.int64)
    net = ee.load(artifact)
    network = net.manifest.network
    names = {exit_.name: f"{exit_.name}.logits" for exit_ in network.exits}
    wanted = {**names, "final": network.output}
    runner = Runner.of(net.library, network)
    values = runner.run_all(normalized(images), list(wanted.values()), threads=2)
    arrays: dict[str, Any] = {name: values[value] for name, value in wanted.items()}
    arrays["labels"] = labels
    arrays["leaving"] = np.cumsum([segment.macs for segment in network.segments]) / network.macs
    arrays["heads"] = np.array([exit_.macs for exit_ in network.exits]) / network.macs
    np.savez(path, **arrays)


def report(folder: Path, data: Path, counts: Sequence[int], seeds: int, conv: bool) -> None:
    """Every table, and what of the claims holds."""
    print(describe_machine())
    known = recorded(folder, data, conv)
    right = {name: (own.argmax(1) == known.labels).mean() for name, own in known.logits.items()}
    print("accuracy of the exits: " + ", ".join(f"{n} {100 * a:.2f} %" for n, a in right.items()))
    for count in counts:
        kept = SUBSETS[count]
        records = {seed: known.halves(kept, seed) for seed in range(seeds)}
        rows = compare(records, {"macs": known.costs(kept)}, BUDGETS)
        print(f"{count} exits ({', '.join(kept)}), {seeds} seeds, 5,000 to fit on, 5,000 held out:")
        print_table(rows)
        for budget, (above, error, best) in verdict(rows).items():
            print(f"  {budget}: {above:+.2f} (+- {error:.2f}) points against {best}, the best")
        sys.stdout.flush()


def main() -> None:
    """Options, then everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, help="keep what is recorded here")
    parser.add_argument("--exits", type=int, nargs="+", default=list(SUBSETS), choices=SUBSETS)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--conv", action="store_true", help="convolutional heads, not linear ones")
    options = parser.parse_args()
    data = shared_data().resolve()
    with working_folder(options.folder) as folder:
        report(folder, data, options.exits, options.seeds, options.conv)


if __name__ == "__main__":
    main()

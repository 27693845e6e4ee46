"""SplitEE and SplitEE-S on streams of recorded ResNet-56 answers: regret, cost, accuracy, drift.

    python -m benchmarks.split [--folder DIR] [--picture split.svg]

Streams are the last 5,000 CIFAR-10 test images, clean and with Gaussian noise, in 20 random orders;
thresholds are fitted on the first 5,000 (`benchmarks.split_streams` records them, once per folder).
Everything is learned without labels, from what a device can know. Only "paper's updates" reads the
network's confidence of every sample from the table, as the papers' own evaluation does. Spreads are
95 % intervals of the mean over the orders.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import log, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import describe_machine, shared_data, working_folder
from benchmarks.split_picture import Band, draw
from benchmarks.split_streams import POINTS, Stream, Streams, recorded_streams
from eecompile.policies import SplitCosts, SplitPolicy, UcbOptions
from eecompile.policies.scores import max_softmax
from eecompile.policies.split_bandit import Rewards, SplitBandit
from eecompile.split_fitting import lowest_threshold

Array = np.ndarray[Any, Any]

ORDERS = 20
#: Student's t of a 95 % interval from 20 values.
_T = 2.093
#: Samples after which regret is told; of clean images the stream goes on, in another order.
TIMES = (500, 1000, 2000, 4000)
LONG = (*TIMES, 8000, 16000)
#: Prices of sending a sample, as shares of the network's cost.
PRICES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)
PRICE = 0.5  # where regret is told
DRIFT_PRICE = 1.0  # where clean and noisy images have different best splits
DROP = 0.01  # accuracy the thresholds may lose, on calibration data

METHODS: Mapping[str, tuple[UcbOptions, bool]] = {
    "SplitEE": (UcbOptions("own"), False),
    "SplitEE-S, skip": (UcbOptions("side", "skip"), False),
    "SplitEE-S, impute": (UcbOptions("side", "impute"), False),
    "SplitEE-S, paper's updates": (UcbOptions("side", "skip"), True),
}


@dataclass(frozen=True)
class Table:
    """A stream as the bandit sees it, and what each split would give for each sample.

    Attributes:
        rewards: of one variant's costs, with thresholds.
        seen: float64 (n, exits), confidences of the exits.
        final: float64 (n,), of the network.
        right: bool (n, exits + 1), whether each exit's and the network's answer is right.
    """

    rewards: Rewards
    seen: Array
    final: Array
    right: Array

    @classmethod
    def of(cls, stream: Stream, rewards: Rewards) -> Table:
        """From recorded logits."""
        answers = [*stream.exits, stream.final]
        *seen, final = (max_softmax(logits).astype(np.float64) for logits in answers)
        right = [logits.argmax(axis=1) == stream.labels for logits in answers]
        return cls(rewards, np.stack(seen, 1), final, np.stack(right, 1))

    @cached_property
    def sure(self) -> Array:
        """Whether a sample leaves at each exit, bool (n, exits)."""
        return np.asarray(self.seen >= np.array(self.rewards.thresholds))

    @cached_property
    def sent(self) -> Array:
        """Whether a sample is sent where it is split at each arm, bool (n, arms)."""
        return np.hstack([~self.sure, np.zeros((len(self.final), 1), bool)])

    @cached_property
    def cost(self) -> Array:
        """Of a sample at each arm, float64 (n, arms)."""
        return np.asarray(np.array(self.rewards.spent) + self.rewards.price * self.sent)

    @cached_property
    def reward(self) -> Array:
        """Of a sample at each arm, float64 (n, arms)."""
        confidence = np.hstack([np.where(self.sure, self.seen, self.final[:, None]), self.end])
        return np.asarray(confidence - self.rewards.weight * self.cost)

    @property
    def end(self) -> Array:
        """The network's confidence as a column."""
        return self.final[:, None]

    @cached_property
    def correct(self) -> Array:
        """Whether a sample gets the right answer at each arm, bool (n, arms)."""
        own, network = self.right[:, :-1], self.right[:, -1:]
        return np.hstack([np.where(self.sure, own, network), network])

    def joined(self, other: Table) -> Table:
        """This stream's samples, then the other's."""
        pairs = ((self.seen, other.seen), (self.final, other.final), (self.right, other.right))
        return Table(self.rewards, *(np.concatenate(pair) for pair in pairs))


def played(table: Table, options: UcbOptions, order: Array, everything: bool = False) -> Array:
    """The arm of each sample of the order; `everything`: learning reads what none can know."""
    bandit = SplitBandit(table.rewards, options)
    seen, final, sure = table.seen.tolist(), table.final.tolist(), table.sure.tolist()
    end, arms = len(table.rewards.thresholds), []
    for n in order.tolist():
        arm = bandit.choose()
        known = everything or arm == end or not sure[n][arm]
        bandit.learn(arm, seen[n], final[n] if known else None)
        arms.append(arm)
    return np.array(arms)


def orders(count: int, length: int) -> Iterator[Array]:
    """Random orders of `count` samples, one after the other up to a length; the same each time."""
    for seed in range(ORDERS):
        random = np.random.default_rng(seed)
        passes = [random.permutation(count) for _ in range(-(-length // count))]
        yield np.concatenate(passes)[:length]


def interval(values: Sequence[float] | Array) -> tuple[float, float]:
    """Mean and half of its 95 % interval, over the orders."""
    found = np.asarray(values, float)
    return float(found.mean()), _T * float(found.std(ddof=1)) / sqrt(len(found))


@dataclass(frozen=True)
class Bench:
    """Everything recorded, with thresholds fitted on calibration data."""

    streams: Streams
    thresholds: tuple[float, ...]

    @classmethod
    def of(cls, streams: Streams) -> Bench:
        """Thresholds at which each exit loses at most `DROP`, with 95 % confidence."""
        own = streams.by_name["calibrate"]
        full = (own.final.argmax(axis=1) == own.labels).astype(int)
        found = [
            lowest_threshold(max_softmax(logits), full - (logits.argmax(1) == own.labels), DROP)
            for logits in own.exits
        ]
        return cls(streams, tuple(found))

    def table(self, stream: str, observations: str, price: float = PRICE) -> Table:
        """A stream, priced."""
        costs = self.streams.costs
        policy = SplitPolicy(
            "max_softmax",
            self.thresholds,
            range(len(self.thresholds)),
            SplitCosts(costs.leaving, costs.heads, price),
            UcbOptions(observations),  # type: ignore[arg-type]
        )
        return Table.of(self.streams.by_name[stream], policy.rewards)


def name_of(arm: int) -> str:
    """An arm's exit point."""
    return POINTS[arm] if arm < len(POINTS) else "the end"


def show_setting(bench: Bench) -> None:
    costs = bench.streams.costs
    print("\nexits: backbone's share, heads up to there, threshold; accuracy by noise (sigma)")
    names = ("0", "0.5", "1", "2")
    tables = {name: bench.table(name, "own") for name in names}
    for arm in range(len(POINTS) + 1):
        right = " ".join(f"{tables[n].right[:, arm].mean():6.1%}" for n in names)
        heads = sum(costs.heads[: arm + 1])
        limit = f"{bench.thresholds[arm]:.3f}" if arm < len(POINTS) else "     "
        print(f"  {name_of(arm):9} {costs.leaving[arm]:6.1%} {heads:6.2%} {limit}  {right}")


def show_regret(
    bench: Bench,
    exploration: float,
    price: float = PRICE,
    streams: Sequence[str] = ("0", "0.5", "1", "2"),
) -> dict[str, Band]:
    """Prints regret of all methods on some streams; returns the curves of the clean one."""
    print(f"\ncumulative regret against the best fixed split, price {price:g}, c = {exploration:g}")
    print(
        "  in brackets R / ln t; `fit`: R = a + b ln t from t = 1000 on, with its r2, and that of"
    )
    print("  R = a + b sqrt t")
    print(f"  {'sigma':6}{'method':28}" + "".join(f"{f't={t}':>13}" for t in LONG))
    curves: dict[str, Band] = {}
    for stream in streams:
        times = LONG if stream == "0" else TIMES
        for method, (options, everything) in METHODS.items():
            table = bench.table(stream, options.observations, price)
            chosen = replace(options, exploration=exploration)
            means = table.reward.mean(axis=0)
            regret = np.stack(
                [
                    np.cumsum(means.max() - means[played(table, chosen, order, everything)])
                    for order in orders(len(table.final), times[-1])
                ]
            )
            found = [interval(regret[:, t - 1]) for t in times]
            told = "".join(f"{f'{m:.0f} ± {h:.0f}':>13}" for m, h in found)
            print(f"  {stream:6}{method:28}{told}")
            ratios = (m / log(t) for (m, _), t in zip(found, times, strict=True))
            best = f"  best split {name_of(int(means.argmax()))}"
            fit = _growth(regret.mean(axis=0))
            print(f"  {'':6}{best:28}" + "".join(f"{f'({r:.1f})':>13}" for r in ratios) + fit)
            if stream == "0":
                at = np.unique(np.geomspace(50, times[-1], 80).astype(int))
                curves[method] = Band.of(at, regret[:, at - 1], _T)
    return curves


def _growth(regret: Array) -> str:
    """How well a logarithm describes regret from sample 1,000 on, and a root beside it."""
    at = np.unique(np.geomspace(1000, len(regret), 40).astype(int))
    found = []
    for shape in (np.log(at), np.sqrt(at)):
        slope, offset = np.polyfit(shape, regret[at - 1], 1)
        left = regret[at - 1] - offset - slope * shape
        found.append((slope, 1 - left.var() / regret[at - 1].var()))
    (slope, log_fit), (_, root_fit) = found
    return f"   fit: b = {slope:.0f}, r2 = {log_fit:.4f}; sqrt: {root_fit:.4f}"


def show_prices(bench: Bench, exploration: float) -> dict[str, list[tuple[float, float, float]]]:
    """Prints cost and accuracy by price; returns (price, saved, drop) by stream."""
    print(f"\ncost and accuracy against always-final, whole stream of 5,000, c = {exploration:g}")
    print("  `fixed`: the best fixed split, known in advance. `*`: costs fall by more than 50 % at")
    print("  a drop under 2 points")
    head = ("sigma", "price", "method", "cost saved %", "drop, points", "sent %")
    print("  {:6}{:>6}  {:18}{:>14}{:>15}{:>9}  split in the end".format(*head))
    found: dict[str, list[tuple[float, float, float]]] = {}
    for stream in ("0", "0.5", "1", "2"):
        for price in PRICES:
            for method in ("SplitEE", "SplitEE-S, impute"):
                options, _ = METHODS[method]
                table = bench.table(stream, options.observations, price)
                runs = _runs(table, replace(options, exploration=exploration))
                saved, drop, sent = (interval(column) for column in zip(*runs[0], strict=True))
                met = "*" if saved[0] > 50 and drop[0] < 2 else " "
                told = f"{saved[0]:.1f} ± {saved[1]:.1f}", f"{drop[0]:.2f} ± {drop[1]:.2f}"
                ends = ", ".join(f"{name_of(arm)} {n}" for arm, n in runs[1])
                print(
                    f"  {stream:6}{price:6g}  {method:18}{told[0]:>14}{told[1]:>15}"
                    f"{sent[0]:9.1f} {met}{ends}"
                )
                if method != "SplitEE":
                    found.setdefault(stream, []).append((price, saved[0], drop[0]))
            best = int(table.reward.mean(axis=0).argmax())
            saved_, drop_, sent_ = _figures(table, np.full(len(table.final), best))
            print(
                f"  {stream:6}{price:6g}  {'fixed':18}{saved_:14.1f}{drop_:15.2f}{sent_:9.1f} "
                f"{'*' if saved_ > 50 and drop_ < 2 else ' '}{name_of(best)}"
            )
    return found


def _runs(
    table: Table, options: UcbOptions
) -> tuple[list[tuple[float, float, float]], list[tuple[int, int]]]:
    """Figures of each order, and how often each arm was the most used one of the last 1,000."""
    figures, ends = [], []
    for order in orders(len(table.final), len(table.final)):
        arms = played(table, options, order)
        figures.append(_figures(table, arms, order))
        ends.append(int(np.bincount(arms[-1000:]).argmax()))
    values, counts = np.unique(ends, return_counts=True)
    ranked = sorted(zip(values.tolist(), counts.tolist(), strict=True), key=lambda p: -p[1])
    return figures, ranked


def _figures(table: Table, arms: Array, order: Array | None = None) -> tuple[float, float, float]:
    """Cost saved in per cent, accuracy lost in points, samples sent in per cent."""
    rows = np.arange(len(arms)) if order is None else order
    saved = 1 - float(table.cost[rows, arms].mean())
    full = float(table.right[rows, -1].mean())
    drop = full - float(table.correct[rows, arms].mean())
    return 100 * saved, 100 * drop, 100 * float(table.sent[rows, arms].mean())


def show_drift(bench: Bench, exploration: float, later: str) -> dict[str, Band]:
    """Prints what a change of the input half way does; returns shares at the new best split."""
    first, second = (bench.table(name, "side", DRIFT_PRICE) for name in ("0", later))
    both, half = first.joined(second), len(first.final)
    bests = [int(table.reward.mean(axis=0).argmax()) for table in (first, second)]
    print(
        f"\ndrift: {half} clean samples, then {half} with noise of sigma {later}; SplitEE-S,"
        f" price {DRIFT_PRICE:g}, c = {exploration:g}"
    )
    print(f"  best fixed split: {name_of(bests[0])}, then {name_of(bests[1])}")
    print("  unknown   discount   regret 1st half   2nd half   at the new best split, last 1,000")
    means = np.stack([table.reward.mean(axis=0) for table in (first, second)])
    gaps = (means.max(axis=1, keepdims=True) - means).repeat(half, axis=0)
    curves: dict[str, Band] = {}
    settings = [("skip", 1.0), *(("impute", share) for share in (1.0, 0.9995, 0.999, 0.997))]
    for unknown, discount in settings:
        options = UcbOptions("side", unknown, discount, exploration)  # type: ignore[arg-type]
        regrets, shares, windows = [], [], []
        pairs = zip(orders(half, half), reversed(list(orders(half, half))), strict=True)
        for early, late in pairs:
            arms = played(both, options, np.concatenate([early, half + late]))
            regret = gaps[np.arange(2 * half), arms]
            regrets.append((regret[:half].sum(), regret[half:].sum()))
            shares.append(float((arms[-1000:] == bests[1]).mean()))
            windows.append(np.convolve(arms == bests[1], np.full(250, 1 / 250), "valid"))
        (a, a_), (b, b_) = (interval(column) for column in zip(*regrets, strict=True))
        share, share_ = interval(shares)
        told = f"{a:.0f} ± {a_:.0f}", f"{b:.0f} ± {b_:.0f}", f"{share:.0%} ± {share_:.0%}"
        print(f"  {unknown:8} {discount:9g} {told[0]:>17} {told[1]:>10} {told[2]:>22}")
        at = np.arange(250, 2 * half + 1, 100)
        if unknown == "impute":
            curves[f"discount {discount:g}"] = Band.of(at, np.stack(windows)[:, at - 250] * 100, _T)
    return curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="keeps what is recorded")
    parser.add_argument("--picture", type=Path, default=Path("split.svg"))
    parser.add_argument("--exploration", type=float, default=0.2, help="beside the papers' 1")
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    print(describe_machine())
    with working_folder(options.folder) as folder:
        bench = Bench.of(recorded_streams(folder, shared_data()))
    show_setting(bench)
    curves = show_regret(bench, 1.0)
    show_regret(bench, options.exploration)
    show_regret(bench, 1.0, DRIFT_PRICE, ("0",))
    show_prices(bench, 1.0)
    prices = show_prices(bench, options.exploration)
    drift = show_drift(bench, options.exploration, "0.5")
    about = (
        f"ResNet-56, 8 exits, CIFAR-10, {ORDERS} orders, 95 % bands. Left: sending costs {PRICE} "
        f"of the network, c = 1; right: {DRIFT_PRICE:g}, c = {options.exploration:g}, as the middle"
    )
    options.picture.write_text(draw(about, curves, prices, drift), encoding="utf-8")
    print(f"\npicture: {options.picture}")


if __name__ == "__main__":
    main()

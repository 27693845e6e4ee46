"""A guard on ResNet-56 while its inputs get worse: what answers lose, and what it costs.

    python -m benchmarks.guard [--folder DIR] [--drop 0.02] [--audit 0.05] [--shuffles 10]
                               [--svg FILE] [--live]
    python -m benchmarks.guard --synthetic [--drop 0.02] [--audit 0.05] [--shuffles 10]

Exits are fitted on 20,000 training images and thresholds on the first 5,000 test images. Streams
are the last 5,000, shuffled: all of them clean, then all of them corrupted. Everything is compared
with the network's own answers to the same image. What every exit answers is computed once by the
compiled network, and the streams are replayed from that, audits and all, by the class the runtime
uses; ``--live`` also runs one of them through a session. Needs torch, to export the network.

``--synthetic`` shows what the guard's options and alternatives to them come to on streams whose
differences are known, and which show in the exits or do not; no image of those above is among them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import eecompile as ee
from benchmarks.machine import describe_machine, shared_data, working_folder
from eecompile.artifact import read_artifact
from eecompile.build_options import BuildOptions
from eecompile.cache import Cache
from eecompile.console import Steps
from eecompile.driver import build
from eecompile.guard_rule import GuardRule, GuardSetting
from eecompile.outcomes import ExitCosts
from eecompile.policies import ExitOutputs, NeverPolicy, from_json, replay, to_json
from eecompile.runtime.guard import Guard
from eecompile.runtime.guard_watch import GuardOptions, Watch
from eecompile.runtime.runner import Runner
from eecompile.svg_parts import document, line, text

Array = np.ndarray[Any, Any]

HERE = Path(__file__).parent
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FIRST = 5000  #: test image that is reported on
_ROLLING = 500  #: samples a point of the picture is the mean of


def noise(images: Array) -> Array:
    """Gaussian noise of a standard deviation of 16 steps of 255."""
    rough = images + np.random.default_rng(0).normal(0, 16, images.shape)
    return np.clip(rough, 0, 255)


def blur(images: Array) -> Array:
    """Each pixel the mean of the 3 x 3 around it."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge").astype(np.float64)
    shifts = [padded[:, i : i + 32, j : j + 32] for i in range(3) for j in range(3)]
    return np.asarray(np.mean(shifts, axis=0))


def contrast(images: Array) -> Array:
    """A third of the contrast around each image's mean."""
    means = images.mean(axis=(1, 2, 3), keepdims=True)
    return np.asarray(means + (images - means) / 3)


CORRUPTIONS = {"noise": noise, "blur": blur, "contrast": contrast}


@dataclass(frozen=True)
class Stream:
    """What exits and network answer to n images: logits (exits, n, 10), (n, 10); labels (n,)."""

    exits: Array
    final: Array
    labels: Array

    def taken(self, rows: Array) -> Stream:
        """Some of the images, in that order."""
        return Stream(self.exits[:, rows], self.final[rows], self.labels[rows])

    def then(self, other: Stream) -> Stream:
        """These, then others."""
        return Stream(
            np.concatenate([self.exits, other.exits], axis=1),
            np.concatenate([self.final, other.final]),
            np.concatenate([self.labels, other.labels]),
        )

    def outputs(self) -> list[ExitOutputs]:
        """Of each exit."""
        return [ExitOutputs(logits) for logits in self.exits]

    @cached_property
    def own(self) -> Array:
        """The network's own answers."""
        return np.asarray(self.final.argmax(axis=1))


@dataclass(frozen=True)
class Served:
    """What was answered, what it cost of the network's MACs, and whether it was an audit."""

    labels: Array
    cost: Array
    audited: Array


def built(folder: Path, data: Path, drop: float, audit: float) -> Path:
    """The artifact, made where it is not there for these limits."""
    output = folder / f"guarded-{drop:g}-{audit:g}.artifact"
    if output.exists():
        return output
    onnx = folder / "resnet56.onnx"
    weights = data / "nets/resnet56_cifar10.th"
    if not onnx.exists():
        subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.networks", "export", "resnet56"),
                *("--weights", str(weights), "--onnx", str(onnx)),
            ],
            cwd=HERE.parent, check=True, capture_output=True,
        )  # fmt: skip
    written = (HERE / "resnet56.ee").read_text().replace('"cifar10_', f'"{data}/cifar10_')
    head = written[: written.index("policy at70")]
    path = folder / "guarded.ee"
    path.write_text(
        f"{head}policy watched {{ exit when confidence(max_softmax) budget mean macs <= 75 % "
        f"guard accuracy drop <= {100 * drop:g} % audit {100 * audit:g} % }}\n"
    )
    build(path, BuildOptions(output=output), Steps(0, quiet=True), Cache(folder / "cache"))
    return output


def normalized(images: Array) -> Array:
    """As the network reads them, float32 (n, 3, 32, 32)."""
    mean, std = np.array(_MEAN, np.float32), np.array(_STD, np.float32)
    scaled: Array = (images.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2), np.float32)


def test_images(data: Path) -> tuple[Array, Array]:
    """Those that are reported on, with their labels."""
    with np.load(data / "cifar10_test.npz") as archive:
        return archive["images"][_FIRST:], archive["labels"][_FIRST:].astype(np.int64)


def recorded(artifact: Path, folder: Path, data: Path) -> dict[str, Stream]:
    """What exits and network answer to the clean images and to each kind of corrupted ones."""
    kept = folder / "guard_streams.npz"
    if not kept.exists():
        net = ee.load(artifact, threads=2)
        network = net.manifest.network
        names = [*(f"{exit_.name}.logits" for exit_ in network.exits), network.output]
        runner = Runner.of(net.library, network)
        images, labels = test_images(data)
        found: dict[str, Any] = {"labels": labels}
        for kind, spoiled in {"clean": lambda x: x, **CORRUPTIONS}.items():
            values = runner.run_all(normalized(spoiled(images)), names, threads=2)
            found[f"{kind}_exits"] = np.stack([values[name] for name in names[:-1]])
            found[f"{kind}_final"] = values[network.output]
        np.savez(kept, **found)
    with np.load(kept) as archive:
        return {
            kind: Stream(archive[f"{kind}_exits"], archive[f"{kind}_final"], archive["labels"])
            for kind in ("clean", *CORRUPTIONS)
        }


def fixed(rule: GuardRule, stream: Stream, costs: ExitCosts) -> Served:
    """The policy as it was built, whatever comes."""
    replayed = replay(from_json(rule.settings[0].policy), stream.outputs(), stream.final)
    return Served(replayed.labels, costs.of(replayed), np.zeros(len(stream.final), bool))


def guarded(guard: Guard, rule: GuardRule, stream: Stream, costs: ExitCosts) -> Served:
    """The same with its guard: sample by sample, as a session does."""
    outputs = stream.outputs()
    ways = [replay(from_json(s.policy), outputs, stream.final) for s in rule.settings]
    paid = [costs.of(way) for way in ways]
    full, last = costs.leaving[-1], len(outputs)
    whole = full + sum(costs.heads)
    count = len(stream.final)
    served = Served(stream.own.copy(), np.full(count, full), np.zeros(count, bool))
    for row in range(count):
        level = guard.level
        _, audit = guard.begin()
        if audit:
            seen = [ExitOutputs(logits[row : row + 1]) for logits in stream.exits]
            guard.audited(seen, stream.final[row : row + 1])
            served.cost[row], served.audited[row] = whole, True
        elif level < len(ways):
            way = ways[level]
            index = int(way.exit[row])
            guard.answered(index, way.logits[row : row + 1])
            served.labels[row], served.cost[row] = way.labels[row], paid[level][row]
        else:
            guard.answered(last, stream.final[row : row + 1])
    return served


def figures(stream: Stream, served: Served, rows: slice) -> list[float]:
    """Of a part: share that differs, accuracy lost, MACs, share audited; all in per cent."""
    own, labels = stream.own[rows], stream.labels[rows]
    lost = (own == labels).mean() - (served.labels[rows] == labels).mean()
    return [
        100 * float((served.labels[rows] != own).mean()),
        100 * float(lost),
        100 * float(served.cost[rows].mean()),
        100 * float(served.audited[rows].mean()),
    ]


def compare(
    rule: GuardRule, streams: Mapping[str, Stream], costs: ExitCosts, shuffles: int
) -> dict[str, dict[str, Array]]:
    """Prints a table; gives, by corruption and kind, where answers differed: (shuffles, 10000)."""
    names = [str(k) for k in range(len(costs.heads))] + ["final"]
    curves: dict[str, dict[str, Array]] = {}
    print("corrupted by  half      who     differs (worst)   accuracy lost   MACs    audited")
    for kind in CORRUPTIONS:
        half = len(streams["clean"].labels)
        rows: dict[tuple[str, str], list[list[float]]] = {}
        wrong: dict[str, list[Array]] = {"fixed": [], "guard": []}
        for seed in range(shuffles):
            rng = np.random.default_rng(seed)
            stream = streams["clean"].taken(rng.permutation(half))
            stream = stream.then(streams[kind].taken(rng.permutation(half)))
            both = {
                "fixed": fixed(rule, stream, costs),
                "guard": guarded(Guard(rule, names, Random(seed)), rule, stream, costs),
            }
            for who, served in both.items():
                wrong[who].append(served.labels != stream.own)
                for part, at in (("clean", slice(0, half)), ("corrupt", slice(half, None))):
                    rows.setdefault((part, who), []).append(figures(stream, served, at))
        for (part, who), found in rows.items():
            mean, worst = np.mean(found, axis=0), np.max(found, axis=0)
            print(
                f"{kind:12s}  {part:8s}  {who:6s}  {mean[0]:5.2f} % ({worst[0]:5.2f})   "
                f"{mean[1]:9.2f} %   {mean[2]:6.1f} %  {mean[3]:5.1f} %"
            )
        curves[kind] = {who: np.stack(found) for who, found in wrong.items()}
    return curves


def live(artifact: Path, data: Path, drop: float) -> None:
    """One stream with noise through a session, answers compared with the network's own."""
    images, _ = test_images(data)
    rng = np.random.default_rng(0)
    order, again = rng.permutation(len(images)), rng.permutation(len(images))
    with ee.load(artifact) as net:
        for part, x in (("clean", images[order]), ("noise", noise(images[again]))):
            inputs = normalized(x)
            own = net.full_depth_batch(inputs).labels
            batch = net.run_batch(inputs)
            assert own is not None and batch.labels is not None and net.guard is not None
            macs = batch.macs.mean() / net.manifest.network.macs
            print(
                f"session, {part}: {100 * float((batch.labels != own).mean()):.2f} % differ, "
                f"{100 * drop:g} % allowed; MACs {100 * macs:.1f} %; "
                f"setting {net.guard.setting} of {net.guard.settings}, drift {net.guard.drift:.2f}"
            )


def picture(curves: Mapping[str, Mapping[str, Array]], drop: float) -> str:
    """Share of the answers that differ along the streams, the mean over shuffles, as SVG."""
    width, height, left, top = 960.0, 380.0, 60.0, 80.0
    panel, floor, kernel = 270.0, 320.0, np.ones(_ROLLING) / _ROLLING
    smooth = {
        kind: {who: np.convolve(wrong.mean(axis=0), kernel, "valid") for who, wrong in both.items()}
        for kind, both in curves.items()
    }
    most = max(float(curve.max()) for both in smooth.values() for curve in both.values()) * 1.05
    marks = [
        text(left, 34, "Answers that differ from the network's own, as inputs get worse", "title"),
        text(left, 58, f"ResNet-56, CIFAR-10; mean over {_ROLLING} samples and shuffles", "quiet"),
    ]
    for k, (kind, both) in enumerate(smooth.items()):
        x0 = left + k * (panel + 30)

        def y(share: float) -> float:
            return floor - (floor - top - 20) * share / most

        marks += [
            text(x0, top + 6, kind, "name"),
            line(x0, floor, x0 + panel, floor, "axis"),
            line(x0 + panel / 2, top + 14, x0 + panel / 2, floor, "half"),
            line(x0, y(drop), x0 + panel, y(drop), "allowed"),
            text(x0, floor + 18, "clean", "quiet"),
            text(x0 + panel, floor + 18, "corrupted", "quiet", "end"),
        ]
        for who, curve in both.items():
            steps = range(0, len(curve), 40)
            points = " ".join(
                f"{x0 + panel * (s + _ROLLING / 2) / (len(curve) + _ROLLING):.1f},{y(curve[s]):.1f}"
                for s in steps
            )
            marks.append(f'<polyline class="{who}" points="{points}"/>')
        if k == 0:
            marks.append(text(x0 - 8, y(drop) + 4, f"{100 * drop:g} %", "quiet", "end"))
            marks.append(text(x0 - 8, top + 24, f"{100 * most:.0f} %", "quiet", "end"))
    marks += [
        line(left, height - 16, left + 26, height - 16, "fixed"),
        text(left + 32, height - 12, "fixed thresholds", ""),
        line(left + 170, height - 16, left + 196, height - 16, "guard"),
        text(left + 202, height - 12, "with the guard", ""),
        line(left + 330, height - 16, left + 356, height - 16, "allowed"),
        text(left + 362, height - 12, "what the user allows", ""),
    ]
    style = """
  .fixed { fill: none; stroke: #dc2626; stroke-width: 2 }
  .guard { fill: none; stroke: #2563eb; stroke-width: 2 }
  .allowed { stroke: #64748b; stroke-dasharray: 5 4 } .half { stroke: #e2e8f0 }
"""
    label = (
        "With fixed thresholds more answers differ once inputs are corrupted; a guard holds them"
    )
    return document(width, height, "The guard", label, style, marks)


#: Of the made-up settings: share that leaves early, and what differs, allowed = 1.
_LEAVING = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.0])
_DIFFERING = np.array([0.65, 0.36, 0.2, 0.1, 0.05, 0.0])
#: What comes after usual samples: how often setting 0 differs, allowed = 1, and the share of the
#: samples that leaves where 1 did: below 1 the change shows in the exits.
_CHANGES = {
    "same": (0.65, 1.0),
    "harmless": (0.65, 0.7),
    "2x": (2.0, 0.7),
    "5x": (5.0, 0.7),
    "2x hidden": (2.0, 1.0),
    "5x hidden": (5.0, 1.0),
    "20x hidden": (20.0, 1.0),
}
_ALTERNATIVES = {
    "as it is": GuardOptions(),
    "reserve 0.55": GuardOptions(reserve=0.55),
    "reserve 0.85": GuardOptions(reserve=0.85),
    "reserve 1": GuardOptions(reserve=1.0),
    "alarm 1.5": GuardOptions(alarm=1.5, most=1.5),
    "alarm 3": GuardOptions(alarm=3.0, most=3.0),
    "most 4": GuardOptions(most=4.0),
    "exits not watched": GuardOptions(change=float("inf")),
    "change 3": GuardOptions(change=3.0),
    "no doubt": GuardOptions(doubt=0.0, margin=0.0),
    "doubt, no margin": GuardOptions(margin=0.0),
    "doubt 0.5": GuardOptions(doubt=0.5),
    "margin 2": GuardOptions(margin=2.0),
    "margin 10": GuardOptions(margin=10.0),
    "faster 4": GuardOptions(faster=4.0),
    "cooling 0.94": GuardOptions(cooling=0.94),
    "cooling 0.985": GuardOptions(cooling=0.985),
}


def synthetic(drop: float, audit: float, runs: int) -> None:
    """What options of the guard come to where it is known how often each setting differs."""
    rule = GuardRule(
        drop,
        audit,
        tuple(
            GuardSetting(to_json(NeverPolicy(1)), float(differing * drop), (left, 1 - left))
            for left, differing in zip(_LEAVING[:-1].tolist(), _DIFFERING[:-1], strict=True)
        ),
    )
    print(f"allowed {100 * drop:g} %, {100 * audit:g} % audited; {runs} runs: 5,000 usual samples,")
    print("then 5,000 as told: of these, % that differ (runs beyond what is allowed)")
    print(f"{'':18s}{'usual: leave, audited':>22s}" + "".join(f"{name:>13s}" for name in _CHANGES))
    for name, options in _ALTERNATIVES.items():
        usual, beyond = [], {change: [] for change in _CHANGES}  # type: tuple[list[Any], Any]
        for seed in range(runs):
            watch, random = Watch(rule, options), Random(seed)
            usual.append(_answered(watch, random, *_CHANGES["same"], seed)[1:])
            for k, (change, how) in enumerate(_CHANGES.items()):
                beyond[change].append(
                    _answered(deepcopy(watch), deepcopy(random), *how, 1000 * (k + 1) + seed)[0]
                )
        left, audited = 100 * np.mean(usual, axis=0)
        told = [
            f"{100 * np.mean(found):6.2f} ({sum(one > drop for one in found):2d})"
            for found in beyond.values()
        ]
        print(f"{name:18s}{left:12.1f} %,{audited:5.1f} %" + "".join(f"{t:>13s}" for t in told))


def _answered(
    watch: Watch, random: Random, times: float, stay: float, seed: int
) -> tuple[float, float, float]:
    """Of 5,000 samples: share that differs, that leaves early, and that is audited."""
    rng, drop = np.random.default_rng(seed), watch.rule.drop
    leaving = _LEAVING * stay
    # The last setting that still lets a sample leave, and how often those samples differ.
    last = 5 - np.searchsorted(leaving[::-1], rng.random(5000), side="right")
    masses = -np.diff(_DIFFERING) / _DIFFERING[0] * times * drop
    chances = np.append(masses / -np.diff(leaving), 0.0)
    differs = rng.random(5000) < chances[last]
    differing = left = audits = 0
    for own, other in zip(last.tolist(), differs.tolist(), strict=True):
        level = watch.level
        leaves = level <= own
        if random.random() < watch.share:
            audits += 1
            watch.audited([other and k <= own for k in range(5)])
            if watch.level != level:
                continue
        else:
            left += leaves
            differing += leaves and other
        watch.took(0 if leaves else 1)
    return differing / 5000, left / 5000, audits / 5000


def main() -> None:
    """Builds, records, replays, prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="keep the artifact and the recorded answers")
    parser.add_argument("--drop", type=float, default=0.02, help="that the guard allows")
    parser.add_argument("--audit", type=float, default=0.05, help="share that is audited")
    parser.add_argument("--shuffles", type=int, default=10)
    parser.add_argument("--svg", type=Path, help="draw what differs along the streams")
    parser.add_argument("--live", action="store_true", help="run one stream through a session")
    parser.add_argument("--synthetic", action="store_true", help="streams that are known instead")
    options = parser.parse_args()
    print(describe_machine())
    if options.synthetic:
        synthetic(options.drop, options.audit, options.shuffles)
        return
    data = shared_data()
    with working_folder(options.folder) as folder:
        artifact = built(folder, data, options.drop, options.audit)
        streams = recorded(artifact, folder, data)
        loaded = read_artifact(artifact)
        network = loaded.manifest.network
        full = network.macs
        costs = ExitCosts(
            tuple(segment.macs / full for segment in network.segments),
            tuple(exit_.macs / full for exit_ in network.exits),
            1.0,
        )
        rule = GuardRule.from_json(loaded.policies["watched"].guard)
        differing = ", ".join(f"{100 * s.differing:.2f}" for s in rule.settings)
        print(
            f"guard: at most {100 * rule.drop:g} % may differ, {100 * rule.share:g} % audited; "
            f"settings differ in {differing} % of calibration"
        )
        curves = compare(rule, streams, costs, options.shuffles)
        if options.live:
            live(artifact, data, options.drop)
        if options.svg:
            options.svg.write_text(picture(curves, options.drop), encoding="utf-8")


if __name__ == "__main__":
    main()

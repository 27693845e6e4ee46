"""Skip gates on ResNet-56 and a DenseNet: accuracy, work and time, gates' cost counted.

    python -m benchmarks.gates [layers|channels|both|fitted|densenet|densenet_layers ...]
                               [--folder DIR] [--samples N] [--macs 95%,90%,85%,80%,75%]
                               [--steps 250] [--fit cifar10_train.npz] [--start FILE]
                               [--augment flips,crops]

``layers``, ``channels`` and ``both`` train gates and weights with `eecompile train` on 20,000
training images (or all: `benchmarks.cifar10` and ``--fit``), one target after the other, and keep
the files in the folder: a second run, or one that was stopped, goes on from them. ``fitted`` builds
the ONNX file with gates that are fitted without gradients; ``densenet`` does so for a small
DenseNet, dense layers and channels, which `benchmarks.train_densenet` trains first, and
``densenet_layers`` trains gates of its dense layers, and its weights. All is reported
on the last 5,000 test images, none of which was trained, fitted or chosen on. Times are those of
single images on one thread: each is answered with its gates deciding and at full depth, in turns of
25, in the same process. Training needs torch and, for five targets on two cores, half an hour a
kind.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import eecompile as ee
from benchmarks.machine import describe_machine, shared_data, working_folder
from eecompile.build_options import BuildOptions
from eecompile.cache import Cache
from eecompile.console import Steps, table
from eecompile.driver import build
from eecompile.outcomes import wilson

__all__ = ["Point", "main"]

HERE = Path(__file__).parent
WEIGHTS = "nets/resnet56_cifar10.th"
LAYERS = 'skip layers "layer*.*" gate recurrent(hidden: 10)'
# Groups of 16 channels where there are so many; shorter ones save less time than work.
CHANNELS = (
    'skip channels "layer2.*.conv1" gate {kind}(groups: 2)\n'
    '    skip channels "layer3.*.conv1" gate {kind}(groups: 4)'
)
SKIPS = {
    "layers": LAYERS,
    "channels": CHANNELS.format(kind="squeeze"),
    "both": f"{LAYERS}\n    {CHANNELS.format(kind='recurrent')}",
    "fitted": 'skip channels "layer*.*.conv1" gate fitted',
    "densenet": (
        'skip layers "features.*.*" gate fitted\n    skip channels "features.*.*.conv1" gate fitted'
    ),
    "densenet_layers": 'skip layers "features.*.*" gate recurrent(hidden: 10)',
}
#: Kinds that need no training -> the budgets that one build is made for, in per cent.
FITTED = {"fitted": (95, 90, 85, 80), "densenet": (95, 90, 85, 80)}
#: Kinds of networks that are made first -> their files.
MADE = {"fitted": "resnet56.onnx", "densenet": "densenet.pth", "densenet_layers": "densenet.pth"}
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FIRST = 5000  #: test image that is reported on
_TURN = 25  #: images of one side before the other has its turn


@dataclass(frozen=True)
class Point:
    """A network with its gates on the test images.

    Attributes:
        name: of the target.
        accuracy, low, high: with its 95 % interval, as fractions.
        full: accuracy with nothing left out, of the weights that were tuned with the gates.
        macs, latency: means as fractions of full depth.
        full_s: median full-depth time of a single image, seconds.
    """

    name: str
    accuracy: float
    low: float
    high: float
    full: float
    macs: float
    latency: float
    full_s: float

    @property
    def apart(self) -> float:
        """By how much the time is above what the multiply-accumulates say.

        >>> round(Point("75 %", 0.93, 0.92, 0.94, 0.94, 0.7, 0.75, 1e-3).apart, 3)
        0.071
        """
        return self.latency / self.macs - 1

    def row(self) -> list[str]:
        """For people."""
        return [
            self.name,
            f"{self.accuracy:.2%} [{self.low:.2%}, {self.high:.2%}]",
            f"{self.macs:.1%}",
            f"{self.latency:.1%}",
            f"{self.apart:+.1%}",
        ]


def write_file(
    path: Path, kind: str, data: Path, gates: str, policies: str, fit: Path | None = None
) -> Path:
    """A `.ee` file of the network with some kind of gates, trained on the images of `fit`."""
    source = f'source torch "{HERE / "networks.py"}:resnet56" weights "{data / WEIGHTS}"'
    made = MADE.get(kind)
    if made == "resnet56.onnx":
        source = f'source onnx "{made}"'
    if made == "densenet.pth":
        source = f'source torch "{HERE / "networks.py"}:densenet_small" weights "{made}"'
    text = (HERE / "gates.ee").read_text()
    if fit is not None:
        text = text.replace("cifar10_train_20k.npz", str(fit.resolve()))
    text = text.replace('"cifar10_', f'"{data}/cifar10_')
    named = f'{SKIPS[kind]}\n    gates "{gates}"' if gates else SKIPS[kind]
    text = text.replace("SOURCE", source).replace("SKIP", named).replace("POLICIES", policies)
    path.write_text(text)
    return path


def trained(folder: Path, kind: str, data: Path, options: argparse.Namespace) -> dict[str, Path]:
    """Target -> the file of its gates, trained where it is not there."""
    path = write_file(folder / f"{kind}.ee", kind, data, f"{kind}.gates.npz", "", options.fit)
    targets = options.macs.split(",")
    output = folder / f"{kind}.gates.npz"
    numbers = [target.strip().removesuffix("%") for target in targets]
    found = {f"{number} %": folder / f"{kind}-{number}.gates.npz" for number in numbers}
    if len(targets) == 1:
        found = {f"{numbers[0]} %": output}
    if not all(file.exists() for file in found.values()):
        done = subprocess.run(
            [
                *(sys.executable, "-m", "eecompile.cli", "train", str(path), "--tune-backbone"),
                *("--macs", options.macs, "--steps", str(options.steps), "--json"),
                *("--backbone-rate", str(options.backbone_rate), "--rate", str(options.rate)),
                *("--threads", str(options.threads), "-o", str(output)),
                *(("--start", str(options.start)) if options.start else ()),
                *(("--augment", options.augment) if options.augment else ()),
            ],
            stdout=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"training {kind} failed")
        (folder / f"{kind}.json").write_text(json.dumps(json.loads(done.stdout), indent=1))
    return found


def measured(name: str, artifact: Path, data: Path, count: int, policy: str | None = None) -> Point:
    """An artifact's policy (its default one) on the test images, beside its full depth."""
    net = ee.load(artifact, policy, threads=1)
    with np.load(data / "cifar10_test.npz") as held_out:
        images = held_out["images"][_FIRST : _FIRST + count]
        labels = held_out["labels"][_FIRST : _FIRST + count].astype(int)
    inputs = (images.astype(np.float32) / 255 - _MEAN) / np.array(_STD)
    inputs = np.ascontiguousarray(inputs.transpose(0, 3, 1, 2), np.float32)
    right, macs, ratios, full_s = 0, 0, [], []
    full = int((net.full_depth_batch(inputs).labels == labels).sum())
    for image in inputs[:_TURN]:
        net.run(image)
        net.full_depth(image)
    for start in range(0, len(inputs), _TURN):
        rows = range(start, min(start + _TURN, len(inputs)))
        answers = [net.run(inputs[row]) for row in rows]
        whole = [net.full_depth(inputs[row]) for row in rows]
        right += sum(a.label == labels[row] for a, row in zip(answers, rows, strict=True))
        macs += sum(answer.macs for answer in answers)
        ratios.append(_ratio(answers, whole))
        full_s += [answer.latency_s for answer in whole]
    good = wilson(right, len(inputs))
    return Point(
        name,
        good.value,
        good.low,
        good.high,
        full / len(inputs),
        macs / len(inputs) / net.manifest.network.macs,
        float(np.median(ratios)),
        float(np.median(full_s)),
    )


def _ratio(answers: list[ee.Answer], whole: list[ee.Answer]) -> float:
    """Mean time of some images over that of the same images at full depth.

    Images during which another process had the core are left out on both sides.
    """
    times = np.array([[a.latency_s, w.latency_s] for a, w in zip(answers, whole, strict=True)])
    usual = (times <= 1.5 * np.median(times, axis=0)).all(axis=1)
    gated, full = times[usual].mean(axis=0)
    return float(gated / full)


def points_of(folder: Path, kind: str, data: Path, options: argparse.Namespace) -> list[Point]:
    """The curve of one kind of gates."""
    cache = Cache(folder / "cache")
    if kind in MADE:
        prepare(folder, kind, data)
    if kind in FITTED:
        return fitted(folder, kind, data, options.samples, cache)
    found = []
    for name, gates in trained(folder, kind, data, options).items():
        path = write_file(folder / f"{gates.stem}.ee", kind, data, gates.name, "policy trained {}")
        output = folder / f"{gates.stem}.artifact"
        build(path, BuildOptions(output=output), Steps(0, quiet=True), cache)
        found.append(measured(name, output, data, options.samples))
    return found


def fitted(folder: Path, kind: str, data: Path, count: int, cache: Cache) -> list[Point]:
    """One build with a policy for each budget."""
    shares = FITTED[kind]
    policies = (f"policy at{share} {{ budget mean macs <= {share} % }}" for share in shares)
    path = write_file(folder / f"{kind}.ee", kind, data, "", "\n".join(policies))
    steps = Steps(0, quiet=True)
    built = build(path, BuildOptions(output=folder / f"{kind}.artifact"), steps, cache)
    times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in steps.times_s.items())
    print(f"\n{kind}: built in {times}")
    return [measured(f"{share} %", built.artifact, data, count, f"at{share}") for share in shares]


def prepare(folder: Path, kind: str, data: Path) -> None:
    """The network that gates are for, where it is not there."""
    made = folder / MADE[kind]
    command = ["benchmarks.train_densenet", str(folder)]
    if kind == "fitted":
        weights = str(data / WEIGHTS)
        command = ["benchmarks.networks", "export", "resnet56", "--weights", weights]
        command += ["--onnx", str(made)]
    if not made.exists():
        subprocess.run([sys.executable, "-m", *command], cwd=HERE.parent, check=True)


def main() -> None:
    """Print the curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", choices=[*SKIPS, []], default=[])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--macs", default="95%,90%,85%,80%,75%")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--backbone-rate", type=float, default=3e-4)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fit", type=Path, help="training images instead of the 20,000")
    parser.add_argument("--start", type=Path, help="gates to begin with")
    parser.add_argument("--augment", help="as of eecompile train")
    options = parser.parse_args()
    data = shared_data()
    print(describe_machine())
    with working_folder(options.folder) as folder:
        for kind in options.kinds or SKIPS:
            points = points_of(folder, kind, data, options)
            print(f"\n{kind}: with nothing left out {points[0].full:.2%}, full depth on one thread "
                  f"{1e3 * points[0].full_s:.3f} ms")  # fmt: skip
            table(
                ["target", "accuracy", "MACs", "time", "apart"], [p.row() for p in points], left=2
            )


if __name__ == "__main__":
    main()

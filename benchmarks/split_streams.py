"""Recorded answers of ResNet-56 and eight exits on CIFAR-10 images, clean and with noise.

    python -m benchmarks.split_streams FOLDER

Linear heads are fitted on 20,000 training images of the frozen backbone. What is recorded: the
first 5,000 test images ("calibrate"), and the last 5,000 ("0"), also with Gaussian noise of 0.5, 1
and 2 standard deviations of the normalised input ("0.5", "1", "2"). A few minutes and 1.5 GB of a
temporary folder; 9 MB are kept, and used by the next run. Needs torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eecompile.heads import HeadJob, fit_heads, make_head
from eecompile.outcomes import ExitCosts
from eecompile.policies import ExitOutputs
from eecompile.record import FitRecord, record

__all__ = ["NOISES", "POINTS", "Stream", "Streams", "recorded_streams"]

Array = np.ndarray[Any, Any]

#: Exit points, by what they cost from a fifth to nine tenths of the network.
POINTS = (
    *("layer1.4", "layer1.8", "layer2.1", "layer2.4"),
    *("layer2.7", "layer3.1", "layer3.3", "layer3.5"),
)
#: Standard deviations of the noise added to normalised test images.
NOISES = (0.0, 0.5, 1.0, 2.0)
_POOL, _CLASSES, _SEED = 4, 10, 0


@dataclass(frozen=True)
class Stream:
    """What the exits and the network answered.

    Attributes:
        exits: float32 (exits, n, classes), logits.
        final: float32 (n, classes), the network's own.
        labels: int64 (n,).
    """

    exits: Array
    final: Array
    labels: Array

    def outputs(self) -> list[ExitOutputs]:
        """Each exit's outputs, as policies see them."""
        return [ExitOutputs(logits) for logits in self.exits]


@dataclass(frozen=True)
class Streams:
    """All streams by name, and what the pieces cost as fractions of the network."""

    by_name: Mapping[str, Stream]
    costs: ExitCosts


def recorded_streams(folder: Path, data: Path) -> Streams:
    """The streams kept in a folder; recorded there first where they are not.

    Args:
        folder: for ``split_streams.npz``.
        data: with the data set and the weights.
    """
    path = folder / "split_streams.npz"
    if not path.exists():
        np.savez(path, **_recorded(folder, data))  # type: ignore[arg-type]
    with np.load(path) as kept:
        names = [key.removeprefix("labels.") for key in kept.files if key.startswith("labels.")]
        streams = {
            name: Stream(*(kept[f"{part}.{name}"] for part in ("exits", "final", "labels")))
            for name in names
        }
        segments, heads = (tuple(kept[f"macs.{part}"].tolist()) for part in ("segments", "heads"))
    full = sum(segments)
    shares = [tuple(macs / full for macs in part) for part in (segments, heads)]
    return Streams(streams, ExitCosts(shares[0], shares[1], 1.0))


def _recorded(folder: Path, data: Path) -> dict[str, Array]:
    """Arrays by name, from torch's forward passes."""
    import torch

    from benchmarks.exit_accuracy import Taps, backbone_macs, datasets
    from eecompile.cost import graph_macs

    torch.set_num_threads(2)
    weights, splits = data / "nets/resnet56_cifar10.th", datasets(data)
    heads = {point: make_head("linear", {"pool": _POOL}) for point in POINTS}
    taps = Taps(weights, heads, _POOL)
    kept = folder / "split_features"
    fit = record(
        FitRecord, taps, splits["fit"].batches(250), output="logits",
        exits=POINTS, recorded=POINTS, folder=kept,
    )  # fmt: skip
    jobs = {point: HeadJob(head, fit.recorded[point]) for point, head in heads.items()}
    fitted = fit_heads(jobs, fit.labels, _CLASSES, workers=2)

    def answers(batches: Iterator[tuple[Array, Array]]) -> dict[str, Array]:
        found: list[list[Array]] = []
        labels: list[Array] = []
        for images, own in batches:
            given = taps(images)
            logits = [heads[point].logits(given[point], fitted[point]) for point in POINTS]
            found.append([*logits, given["logits"]])
            labels.append(np.asarray(own, np.int64))
        *exits, final = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return {"exits": np.stack(exits), "final": final, "labels": np.concatenate(labels)}

    streams = {"calibrate": answers(splits["calibrate"].batches(250))}
    for sigma in NOISES:
        streams[f"{sigma:g}"] = answers(_noisy(splits["test"].batches(250), sigma))
        print(f"  recorded: noise {sigma:g}", flush=True)
    macs = {
        "macs.segments": backbone_macs(weights, data / "cifar10_train_20k.npz", POINTS),
        "macs.heads": [
            graph_macs(heads[p].graph(type_, fitted[p])) for p, type_ in taps.types().items()
        ],
    }
    named = {f"{part}.{name}": v for name, own in streams.items() for part, v in own.items()}
    return {**named, **{key: np.array(value) for key, value in macs.items()}}


def _noisy(batches: Iterator[tuple[Array, Array]], sigma: float) -> Iterator[tuple[Array, Array]]:
    random = np.random.default_rng(_SEED)
    for images, labels in batches:
        noise = sigma * random.standard_normal(images.shape, np.float32)
        yield images + noise if sigma else images, labels


def main() -> None:
    from benchmarks.machine import shared_data

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    streams = recorded_streams(folder, shared_data())
    for name, stream in streams.by_name.items():
        right = [float((part.argmax(1) == stream.labels).mean()) for part in stream.exits]
        full = float((stream.final.argmax(1) == stream.labels).mean())
        shown = " ".join(f"{accuracy:.1%}" for accuracy in (*right, full))
        print(f"{name:10} accuracy at each exit and at the end: {shown}")
    print("backbone up to each exit:", " ".join(f"{c:.1%}" for c in streams.costs.leaving))


if __name__ == "__main__":
    main()

"""What compiled code costs beside its kernels' work: calls, waiting for threads, the session.

Each figure is of networks made for it: chains of equal small layers, of which a longer one less a
shorter one is the layers' own time, and ResNet-56 cut into seven segments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import eecompile as ee
from benchmarks.networks import export_onnx
from benchmarks.peers import OURS, Subject, compile_file, ours
from benchmarks.suite import export
from benchmarks.turns import ratio, take_turns
from eecompile.build_options import BuildOptions
from eecompile.cache import Cache
from eecompile.compiled import CompiledStep
from eecompile.console import Steps
from eecompile.driver import build
from eecompile.runtime.lane import Chain, Lane
from eecompile.runtime.steps import Program

__all__ = ["Overhead", "measure_overheads"]

_ROUNDS = 60


@dataclass(frozen=True)
class Overhead:
    """A cost, its unit, and what it may be at most; None where nothing is asked."""

    name: str
    value: float
    unit: str
    bar: float | None

    def text(self) -> str:
        """One line for people.

        >>> Overhead("a call", 0.25, "us", 0.2).text()
        'a call: 0.25 us; <= 0.2 us: missed by 0.05'
        """
        said = f"{self.name}: {self.value:.2f} {self.unit}"
        if self.bar is None:
            return said
        missed = self.value - self.bar
        verdict = "met" if missed <= 0 else f"missed by {missed:.2f}"
        return f"{said}; <= {self.bar} {self.unit}: {verdict}"


def measure_overheads(folder: Path) -> list[Overhead]:
    """All of them; files go to `folder`."""
    return [
        _kernel_call(folder),
        *_waiting(folder),
        *_segment_calls(folder),
        _decisions(folder),
    ]


def _subject(name: str, model: nn.Module, shape: tuple[int, ...], folder: Path) -> Subject:
    path = folder / f"{name}.onnx"
    export_onnx(model, shape, path, exporter="torchscript")
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    return Subject(name, model, path, x)


def _chain(layer: Callable[[], nn.Module], count: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Sequential(layer(), nn.ReLU()) for _ in range(count)))


def _dense() -> nn.Module:
    return nn.Linear(16, 16)


def _conv() -> nn.Module:
    """20 us of work: what two threads share, though hardly worth it."""
    return nn.Conv2d(16, 16, 3, padding=1)


def _per_layer(
    layer: Callable[[], nn.Module],
    shape: tuple[int, ...],
    counts: tuple[int, int],
    threads: int,
    folder: Path,
) -> float:
    """Seconds of one layer: a chain of the larger count less one of the smaller."""
    sides = {}
    for count in counts:
        name = f"{layer.__name__[1:]}{count}"
        subject = _subject(name, _chain(layer, count), shape, folder)
        compiled, _ = compile_file(subject.path)
        if len(compiled.functions[0].kernels) < count:
            raise SystemExit(f"{name}: layers were joined, their calls cannot be measured")
        sides[str(count)] = ours(compiled, subject, threads).call
    turns = take_turns(sides, _ROUNDS)
    short, long = (turns[str(count)].best for count in counts)
    return (long - short) / (counts[1] - counts[0])


def _kernel_call(folder: Path) -> Overhead:
    """A 16x16 dense layer is 16 vector operations: all but some 20 ns of its time is the call's."""
    each = _per_layer(_dense, (1, 16), (50, 150), 1, folder)
    return Overhead("a kernel call, 256 products included", each * 1e6, "us", 0.2)


def _waiting(folder: Path) -> list[Overhead]:
    shape = (1, 16, 32, 32)
    alone, shared = (_per_layer(_conv, shape, (4, 12), n, folder) for n in (1, 2))
    return [
        Overhead("a kernel on 1 thread", alone * 1e6, "us", None),
        Overhead("the same on 2 threads", shared * 1e6, "us", None),
        Overhead("waiting for the other thread", (shared - alone / 2) * 1e6, "us", None),
    ]


def _segment_calls(folder: Path) -> list[Overhead]:
    """One dense layer as an artifact's only segment, called as a session calls it.

    Then the same as a step that a gate keeps or leaves out (it is a copy of 64 bytes then), once
    and 50 to 150 times in one call.
    """
    subject = _subject("segment", _chain(_dense, 1), (1, 16), folder)
    session = _artifact(subject, "", folder)
    network = session.manifest.network
    (segment,) = network.functions()
    step = CompiledStep(segment, keep="score", otherwise=segment.inputs[0][0])
    lane = Lane(session.library, network.inputs, [step], 1)
    call = lane.calls[segment.symbol]
    sides = {"plain": call.one}
    scores = lane.values["score"]
    for name, score in (("kept", 1), ("left", 0)):
        for count in (1, 50, 150):
            sides[f"{name}{count}"] = _steps(lane, step, count, scores, score)
    for count in (50, 150):
        sides[f"chain{count}"] = Chain(session.library.chain(), [call] * count).one
    turns = take_turns(sides, _ROUNDS)

    def each(name: str) -> float:
        return (turns[f"{name}150"].best - turns[f"{name}50"].best) / 100

    return [
        Overhead("a segment call from Python", turns["plain"].median * 1e6, "us", 1.0),
        Overhead("one of a step that a gate kept", turns["kept1"].median * 1e6, "us", 1.0),
        Overhead("a step over its function", (each("kept") - each("chain")) * 1e6, "us", 0.1),
        Overhead("a step left out", each("left") * 1e6, "us", 0.1),
    ]


def _steps(
    lane: Lane, step: CompiledStep, count: int, scores: np.ndarray, score: float
) -> Callable[[], None]:
    """The step so many times in one call, by a score."""
    program = Program(lane, [step] * count, [step.function.outputs[0][0]])
    part = program.part(0, count)

    def call() -> None:
        scores[0, 0] = score
        part.one()

    return call


def _decisions(folder: Path) -> Overhead:
    """ResNet-56 with six exits, none of them asked, against its one compiled function."""
    path = folder / "resnet56.onnx"
    model = export("resnet56", path)
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    subject = Subject("resnet56", model, path, x)
    points = ("layer2.1", "layer2.4", "layer2.7", "layer3.1", "layer3.3", "layer3.5")
    exits = "".join(f'    exit e{i} after "{p}" head linear\n' for i, p in enumerate(points))
    session = _artifact(subject, exits, folder)
    plain = ours(compile_file(path)[0], subject, 1)
    sides = {OURS: lambda: session.full_depth(x), "plain": plain.call}
    turns = take_turns(sides, _ROUNDS)
    cost = ratio(turns[OURS], turns["plain"]).median - 1
    return Overhead("decisions off over the plain network", 100 * cost, "%", 3.0)


def _artifact(subject: Subject, exits: str, folder: Path) -> ee.Session:
    """A network built with exits whose heads are fitted on noise: they cost what others cost."""
    rng = np.random.default_rng(0)
    shape = ", ".join(map(str, subject.x.shape))
    images = rng.standard_normal((64, *subject.x.shape[1:])).astype(np.float32)
    classes = subject.exact().shape[1]
    labels = np.arange(64) % classes
    np.savez(folder / "noise.npz", images=images, labels=labels)
    path = folder / f"{subject.name}.ee"
    path.write_text(
        f'eecompile 1\nmodel {subject.name} {{\n    source onnx "{subject.path}"\n'
        f"    input image: float32[{shape}]\n    output logits: classes({classes})\n{exits}}}\n"
        + ('data noise { fit "noise.npz" calibrate "noise.npz" }\n' if exits else ""),
        encoding="utf-8",
    )
    output = folder / f"{subject.name}.artifact"
    build(path, BuildOptions(output=output), Steps(0, quiet=True), Cache(folder / "cache"))
    return ee.load(output, threads=1)

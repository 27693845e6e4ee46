"""Gates that need no training: fitted during the build, by running the network forward.

Every block and group of channels is left out by itself, for the calibration samples that the
network is least sure of; what its answers lose, for the work saved,
is the price that the gates' scores are made of. A common shift of the scores then leaves out
everything below a price.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eecompile.cache import Cache, digest, source_digest
from eecompile.compiled import CompiledGraph
from eecompile.compiling import compile_graphs
from eecompile.console import Reporter
from eecompile.datasets import Dataset
from eecompile.gates import Gate, initial_parameters
from eecompile.gates.kinds import LEFT_OUT
from eecompile.gates.ranking import Item, Measured, Ranked, rank
from eecompile.gating import Gating
from eecompile.hardware import Machine
from eecompile.heads.graphs import GraphBuilder
from eecompile.ir import Graph, Op
from eecompile.passes.host import HostGraph
from eecompile.passes.pipelines import backbone_pipeline
from eecompile.planning import cut
from eecompile.runtime.runner import Runner
from eecompile.segments import SegmentGraph
from eecompile.spec import Model

__all__ = ["fit_gates"]

Array = np.ndarray[Any, Any]

#: Calibration samples looked at, at most, and bytes of them.
_POOL, _POOL_BYTES = 1500, 256 << 20
#: Samples that means are taken of.
_MEANS = 128
#: Samples that harm is measured on, at most and at least, and multiply-accumulates spent on it.
#: The answers for samples that the network is sure of hardly change, so only the least sure are
#: run. ResNet-56 on CIFAR-10, groups of 8 channels, 0.897 of the work: 92.7 % right with the 96
#: least sure of 1,000, 93.1 % with the 160 of 1,500 and means that count padding.
_MOST, _LEAST, _MACS = 160, 16, 6e12
#: Share of answers that may change at shift 0.
_CHANGED = 0.01
#: What is never left out has this score.
_NEVER = 30.0
#: Least price, as a share of the median one, and what tells equal scores apart.
_FLOOR, _APART = 2e-3, 0.02


def fit_gates(
    gating: Gating,
    host: HostGraph,
    model: Model,
    data: Dataset,
    machine: Machine,
    *,
    threads: int,
    seed: int,
    cache: Cache,
    progress: Reporter,
) -> Gating:
    """The gating with parameters of all gates; the result does not depend on `threads`.

    Args:
        gating: some of whose gates are unfitted; others are trained, and keep everything here.
        host: the source network; it is not changed.
        model: as in the file.
        data: calibration samples: held out from what the network was trained on, since for
            samples it knows by heart nothing does harm.
        machine: this one.
        threads: that share the samples.
        seed: of what is random: nothing but which parameters gates start with.
        cache: of results.
        progress: told of each measurement.

    Raises:
        CompileErrors: an operator has no compiled form, or some sample cannot be the input.
        ToolError: no linker.
    """
    plan = gating.plan
    key = digest(
        "gates", source_digest(), host.fingerprint(), dict(gating.parameters), repr(plan),
        repr(model), data.digest(), machine, seed,
    )  # fmt: skip

    def fitted() -> dict[str, Array]:
        pool = _pool(data)
        started = gating.with_parameters(
            {**initial_parameters(plan, seed), **gating.parameters}
        ).with_parameters(_left_out(gating, host, pool[:_MEANS]))
        segments = cut(host, model, backbone_pipeline(started.placed))
        compiled = compile_graphs(
            segments.graphs(), machine, segments.shown, cache, model.at("path")
        )
        network = CompiledGraph.of(segments, compiled.functions)
        bench = _Bench(Runner.of(compiled.load(), network), segments, pool, threads, progress)
        fit = _Fit(started, gating.unfitted, bench)
        return fit.parameters()

    return gating.with_parameters(cache.arrays(key, fitted))


def _pool(data: Dataset) -> Array:
    """The first calibration samples."""
    found: list[Array] = []
    count = most = _POOL
    for images, _ in data.batches():
        most = min(count, max(_MOST, _POOL_BYTES // images[0].nbytes))
        found.append(images)
        if sum(len(part) for part in found) >= most:
            break
    return np.concatenate(found)[:most]


def _left_out(gating: Gating, host: HostGraph, images: Array) -> dict[str, Array]:
    """What the means of channels give in the convolutions that read them, group by group.

    It is the mean over all positions: exact for channels that are constant where nothing is padded;
    at a border, where padding is read beside them, a little too much, and inside too little.
    """
    places = {gate.name: gate.place for gate in gating.unfitted if gate.place and gate.place.reader}
    if not places:
        return {}
    copy, graph = host.copy(), host.graph()
    for index, place in enumerate(places.values()):
        type_ = graph.types[place.value]
        builder = GraphBuilder("means", "x", type_)
        axes = tuple(range(2, len(type_.shape)))
        mean = builder.op("ReduceMean", "x", axes=axes, keepdims=0)
        (value,) = copy.splice(builder.build(mean), place.value, f"means{index}")
        copy.add_output(f"means{index}", value)
    source = graph.inputs[0]
    runs = [copy.run({source: image[None]}) for image in images]
    found = {}
    for index, (name, place) in enumerate(places.items()):
        means = np.mean([run[f"means{index}"][0] for run in runs], axis=0)
        assert place.reader is not None, "chosen by it"
        weight = graph.constants[place.reader.weight]
        reads = _reading_shares(graph, graph.producer()[place.reader.value])
        sums = (weight * reads).reshape(*weight.shape[:2], -1).sum(axis=2) * means
        groups = gating.plan.gate(name).groups
        rows = sums.reshape(len(sums), groups, -1).sum(axis=2).T
        found[f"gates.{name}.{LEFT_OUT}"] = np.ascontiguousarray(rows, np.float32)
    return found


def _reading_shares(graph: Graph, convolution: Op) -> Array:
    """For each tap of a kernel (k...), the share of positions where it reads no padding."""
    kernel = graph.types[convolution.inputs[1]].shape[2:]
    read = graph.types[convolution.inputs[0]].shape[2:]
    made = graph.types[convolution.outputs[0]].shape[2:]
    settings: Any = convolution.attributes
    found: Array = np.ones(())
    for axis, taps in enumerate(kernel):
        place = np.arange(made[axis])[:, None] * settings["strides"][axis]
        place = place + np.arange(taps) * settings["dilations"][axis] - settings["pads"][axis]
        inside = ((place >= 0) & (place < read[axis])).mean(axis=0)
        found = found[..., None] * inside
    return found


@dataclass
class _Bench:
    """The compiled network, run with things left out, and what its answers should be."""

    runner: Runner
    segments: SegmentGraph
    pool: Array
    threads: int
    progress: Reporter
    done: int = 0
    total: int = 0

    def __post_init__(self) -> None:
        (name, _), *_ = self.segments.inputs
        self.input, self.output = name, self.segments.output
        whole = self.runner.run_all({name: self.pool}, [self.output], self.threads)[self.output]
        self.whole = _log_softmax(whole.reshape(len(self.pool), -1))

    def least_sure(self, count: int) -> None:
        """From here on, only the samples whose best class has the least probability are run."""
        order = np.argsort(self.whole.max(axis=1), kind="stable")[:count]
        self.pool, self.whole = self.pool[order], self.whole[order]

    def run(self, keeps: Mapping[str, Array]) -> tuple[Array, float]:
        """Log probabilities (n, classes), and the mean work of a sample."""
        found = self.runner.run_gated(
            {self.input: self.pool}, [self.output], self.threads, keeps=keeps
        )
        rows = found.values[self.output].reshape(len(self.pool), -1)
        self.done += 1
        self.progress(self.done, max(self.total, self.done))
        return _log_softmax(rows), float(found.macs[:, -1].mean())


def _log_softmax(rows: Array) -> Array:
    rows = rows.astype(np.float64)
    rows = rows - rows.max(axis=1, keepdims=True)
    found: Array = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
    return found


@dataclass
class _Fit:
    """Fits the scores of some gates of a network."""

    started: Gating
    gates: Sequence[Gate]
    bench: _Bench
    counts: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.counts = {name: n for gate in self.gates for name, n in gate.outputs.items()}

    def parameters(self) -> dict[str, Array]:
        """All parameters of the gates."""
        items = [Item(name, group) for name, n in self.counts.items() for group in range(n)]
        wanted = int(_MACS / (max(len(items), 1) * max(self.started.plan.macs, 1)))
        looked_at = len(self.bench.pool)
        self.bench.least_sure(max(_LEAST, min(_MOST, wanted)))
        self.bench.total = len(items)
        order = rank(items, self.measure)
        zero = self._zero(order, looked_at)
        scores = {name: np.full(n, _NEVER, np.float32) for name, n in self.counts.items()}
        for score, entry in zip(_scores(order, zero), order, strict=True):
            scores[entry.item.score][entry.item.group] = score
        found = {
            name: array
            for name, array in self.started.parameters.items()
            if any(name.startswith(f"gates.{gate.name}.") for gate in self.gates)
        }
        for name, biases in scores.items():
            gate, _, what = name.rpartition(".")
            found[f"gates.{gate}.{what}_bias"] = biases
        return found

    def measure(self, sets: Sequence[Collection[Item]]) -> list[Measured]:
        """Mean divergence of the answers, in nats, with sets of items left out."""
        found = []
        for left in sets:
            rows, work = self.bench.run(self._keeps(left))
            divergence = np.exp(self.bench.whole) * (self.bench.whole - rows)
            found.append(Measured(float(divergence.sum(axis=1).mean()), work))
        return found

    def _keeps(self, left: Iterable[Item]) -> dict[str, Array]:
        keeps = {name: np.ones((1, n), np.float32) for name, n in self.counts.items()}
        for item in left:
            keeps[item.score][0, item.group] = -1.0
        return keeps

    def _zero(self, order: Sequence[Ranked], looked_at: int) -> int:
        """How many items are left out at shift 0: few answers change."""
        whole = self.bench.whole.argmax(axis=1)
        low, high = 0, len(order)
        while low < high:  # the first count at which too many do, as if they rose steadily
            middle = (low + high + 1) // 2
            rows, _ = self.bench.run(self._keeps(entry.item for entry in order[:middle]))
            changed = int((rows.argmax(axis=1) != whole).sum())
            low, high = (middle, high) if changed <= _CHANGED * looked_at else (low, middle - 1)
        return low


def _scores(order: Sequence[Ranked], zero: int) -> Array:
    """Rising scores, the logarithm of the prices, 0 behind the first `zero`.

    Equal prices are told apart, so that a shift leaves out one item after the other.

    >>> ranked = [Ranked(Item("a", i), price) for i, price in enumerate((0.0, 1.0, 1.0, 4.0))]
    >>> [round(float(s), 2) for s in _scores(ranked, 2)]
    [-6.24, -0.01, 0.01, 1.42]
    """
    prices = np.array([entry.price for entry in order])
    known = prices[prices > 0]
    floor = np.median(known) * _FLOOR if len(known) else 1.0
    scores = np.log(np.maximum(prices, floor)) + _APART * np.arange(len(order))
    edges = np.concatenate([scores[:1] - 1.0, scores, scores[-1:] + 1.0])
    found: Array = scores - (edges[zero] + edges[zero + 1]) / 2
    return found.astype(np.float32)

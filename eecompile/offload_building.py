"""What a build makes for a policy that has a server finish samples: models, a rule, a report."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from eecompile.border_scales import int8_steps
from eecompile.compiled import CompiledGraph, Value
from eecompile.compiling import border_orders
from eecompile.datasets import Dataset
from eecompile.deviation import Deviation
from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.ir import Graph
from eecompile.offload_rule import OffloadRule, Tail, WireTensor
from eecompile.passes.onnx_emit import Unexpressible
from eecompile.passes.onnx_tails import OUTPUT, TailModel, tail_graph
from eecompile.policies.split import SplitPolicy
from eecompile.policy_building import BuiltPolicy
from eecompile.roundings import quantised
from eecompile.runtime.offload.wire import as_sent, as_taken
from eecompile.runtime.runner import Runner
from eecompile.segments import SegmentGraph
from eecompile.server_folder import VERSION, write_server_folder
from eecompile.spec import Offload, Policy

__all__ = ["BuiltOffloads", "build_offloads"]

#: Samples that steps are fitted on, those the cost of a border is measured on, and those a tail is
#: compared with the network on.
_FITTED, _MEASURED, _COMPARED = 256, 500, 4
#: Values of a border that are looked at together, at most.
_MOST_VALUES = 1 << 27
#: Of a digest, in a model's name: 48 bits.
_DIGITS = 12


@dataclass(frozen=True)
class BuiltOffloads:
    """The policies of a build with their rules for servers, and what servers need.

    Attributes:
        policies: all of the build's, by name.
        models: what servers load, by name.
    """

    policies: dict[str, BuiltPolicy]
    models: Mapping[str, tuple[Tail, bytes]] = field(default_factory=dict)

    def write(self, folder: Path, network: str) -> Path | None:
        """The folder written for servers; None where no policy asks any.

        Raises:
            CompileErrors: it cannot be written.
        """
        if not self.models:
            return None
        write_server_folder(folder, network, self.models)
        return folder


@dataclass(frozen=True)
class _Samples:
    inputs: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, data: Dataset, count: int, seed: int) -> _Samples:
        """So many of the samples, each as likely as any other."""
        rng = np.random.default_rng(seed)
        keys, images, labels = np.empty(0), np.empty(0), np.empty(0, np.int64)
        for batch, its_labels in data.batches(256):
            keys = np.concatenate([keys, rng.random(len(batch))])
            kept = np.sort(np.argsort(keys, kind="stable")[:count])
            images = (np.concatenate([images, batch]) if len(images) else batch)[kept]
            labels, keys = np.concatenate([labels, its_labels])[kept], keys[kept]
        return cls(images, labels)


def build_offloads(
    written: Sequence[Policy],
    policies: Mapping[str, BuiltPolicy],
    segments: SegmentGraph,
    network: CompiledGraph,
    runner: Runner,
    splits: Mapping[str, Dataset],
    inputs: Mapping[str, np.ndarray],
    *,
    threads: int,
    seed: int,
) -> BuiltOffloads:
    """The policies' rules for servers, with the tails they need; each tail checked.

    Args:
        written: as in the file.
        policies: as built, by name.
        segments: the network with its exits.
        network: the same, compiled for this machine.
        runner: runs that.
        splits: the data; int8 borders are fitted on "calibrate", and every compressed border's
            cost is measured on "test".
        inputs: (n, ...) by name, to compare tails with the network on.
        threads: that work on the data.
        seed: of everything random.

    Raises:
        CompileErrors: an int8 border without data, or a tail that cannot be written or computes
            something else than the network.
    """
    found, models = dict(policies), dict[str, tuple[Tail, bytes]]()
    job: _Offloads | None = None
    for policy in written:
        if policy.offload is None:
            continue
        job = job or _Offloads(segments, network, runner, splits, inputs, threads, seed)
        built = found[policy.name]
        tails, rows = {}, []
        for index in _exits_of(built, segments):
            tail, content, row = job.tail(index, policy.offload)
            tails[index], models[tail.model] = tail, (tail, content)
            rows.append(row)
        offload = policy.offload
        rule = OffloadRule(offload.urls, offload.border, offload.timeout_s, offload.retries, tails)
        report = {**built.report, "offload": {"border": offload.border, "tails": rows}}
        found[policy.name] = replace(built, offload=rule.to_json(), report=report)
    return BuiltOffloads(found, models)


def _exits_of(built: BuiltPolicy, segments: SegmentGraph) -> Sequence[int]:
    """The exits samples may be sent from."""
    policy = built.policy
    if not isinstance(policy, SplitPolicy):
        return range(len(segments.exits))
    return policy.exits if policy.at is None else (policy.at,)


@dataclass(frozen=True)
class _Offloads:
    """What the tails of a build are made from; values are computed once."""

    segments: SegmentGraph
    network: CompiledGraph
    runner: Runner
    splits: Mapping[str, Dataset]
    inputs: Mapping[str, np.ndarray]
    threads: int
    seed: int
    _samples: dict[str, _Samples] = field(default_factory=dict)
    _made: dict[tuple[int, str], tuple[Tail, bytes, dict[str, Any]]] = field(default_factory=dict)

    @cached_property
    def orders(self) -> dict[str, tuple[int, ...]]:
        """Of values that cross a border: see `border_orders`."""
        return border_orders(self.segments.graphs(), self.segments.shown)

    def tail(self, index: int, offload: Offload) -> tuple[Tail, bytes, dict[str, Any]]:
        """The tail behind exit `index`, its ONNX file, and what is reported of it."""
        key = (index, offload.border)
        if key not in self._made:
            self._made[key] = self._make(index, offload)
        return self._made[key]

    def _make(self, index: int, offload: Offload) -> tuple[Tail, bytes, dict[str, Any]]:
        graph = tail_graph(self.segments, index)
        exit_ = self.segments.exits[index].name
        wire = self._wire(graph, offload)
        try:
            model = TailModel.of(graph, wire, self.orders)
        except Unexpressible as why:
            message = f"The network behind exit `{exit_}` cannot be written for a server: {why}"
            raise CompileErrors(
                [Diagnostic("unsupported-operator", message, offload.at("urls"))]
            ) from why
        answer = graph.types[self.segments.output]
        output = WireTensor(self.segments.output, OUTPUT, answer.shape, answer.dtype)
        name = f"{_plain(self.segments.name)}-{_plain(exit_)}-{model.digest[:_DIGITS]}"
        tail = Tail(exit_, name, VERSION, tuple(wire), output)
        error = self._compared(index, tail, model, graph, offload)
        row = {
            "exit": exit_,
            "model": name,
            "version": VERSION,
            "bytes": sum(np.dtype(t.dtype).itemsize * int(np.prod(t.shape)) for t in wire),
            "max_abs_error": error,
            "test": self._cost(index, tail) if offload.border != "float32" else None,
        }
        return tail, model.content, row

    # -- the form tensors travel in ------------------------------------------------------------

    def _wire(self, graph: Graph, offload: Offload) -> list[WireTensor]:
        found = []
        for number, value in enumerate(graph.inputs):
            type_ = graph.types[value]
            order = self.orders.get(value, range(len(type_.shape)))
            shape = tuple(type_.shape[axis] for axis in order)
            made = WireTensor(value, f"border{number}", shape, type_.dtype)
            if type_.dtype == "float32" and offload.border == "float16":
                made = replace(made, dtype="float16")
            elif type_.dtype == "float32" and offload.border == "int8":
                scale, zero = int8_steps(self._calibration(value, offload))
                made = replace(made, dtype="int8", scale=scale, zero=zero)
            found.append(made)
        return found

    def _calibration(self, value: str, offload: Offload) -> np.ndarray:
        """Values of a border tensor on calibration data."""
        if "calibrate" not in self.splits:
            message = "The steps of an int8 border cannot be fitted"
            why = "there are no calibration data for a network with one input and known classes"
            help = "give `calibrate` data, or write `border float16`"
            place = offload.at("border")
            raise CompileErrors(
                [Diagnostic("missing-data", message, place, notes=(why,), help=help)]
            )
        samples = self._sampled("calibrate", _FITTED)
        size = int(np.prod(self.runner.types[value].shape))
        few = samples.inputs[: max(1, _MOST_VALUES // 8 // size)]
        return self._values(few, [value])[value]

    # -- checks and costs ----------------------------------------------------------------------

    def _compared(
        self, index: int, tail: Tail, model: TailModel, graph: Graph, offload: Offload
    ) -> float:
        """Largest deviation of the ONNX model from the network, given what it would be sent.

        Raises:
            CompileErrors: it is too large.
        """
        names = [tensor.value for tensor in tail.inputs]
        values = self._values({k: v[:_COMPARED] for k, v in self.inputs.items()}, names)
        expected = self._rest(index, tail, values)
        engine, seen = model.runner(), Deviation()
        for row, wanted in enumerate(expected):
            sent = {t.name: as_sent(t, values[t.value][row]) for t in tail.inputs}
            seen.add(engine.run(sent)[OUTPUT], wanted)
        if not seen.within and not quantised(graph):
            message = (
                f"The model written for servers of exit `{tail.exit}` differs from the network by"
                f" {seen.largest:.3g}"
            )
            help = "please report this with the network: it is a bug in eecompile"
            raise CompileErrors(
                [Diagnostic("not-equivalent", message, offload.at("urls"), help=help)]
            )
        return seen.largest

    def _cost(self, index: int, tail: Tail) -> dict[str, Any] | None:
        """What the border's form changes in the answers to held-out data; None without any."""
        if "test" not in self.splits:
            return None
        samples, output = self._sampled("test", _MEASURED), tail.output.value
        names = [tensor.value for tensor in tail.inputs]
        size = sum(int(np.prod(tensor.shape)) for tensor in tail.inputs)
        step, own, sent = max(1, _MOST_VALUES // 8 // size), list[int](), list[int]()
        for start in range(0, len(samples.labels), step):
            values = self._values(samples.inputs[start : start + step], [*names, output])
            own += values[output].reshape(len(values[output]), -1).argmax(1).tolist()
            rest = self._rest(index, tail, values)
            sent += rest.reshape(len(rest), -1).argmax(1).tolist()
        labels = samples.labels.tolist()
        count = len(labels)
        right = [sum(a == b for a, b in zip(given, labels, strict=True)) for given in (own, sent)]
        return {
            "n": count,
            "agreement": sum(a == b for a, b in zip(own, sent, strict=True)) / count,
            "full_depth_accuracy": right[0] / count,
            "accuracy": right[1] / count,
        }

    def _rest(self, index: int, tail: Tail, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """The network's answers (n, ...) from what a server would make of what is sent."""
        inputs: list[Value] = [(t.value, self.runner.types[t.value]) for t in tail.inputs]
        given = {
            t.value: np.stack(
                [as_taken(t, as_sent(t, one)).reshape(one.shape) for one in values[t.value]]
            )
            for t in tail.inputs
        }
        later = [f for part in self.network.segments[index + 1 :] for f in part.backbone]
        runner = Runner(self.runner.library, inputs, later)
        return runner.run_all(given, [tail.output.value], self.threads)[tail.output.value]

    def _values(
        self, inputs: np.ndarray | Mapping[str, np.ndarray], names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Values (n, ...) by name; the network's inputs among them where asked for."""
        if not isinstance(inputs, Mapping):
            inputs = {self.runner.inputs[0][0]: inputs}
        computed = [name for name in names if name not in inputs]
        found = self.runner.run_all(inputs, computed, self.threads)
        return {name: found[name] if name in found else inputs[name] for name in names}

    def _sampled(self, split: str, count: int) -> _Samples:
        if split not in self._samples:
            self._samples[split] = _Samples.of(self.splits[split], count, self.seed)
        return self._samples[split]


def _plain(name: str) -> str:
    """A name that every server and file system takes.

    >>> _plain("my net/2")
    'my_net_2'
    """
    return re.sub(r"[^A-Za-z0-9_.]", "_", name)[:60]

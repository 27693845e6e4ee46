"""The heads of a build: what they record, how they are fitted, and the graphs they become."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from eecompile.cache import Cache, digest, source_digest
from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.heads import Head, HeadJob, fit_heads, make_head
from eecompile.ir import Graph, TensorType
from eecompile.record import CalibrateRecord, FitRecord, Record
from eecompile.segments import SegmentGraph
from eecompile.spec import Exit, HeadSpec, Spec

__all__ = [
    "ExitPlan",
    "HeadPlan",
    "fit_plans",
    "graphs_of",
    "plan_exits",
    "with_heads",
    "with_outputs",
]

Parameters = Mapping[str, np.ndarray]
R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class HeadPlan:
    """One head or comparator of a build.

    Attributes:
        name: ``<exit>.logits`` or ``<exit>.class_means``: the network output it becomes.
        exit: the exit's name.
        spec: what the `.ee` file says.
        feature: type of the tapped tensor.
        head: how it is fitted; None for a head the user brings, whose graph is `given`.
        given: the user's own head.
        recorder: graph from the tap to what is recorded, under the name `recorded`.
    """

    name: str
    exit: str
    spec: HeadSpec
    feature: TensorType
    head: Head | None
    given: Graph | None
    recorder: Graph

    @property
    def recorded(self) -> str:
        """Name of the recorded array: the features, or a given head's output itself."""
        return self.recorder.outputs[0]


@dataclass(frozen=True)
class ExitPlan:
    """An exit's head and comparator, either of which may be missing."""

    name: str
    heads: tuple[HeadPlan, ...] = field(default=())


def plan_exits(spec: Spec, backbone: SegmentGraph) -> tuple[ExitPlan, ...]:
    """What is computed at each exit of `backbone`, in its order.

    Raises:
        CompileErrors: a head cannot read the tensor at its exit, or a user's head is unreadable.
        ToolError: a user's torch head without torch.
    """
    written = {exit_.name: exit_ for exit_ in spec.model.exits}
    plans = []
    for exit_ in backbone.exits:
        feature = backbone.segments[exit_.segment].graph.types[exit_.feature]
        plans.append(_plan_exit(spec, written[exit_.name], exit_.feature, feature, backbone))
    return tuple(plans)


def _plan_exit(
    spec: Spec, exit_: Exit, tap: str, feature: TensorType, backbone: SegmentGraph
) -> ExitPlan:
    wanted = [("logits" if exit_.head.kind != "class_means" else "class_means", exit_.head)]
    if exit_.comparator is not None:
        wanted.append(("class_means", exit_.comparator))
    plans = []
    for output, head in wanted:
        name = f"{exit_.name}.{output}"
        try:
            planned = _plan_head(spec, name, exit_.name, head, tap, feature)
        except ValueError as error:  # a head refuses a tensor it cannot read
            message = f"Head `{head}` cannot read the tensor {feature} at `{exit_.point}`"
            raise CompileErrors([Diagnostic("bad-head", message, head.span, str(error))]) from error
        if planned.given is not None:
            _check_given(planned.given, head, backbone)
        plans.append(planned)
    return ExitPlan(exit_.name, tuple(plans))


def _plan_head(
    spec: Spec, name: str, exit_: str, written: HeadSpec, tap: str, feature: TensorType
) -> HeadPlan:
    if written.kind in ("module", "onnx"):
        given = _given(spec, written, feature)
        names = {given.inputs[0]: tap, given.outputs[0]: name}
        recorder = _isolated(given, names, f"{name}.given")
        return HeadPlan(name, exit_, written, feature, None, given, recorder)
    head = make_head(written.kind, written.options)
    graph = head.feature_graph(feature)
    names = {graph.inputs[0]: tap, graph.outputs[0]: f"{name}.recorded"}
    recorder = _isolated(graph, names, f"{name}.recorder")
    return HeadPlan(name, exit_, written, feature, head, None, recorder)


def _given(spec: Spec, written: HeadSpec, feature: TensorType) -> Graph:
    if written.kind == "onnx":
        from eecompile.passes.onnx_host import load_onnx

        return load_onnx(spec.resolve(str(written.option("path"))), {"feature": feature}).graph()
    from eecompile.passes.fx_load import load_module_head

    path, _, function = str(written.option("entry")).rpartition(":")
    weights = written.option("weights")
    return load_module_head(
        f"{spec.resolve(path)}:{function}", weights and spec.resolve(str(weights)), feature
    )


def _check_given(given: Graph, written: HeadSpec, backbone: SegmentGraph) -> None:
    """A head that the user brings answers as the network does, or nothing can be compared.

    Raises:
        CompileErrors: it has another output.
    """
    wanted = backbone.segments[-1].graph.types[backbone.output]
    found = [given.types[name] for name in given.outputs]
    if found != [wanted]:
        message = f"Head `{written}` has to give one output {wanted}, as the network does"
        shown = f"gives {', '.join(map(str, found))}"
        raise CompileErrors([Diagnostic("bad-head", message, written.span, shown)])


def _isolated(graph: Graph, names: Mapping[str, str], name: str) -> Graph:
    """The graph with its interface renamed and every other value made its own."""
    inner = {value for op in graph.ops for value in op.outputs} | set(graph.constants)
    return graph.renamed({value: f"{name}/{value}" for value in inner} | dict(names), name)


def fit_plans(
    plans: Sequence[ExitPlan],
    fit: FitRecord,
    calibrate: CalibrateRecord | None,
    classes: int,
    *,
    seed: int,
    workers: int,
    cache: Cache,
    keys: Sequence[str],
    progress: Callable[[int, int, str], None],
) -> dict[str, Parameters]:
    """Parameters of every head to be fitted, by its name, from the cache where fitted before.

    Args:
        plans: the exits.
        fit: what heads are fitted on.
        calibrate: what temperatures are fitted on.
        classes: number of classes.
        seed: of everything random.
        workers: heads fitted at the same time.
        cache: of parameters.
        keys: content of the fit and, if there is one, the calibrate record.
        progress: told of each head.
    """
    heads = {
        plan.name: (plan.head, plan.recorded)
        for exit_ in plans
        for plan in exit_.heads
        if plan.head is not None
    }
    key_of = {
        name: digest(
            "head", source_digest(), list(keys), recorded, head.kind, head.options, classes, seed
        )
        for name, (head, recorded) in heads.items()
    }
    found = {name: cache.load_arrays(key) for name, key in key_of.items()}
    missing = {
        name: HeadJob(head, fit.recorded[recorded])
        for name, (head, recorded) in heads.items()
        if found[name] is None
    }
    started: set[str] = set()

    def tell(name: str, what: str) -> None:
        started.add(name)
        progress(len(started) - 1, len(missing), f"{name}: {what}")

    made = fit_heads(missing, fit.labels, classes, seed=seed, workers=workers, progress=tell)
    for name, parameters in made.items():
        head, recorded = heads[name]
        if calibrate is not None:
            parameters = head.calibrate(parameters, calibrate.recorded[recorded], calibrate.labels)
        cache.store_arrays(key_of[name], parameters)
        found[name] = parameters
    return {name: parameters for name, parameters in found.items() if parameters is not None}


def graphs_of(
    plans: Sequence[ExitPlan], parameters: Mapping[str, Parameters]
) -> tuple[dict[str, Graph], dict[str, Graph]]:
    """Exit -> graph of its head, and of its comparator."""
    heads: dict[str, Graph] = {}
    comparators: dict[str, Graph] = {}
    for exit_ in plans:
        for plan in exit_.heads:
            graph = plan.given
            if plan.head is not None:
                graph = plan.head.graph(plan.feature, parameters[plan.name])
            assert graph is not None, "a head is fitted or given"
            (heads if plan.name.endswith(".logits") else comparators)[exit_.name] = graph
    return heads, comparators


def with_heads(
    backbone: SegmentGraph, heads: Mapping[str, Graph], comparators: Mapping[str, Graph]
) -> SegmentGraph:
    """The backbone with heads and comparators at its exits, as if they had been inserted."""

    def inserted(graph: Graph | None, tap: str, output: str) -> Graph | None:
        if graph is None:
            return None
        names = {graph.inputs[0]: tap, graph.outputs[0]: output}
        return _isolated(graph, names, f"{output}.candidate")

    exits = tuple(
        replace(
            exit_,
            head=inserted(heads.get(exit_.name), exit_.feature, f"{exit_.name}.logits"),
            comparator=inserted(
                comparators.get(exit_.name), exit_.feature, f"{exit_.name}.class_means"
            ),
        )
        for exit_ in backbone.exits
    )
    return replace(backbone, exits=exits)


def with_outputs(record: R, plans: Sequence[ExitPlan], parameters: Mapping[str, Parameters]) -> R:
    """The record with what fitted heads give for its samples."""
    logits: dict[str, np.ndarray] = {}
    means: dict[str, np.ndarray] = {}
    for exit_ in plans:
        for plan in exit_.heads:
            recorded = record.recorded[plan.recorded]
            given = recorded.reshape(len(recorded), -1)
            if plan.head is not None:
                given = plan.head.logits(recorded, parameters[plan.name])
            (logits if plan.name.endswith(".logits") else means)[exit_.name] = np.asarray(given)
    return record.with_outputs(logits, means)

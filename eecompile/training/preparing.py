"""What a training run begins with: a file, a network and data that can be trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from eecompile.atomic import check_file
from eecompile.datasets import Dataset, Split, open_datasets
from eecompile.diagnostics import CompileErrors, Diagnostic, Diagnostics
from eecompile.dsl.check_gates import trained_skips
from eecompile.gates import GatePlan, initial_parameters
from eecompile.gating import Gating
from eecompile.ir import TensorType
from eecompile.loading import check_file as check_source
from eecompile.passes.base import PassManager, Program
from eecompile.passes.index_limits import index_limits
from eecompile.passes.pipelines import backbone_pipeline
from eecompile.passes.plan_gates import plan_gates
from eecompile.passes.resolve_points import ResolvePoints
from eecompile.planning import cut
from eecompile.segments import SegmentGraph
from eecompile.spec import Model, Spec
from eecompile.training.options import TrainOptions

if TYPE_CHECKING:
    from eecompile.passes.fx_host import FxHost

__all__ = ["Prepared", "prepare"]


@dataclass(frozen=True)
class Prepared:
    """A run whose file, network, data headers and destinations are in order.

    Attributes:
        spec: the file's meaning; of its gates those that are trained.
        host: the network without gates.
        plan: its gates.
        segments: the network cut at its exits, with steps where the gates decide.
        answer: name of the output with the scores.
        classes: how many.
        exits: name of each exit -> the value it reads, in order.
        splits: the data; `test` may be missing.
        warnings: what is allowed and hardly meant.
    """

    spec: Spec
    host: FxHost
    plan: GatePlan
    segments: SegmentGraph
    answer: str
    classes: int
    exits: Mapping[str, str]
    splits: Mapping[Split, Dataset]
    warnings: tuple[Diagnostic, ...]


def prepare(path: Path, options: TrainOptions) -> Prepared:
    """All checks that need no run of the network.

    Raises:
        CompileErrors: something cannot be read, cannot be trained, or could not be written.
        ToolError: torch is not installed.
    """
    for target in options.targets:
        check_file(options.file_for(target), may_make_folder=False)
    check_file(options.checkpoint, may_make_folder=False)
    spec, found_host, checked = check_source(path, options.overrides)
    # What a build would ask for is what is to be trained now.
    found = Diagnostics(told for told in checked if told.id != "untrained-gates")
    found.add(*_untrainable(spec))
    found.raise_errors()
    assert found_host is not None, "a host that cannot be opened is an error"
    model = replace(spec.model, skips=trained_skips(spec.model))
    host: FxHost = found_host  # type: ignore[assignment]  # a torch source's, checked above
    problems = Diagnostics()
    plan = plan_gates(model, host, problems)
    if not host.batched:
        message = "The network takes one sample at a time, and training needs batches"
        problems.error("untrainable", message, model.at("path"), "exported for a batch of 1 only")
    problems.raise_errors()
    program = Program(host.copy(), model)
    answer, value = next(iter(program.network_outputs().items()))
    type_ = host.graph().types[value]
    if type_.dtype != "float32" or len(type_.shape) != 2:
        message = f"Expected float32[1, classes] as the answer that is trained, found {type_}"
        raise CompileErrors([Diagnostic("wrong-classes", message, model.at("path"))])
    classes = type_.shape[1]
    splits = _splits(spec, host, classes)
    resolved = PassManager((ResolvePoints(),)).run(program).graph if model.exits else program
    exits = {exit_.name: exit_.value for exit_ in resolved.exits}
    placed = Gating(plan, initial_parameters(plan, 0)).placed  # no cost depends on parameters
    segments = cut(host.copy(), model, backbone_pipeline(placed))
    answer = next(name for name, shown in host.outputs().items() if shown == value)
    kept = replace(spec, models=(model, *spec.models[1:]))
    return Prepared(kept, host, plan, segments, answer, classes, exits, splits, found.in_order())


def _untrainable(spec: Spec) -> list[Diagnostic]:
    """Why the file has nothing that could be trained."""
    model: Model = spec.model
    if model.source != "torch":
        return [
            Diagnostic(
                "untrainable",
                "Only networks of torch can be trained",
                model.at("source"),
                "this one comes from an ONNX file",
                help="`skip layers ... gate fitted` needs no training: `eecompile build` fits it",
            )
        ]
    found = []
    if not trained_skips(model):
        fitted = bool(model.skips)
        found.append(
            Diagnostic(
                "untrainable",
                f"Model `{model.name}` has no gates to train",
                model.at("name"),
                "its gates are fitted when it is built" if fitted else "it skips nothing",
                help='add `skip layers "..." gate recurrent`; `eecompile init` proposes where',
            )
        )
    data = spec.data_for(model)
    for split, what in (("fit", "train on"), ("calibrate", "choose on")):
        if data is None or getattr(data, split) is None:
            found.append(
                Diagnostic(
                    "missing-data",
                    f"There are no `{split}` samples to {what}",
                    data.span if data else model.span,
                    f"no `{split}` here" if data else "its file has no `data`",
                    help=f'add `{split} "FILE.npz"` to a `data` block',
                )
            )
    return found


def _splits(spec: Spec, host: FxHost, classes: int) -> dict[Split, Dataset]:
    graph, data = host.graph(), spec.data_for(spec.model)
    assert data is not None, "checked before"
    if len(graph.inputs) != 1:
        message = "Gates can be trained for networks with one input only"
        notes = (f"this one has {len(graph.inputs)}: {', '.join(graph.inputs)}",)
        raise CompileErrors([Diagnostic("not-supported-yet", message, data.span, notes=notes)])
    input_: TensorType = graph.types[graph.inputs[0]]
    limits = index_limits(graph, graph.inputs[0])
    return open_datasets(spec, data, input_, classes, limits)

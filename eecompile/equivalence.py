"""The check every build makes: decisions off, the compiled network is the source network.

Networks that round to quanta are held to their neutral definition, and that to the source, rounding
by rounding: see `eecompile.roundings` for why.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan

import numpy as np

from eecompile.compiled import Value, batch_shape
from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.ir import TensorType
from eecompile.passes.base import Program
from eecompile.passes.host import HostGraph
from eecompile.reference import run_graph
from eecompile.roundings import Follower, Roundings, deviation, quantised, scale
from eecompile.segments import SegmentGraph, score_names
from eecompile.spec import Spec

__all__ = [
    "TOLERANCE",
    "Equivalence",
    "GatedEquivalence",
    "compare_gated",
    "compare_with_source",
    "example_inputs",
]

#: Largest deviation of an output, in units of its largest magnitude (or 1 where that is less):
#: float32 sums of a few thousand terms in another order differ by some 1e-6.
TOLERANCE = 1e-4
#: Samples that quantised networks are followed with; the neutral evaluator takes its time.
_FOLLOWED = 2
#: Where roundings fell otherwise, the compiled network may be this much farther from the definition
#: than the source's own engine is: both are extremes of a few samples.
_SPREAD = 2.0


@dataclass(frozen=True)
class Equivalence:
    """How far the compiled network is from the source network in its own engine.

    Attributes:
        max_abs_error: largest deviation of the network's own outputs; where the network is
            quantised, from its neutral definition, which was followed through the source.
        max_exit_error: the same of what exits give, heads run by the source's engine.
        source: the source network's outputs by name, (n, ...); none where it is quantised, for
            engines need not agree on those.
        max_source_error: largest deviation of the outputs from the source's engine, end to end.
        roundings: of quantised networks: how the source's engine rounded.
    """

    max_abs_error: float
    max_exit_error: float
    source: Mapping[str, np.ndarray] = field(repr=False)
    max_source_error: float = 0.0
    roundings: Roundings | None = None


def example_inputs(inputs: Sequence[Value], count: int, seed: int) -> dict[str, np.ndarray]:
    """Random inputs by name, (n, ...): normal floats, small whole numbers (valid class ids)."""
    rng = np.random.default_rng(seed)

    def values(type_: TensorType) -> np.ndarray:
        shape = batch_shape(type_, count)
        if type_.dtype.startswith("float"):
            return rng.standard_normal(shape).astype(type_.dtype)
        return rng.integers(0, 2, shape).astype(type_.dtype)

    return {name: values(type_) for name, type_ in inputs}


def compare_with_source(
    host: HostGraph,
    segments: SegmentGraph,
    inputs: Mapping[str, np.ndarray],
    values: Mapping[str, np.ndarray],
    spec: Spec,
) -> Equivalence:
    """Compare what the compiled network gave with the source network (its exits included).

    Args:
        host: the source network with its exits.
        segments: what was compiled.
        inputs: (n, ...) by name.
        values: every output and exit output of the compiled network, (n, ...) by name.
        spec: for names and places.

    Raises:
        CompileErrors: they differ by more than `TOLERANCE`; each output, with its deviation.
    """
    program = Program(host, spec.model)
    shown = {value: name for name, value in program.network_outputs().items()}
    names = {name: shown.get(value, name) for name, value in host.outputs().items()}
    samples = _samples(program, segments, inputs)
    own = set(segments.segments[-1].graph.outputs)
    source = _named([host.run(sample) for sample in samples], names)
    found = {name: values[name].reshape(len(samples), -1) for name in source if name in values}
    from_source = {name: deviation(found[name], source[name]) for name in found}
    if not quantised(host.graph()):
        wrong = {n: e for n, e in from_source.items() if not e <= TOLERANCE * scale(source[n])}
        _refuse(wrong, spec)
        mine = {name: array for name, array in source.items() if name in own}
        return Equivalence(*_largest(from_source, own), mine, _largest(from_source, own)[0])
    count = min(_FOLLOWED, len(samples))
    roundings = _followed(host, samples[:count], names, spec)
    graph, answers = host.graph(), host.outputs()
    runs = [run_graph(graph, sample) for sample in samples[:count]]
    defined = _named([{n: run[v] for n, v in answers.items()} for run in runs], names)
    errors = {name: deviation(found[name][:count], defined[name]) for name in found}
    spread = {n: _SPREAD * deviation(source[n][:count], defined[n]) for n in found}
    limits = {n: max(TOLERANCE * scale(defined[n]), spread[n]) for n in found}
    _refuse({name: error for name, error in errors.items() if not error <= limits[name]}, spec)
    return Equivalence(*_largest(errors, own), {}, _largest(from_source, own)[0], roundings)


@dataclass(frozen=True)
class GatedEquivalence:
    """How far the compiled network is from the source's with its masks, gates deciding.

    Attributes:
        max_abs_error: of all outputs, of the samples whose decisions are all the same.
        samples: how many there are.
        apart: of those, samples with a score so near 0 that it fell to the other side.
    """

    max_abs_error: float
    samples: int
    apart: int


def compare_gated(
    host: HostGraph,
    segments: SegmentGraph,
    inputs: Mapping[str, np.ndarray],
    values: Mapping[str, np.ndarray],
    spec: Spec,
) -> GatedEquivalence:
    """Compare what the compiled network gave, gates deciding, with the source's masked network.

    Args:
        host: the source network with its exits and masks.
        segments: what was compiled.
        inputs: (n, ...) by name.
        values: every output and exit output of the compiled network, and its gates' scores.
        spec: for names and places.

    Raises:
        CompileErrors: outputs differ by more than `TOLERANCE` where the decisions are the same, or
            decisions do by more than rounding.
    """
    program = Program(host, spec.model)
    shown = {value: name for name, value in program.network_outputs().items()}
    names = {name: shown.get(value, name) for name, value in host.outputs().items()}
    samples = _samples(program, segments, inputs)
    source = _named([host.run(sample) for sample in samples], names)
    scores, same = score_names(segments), np.ones(len(samples), bool)
    for name, within in scores.items():
        given = values[name].reshape(len(samples), -1)
        other = (given > 0) != (source[name] > 0)
        # What follows a decision that fell otherwise is another sample's way; what is left out
        # with a block is not computed here.
        other[~same if not within else ~(same & (values[within][:, 0] > 0))] = False
        _refuse_decisions(name, np.abs(given[other]), given, spec)
        same &= ~other.any(axis=1)
    found = {
        name: values[name].reshape(len(samples), -1)[same] for name in source if name not in scores
    }
    errors = {name: deviation(array, source[name][same]) for name, array in found.items()}
    limits = {name: TOLERANCE * scale(source[name]) for name in errors}
    if same.any():
        _refuse({name: e for name, e in errors.items() if not e <= limits[name]}, spec)
    return GatedEquivalence(
        max(errors.values(), default=0.0) if same.any() else 0.0,
        len(samples),
        int((~same).sum()),
    )


def _refuse_decisions(name: str, wrong: np.ndarray, scores: np.ndarray, spec: Spec) -> None:
    """Refuses decisions that rounding does not explain."""
    if not (wrong > TOLERANCE * scale(scores)).any():
        return
    raise CompileErrors(
        [
            Diagnostic(
                "not-equivalent",
                f"Gate `{name}` of the compiled network decides otherwise than the source's,"
                f" at a score of {wrong.max():.3g}",
                spec.model.at("path"),
                notes=("nothing was written",),
                help="please report this with the network: it is a bug in eecompile",
            )
        ]
    )


def _samples(
    program: Program, segments: SegmentGraph, inputs: Mapping[str, np.ndarray]
) -> list[dict[str, np.ndarray]]:
    """Each sample by the source's own input names, in the source's shapes."""
    given = {own: program.input_names()[own] for own in program.host.graph().inputs}
    types = dict(segments.inputs)
    return [
        {own: inputs[name][row].reshape(types[name].shape) for own, name in given.items()}
        for row in range(len(next(iter(inputs.values()))))
    ]


def _named(
    rows: Sequence[Mapping[str, np.ndarray]], names: Mapping[str, str]
) -> dict[str, np.ndarray]:
    """Outputs of samples one after the other, by the names of the artifact: (n, size)."""
    return {
        names[name]: np.stack([np.asarray(row[name]).reshape(-1) for row in rows])
        for name in rows[0]
    }


def _largest(errors: Mapping[str, float], own: Collection[str]) -> tuple[float, float]:
    """Largest error of the network's own outputs, and of its exits'."""
    return (
        max((e for name, e in errors.items() if name in own), default=0.0),
        max((e for name, e in errors.items() if name not in own), default=0.0),
    )


def _followed(
    host: HostGraph,
    samples: Sequence[Mapping[str, np.ndarray]],
    names: Mapping[str, str],
    spec: Spec,
) -> Roundings:
    """The neutral definition beside the source's engine; refused where they part."""
    follower = Follower(host)
    for sample in samples:
        follower.follow(sample)
    found = follower.found
    if found.wrong:
        raise CompileErrors([_wrong_steps(node, n, spec) for node, n in found.wrong.items()])
    _refuse({names[n]: e for n, e in found.errors.items() if not e <= TOLERANCE}, spec)
    return found


def _refuse(wrong: Mapping[str, float], spec: Spec) -> None:
    if wrong:
        raise CompileErrors([_refusal(name, error, spec) for name, error in wrong.items()])


def _wrong_steps(node: str, steps: int, spec: Spec) -> Diagnostic:
    return Diagnostic(
        "not-equivalent",
        f"Node `{node}` rounds otherwise than in the source network, by up to {steps} steps",
        spec.model.at("path"),
        notes=("at most one step is allowed; nothing was written",),
        help="please report this with the network: it is a bug in eecompile",
    )


def _refusal(name: str, error: float, spec: Spec) -> Diagnostic:
    return Diagnostic(
        "not-equivalent",
        f"Output `{name}` of the compiled network differs from the source network's by {error:.3g}",
        spec.model.at("path"),
        notes=(f"at most {TOLERANCE:g} of the largest value is allowed; nothing was written",),
        help="one of them is not finite: are the samples normalised as in training?"
        if isnan(error)
        else "please report this with the network: it is a bug in eecompile",
    )

"""The check every build makes: decisions off, the compiled network is the source network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from eecompile.compiled import Value, batch_shape
from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.ir import TensorType
from eecompile.passes.base import Program
from eecompile.passes.host import HostGraph
from eecompile.segments import SegmentGraph
from eecompile.spec import Spec

__all__ = ["TOLERANCE", "Equivalence", "compare_with_source", "example_inputs"]

#: Largest deviation of an output, in units of its largest magnitude (or 1 where that is less):
#: float32 sums of a few thousand terms in another order differ by some 1e-6.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Equivalence:
    """How far the compiled network is from the source network in its own engine.

    Attributes:
        max_abs_error: largest deviation of the network's own outputs.
        max_exit_error: largest deviation of what exits give, heads run by the source's engine.
        source: the source network's outputs by name, (n, ...).
    """

    max_abs_error: float
    max_exit_error: float
    source: Mapping[str, np.ndarray] = field(repr=False)


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
    given = {own: program.input_names()[own] for own in host.graph().inputs}
    types = dict(segments.inputs)
    rows: dict[str, list[np.ndarray]] = {}
    count = len(next(iter(inputs.values())))
    for row in range(count):
        sample = {own: inputs[name][row].reshape(types[name].shape) for own, name in given.items()}
        for name, array in host.run(sample).items():
            rows.setdefault(names[name], []).append(np.asarray(array))
    source = {name: np.stack(found).reshape(count, -1) for name, found in rows.items()}
    errors = {
        name: _deviation(values[name].reshape(count, -1), source[name])
        for name in source
        if name in values
    }
    wrong = {name: e for name, e in errors.items() if not e <= TOLERANCE * _scale(source[name])}
    if wrong:
        raise CompileErrors([_refusal(name, error, spec) for name, error in wrong.items()])
    own = set(segments.segments[-1].graph.outputs)
    return Equivalence(
        max((e for name, e in errors.items() if name in own), default=0.0),
        max((e for name, e in errors.items() if name not in own), default=0.0),
        {name: array for name, array in source.items() if name in own},
    )


def _deviation(found: np.ndarray, expected: np.ndarray) -> float:
    one, other = found.astype(np.float64), expected.astype(np.float64)
    # Equal infinities do not differ; a NaN differs from everything and makes the maximum NaN.
    apart = np.abs(np.subtract(one, other, out=np.zeros_like(one), where=one != other))
    return float(apart.max(initial=0.0))


def _scale(expected: np.ndarray) -> float:
    finite = np.abs(expected[np.isfinite(expected)].astype(np.float64))
    return max(1.0, float(finite.max(initial=0.0)))


def _refusal(name: str, error: float, spec: Spec) -> Diagnostic:
    return Diagnostic(
        "not-equivalent",
        f"Output `{name}` of the compiled network differs from the source network's by {error:.3g}",
        spec.model.at("path"),
        notes=(f"at most {TOLERANCE:g} of the largest value is allowed; nothing was written",),
        help="please report this with the network: it is a bug in eecompile",
    )

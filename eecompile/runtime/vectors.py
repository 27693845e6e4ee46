"""Test vectors: what an artifact must answer on a few inputs, bundled with it.

Arrays by name, one row a sample:

    input.NAME      each network input
    value.NAME      each output of the network and of its exits' heads and comparators, as the
                    compiled network gave them when it was built
    gated.NAME      the same with gates deciding, where there are gates
    source.NAME     each output of the source network, from its own engine
    exits.POLICY    int64: index of the exit each sample takes under a policy; the samples come in
                    this order to one that learns, and no server answers
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eecompile.artifact import Artifact, read_artifact
from eecompile.artifact_files import bad_artifact
from eecompile.compiled import CompiledGraph
from eecompile.deviation import Deviation
from eecompile.native_plan import plan_agrees
from eecompile.policies import (
    ExitOutputs,
    ExitPolicy,
    NeverPolicy,
    SplitPolicy,
    from_json,
    replay,
    replay_stream,
)
from eecompile.runtime.runner import Runner, batch_inputs
from eecompile.runtime.session import Session
from eecompile.signatures import Trusted

__all__ = ["Verification", "make_vectors", "shown_values", "verify_artifact"]


@dataclass(frozen=True)
class Verification:
    """What came of running an artifact's test vectors.

    Attributes:
        ok: whether every value is within the tolerance, every exit is the expected one, and the
            plan agrees.
        max_abs_error: largest deviation of the network's outputs from the source network's (from
            those of the build, where the artifact has no others).
        max_exit_error: largest deviation of heads and comparators from those of the build, and of
            all that is answered where gates decide.
        exits_agree: whether each policy took the expected exit for every sample, and ran exactly
            the segments up to it.
        plan_agrees: whether what the native runtime is told is what the other files say.
        samples: number of test vectors.
        files: the files whose hashes were checked.
    """

    ok: bool
    max_abs_error: float
    max_exit_error: float
    exits_agree: bool
    plan_agrees: bool
    samples: int
    files: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The keys scripts rely on: ok, max_abs_error, exits_agree, plan_agrees, files."""
        return {
            "ok": self.ok,
            "max_abs_error": self.max_abs_error,
            "max_exit_error": self.max_exit_error,
            "exits_agree": self.exits_agree,
            "plan_agrees": self.plan_agrees,
            "samples": self.samples,
            "files": list(self.files),
        }


def make_vectors(
    network: CompiledGraph,
    inputs: Mapping[str, np.ndarray],
    values: Mapping[str, np.ndarray],
    source: Mapping[str, np.ndarray],
    policies: Mapping[str, ExitPolicy],
    gated: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Test vectors for an artifact.

    Args:
        network: the compiled network.
        inputs: by name (n, ...).
        values: at least `shown_values(network)` by name, from a `Runner` on this or another
            machine.
        source: the source network's outputs by name.
        policies: those of the artifact.
        gated: `values` with gates deciding; None for a network without gates.
    """
    found = {f"input.{name}": inputs[name] for name, _ in network.inputs}
    found |= {f"value.{name}": values[name] for name in shown_values(network)}
    found |= {f"source.{name}": array for name, array in source.items()}
    if gated is not None:
        found |= {f"gated.{name}": gated[name] for name in shown_values(network)}
    for name, policy in policies.items():
        found[f"exits.{name}"] = _expected_exits(network, gated or values, policy)
    return found


def shown_values(network: CompiledGraph) -> tuple[str, ...]:
    """Names of the network's outputs and of what its exits compute."""
    functions = [f for exit_ in network.exits for f in exit_.functions]
    return tuple(name for f in (*functions, network.segments[-1]) for name, _ in f.outputs)


def _expected_exits(
    network: CompiledGraph, values: Mapping[str, np.ndarray], policy: ExitPolicy
) -> np.ndarray:
    outputs = []
    for exit_ in network.exits:
        head, comparator = (
            None if f is None else _rows(values[f.outputs[0][0]])
            for f in (exit_.head, exit_.comparator)
        )
        logits = comparator if head is None else head
        outputs.append(ExitOutputs(np.asarray(logits), comparator))
    final = _rows(values[network.output])
    if isinstance(policy, SplitPolicy):
        fresh = SplitPolicy.from_parameters(policy.parameters())
        return replay_stream(fresh, outputs, final, answered=0.0).exit
    return replay(policy, outputs, final).exit


def _rows(scores: np.ndarray) -> np.ndarray:
    return scores.reshape(len(scores), -1)


def verify_artifact(
    path: str | Path, threads: int | None = None, *, trusted: Trusted | None = None
) -> Verification:
    """Check an artifact's files, and who signed it if keys are given, then run its test vectors.

    What the native runtime reads is compared with the files that Python reads, too.

    Raises:
        CompileErrors: it cannot be loaded here, is not signed by a trusted key where any were
            given, or its test vectors do not fit it.
        ToolError: there are trusted keys, and `cryptography` is not installed.
    """
    artifact = read_artifact(path, trusted=trusted)
    # Opened with no policy of its own: one may need a server.
    session = Session(artifact, NeverPolicy(len(artifact.manifest.network.exits)), threads)
    vectors, network = artifact.vectors(), artifact.manifest.network
    inputs = {name: _vector(artifact, vectors, f"input.{name}") for name, _ in network.inputs}
    _, count = batch_inputs(inputs, network.inputs)
    names = shown_values(network)
    values = Runner.of(session.library, network).run_all(inputs, names, session.threads)
    outputs = {name for name, _ in network.segments[-1].outputs}
    final, exits = Deviation(), Deviation()
    for name in names:
        kind = "source" if name in outputs and f"source.{name}" in vectors else "value"
        expected = _vector(artifact, vectors, f"{kind}.{name}", values[name].size)
        (final if name in outputs else exits).add(values[name], expected)
    if network.gated:
        run = Runner.of(session.library, network).run_gated(inputs, names, session.threads)
        for name, found in run.values.items():
            exits.add(found, _vector(artifact, vectors, f"gated.{name}", found.size))
    agree = all(
        _exits_agree(session, name, inputs, _vector(artifact, vectors, f"exits.{name}", count))
        for name in session.policies
    )
    told = plan_agrees(artifact)
    return Verification(
        ok=agree and told and final.within and exits.within,
        max_abs_error=final.largest,
        max_exit_error=exits.largest,
        exits_agree=agree,
        plan_agrees=told,
        samples=count,
        files=tuple(sorted(artifact.manifest.members)),
    )


class _Nobody:
    """A server that never answers: whether an artifact is right depends on no other machine."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.last_failure = ""

    def connect(self) -> bool:
        return False

    def answer(self, exit_index: int, values: Mapping[str, np.ndarray]) -> np.ndarray | None:
        return None

    def close(self) -> None:
        return


def _vector(
    artifact: Artifact, vectors: Mapping[str, np.ndarray], name: str, size: int | None = None
) -> np.ndarray:
    found = vectors.get(name)
    if found is None or (size is not None and found.size != size):
        raise bad_artifact(artifact.path, f"`vectors.npz` has no fitting `{name}`")
    return found


def _exits_agree(
    session: Session, policy: str, inputs: Mapping[str, np.ndarray], expected: np.ndarray
) -> bool:
    """Whether single samples and the batch stop where they should, each from the beginning."""
    entry = session.artifact.policies[policy]
    if entry.offload is not None:
        shared = session.threads, session.library
        session = Session(session.artifact, policy, *shared, server=_Nobody())
    session.set_policy(policy)
    if entry.guard is not None:  # Its audits run to the end, at random.
        session.set_policy(from_json(entry.rule))
    if entry.halt is not None:  # Where it stops may depend on the time it takes.
        session.set_halt(None)
    names = session.exit_names
    batch = session.run_batch(inputs)
    if not np.array_equal(batch.exits, expected):
        return False
    if not np.array_equal(batch.segments_run, expected + 1):
        return False
    if entry.offload is not None:  # What was learned from the batch would lead elsewhere.
        session.set_policy(policy)
    for row, index in enumerate(expected.tolist()):
        one = session.run({name: array[row : row + 1] for name, array in inputs.items()})
        if one.exit != names[index] or one.segments_run != index + 1:
            return False
    return True

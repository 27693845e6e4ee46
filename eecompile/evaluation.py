"""`eecompile eval`: an artifact on labelled data, sample by sample, exits against full depth."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from eecompile.artifact import read_artifact
from eecompile.atomic import check_file
from eecompile.clock_rule import ClockRule
from eecompile.console import Reporter
from eecompile.cost_table import CostTable
from eecompile.datasets import Dataset, open_dataset
from eecompile.diagnostics import CompileErrors, Diagnostic, Source
from eecompile.dsl.given import given_budget, given_halt
from eecompile.dsl.overrides import apply_overrides
from eecompile.dsl.parser import parse, parse_file
from eecompile.gate_counts import NO_GATES, Decided, decided_by_gates, kept_when_run
from eecompile.halt_rule import HaltRule
from eecompile.outcomes import exits_json, exits_taken
from eecompile.policies import ExitPolicy
from eecompile.runtime.budgets import choose_point
from eecompile.runtime.guard_report import GuardReport
from eecompile.runtime.session import Session
from eecompile.signatures import Trusted
from eecompile.spec import DataSet

__all__ = ["Evaluation", "choose_budget", "evaluate_artifact", "open_test_data"]

_SAMPLES = 64
#: Samples that take turns where clocks are chosen.
_TURN = 16


@dataclass
class Evaluation:
    """Figures of one run over the data; `to_json` has the keys scripts rely on.

    `budget` is what an operating point of the policy was chosen for, None for the one built in.
    `clock` is the rule its clocks are chosen by, None where they are left alone; energies are what
    the artifact's cost table says, with `energy_provenance`. `offload` counts what became of
    samples for a server, `guard` is what was found out about exits; None where there is neither.
    `halt` is what each sample might spend, None where that was not limited. `decided` is what gates
    decide about, `kept` what ran of each sample's steps, see `Session.steps_kept`.
    """

    policy: str | None
    exit_names: tuple[str, ...]
    backbone_macs: int
    threads: int
    budget: str | None = None
    clock: ClockRule | None = None
    energy_provenance: str | None = None
    full_depth_energy_j: float | None = None
    clock_counts: Mapping[str, int] = field(default_factory=dict)
    labels: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    full_answers: list[int] = field(default_factory=list)
    exits: list[str] = field(default_factory=list)
    macs: list[int] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    full_latencies_s: list[float] = field(default_factory=list)
    energies_j: list[float | None] = field(default_factory=list)
    offloaded: list[bool] = field(default_factory=list)
    audited: list[bool] = field(default_factory=list)
    halted: list[bool] = field(default_factory=list)
    halt: HaltRule | None = None
    offload: Mapping[str, int] | None = None
    offload_failure: str | None = None
    guard: GuardReport | None = None
    decided: tuple[Decided, ...] = ()
    kept: list[np.ndarray] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """SI units; fractions are of the untouched backbone at full depth."""
        labels = np.asarray(self.labels)
        right = np.asarray(self.answers) == labels
        taken = np.array([self.exit_names.index(name) for name in self.exits])
        latencies = np.asarray(self.latencies_s)
        full = np.asarray(self.full_latencies_s)
        energies = [energy for energy in self.energies_j if energy is not None]
        known = len(energies) == len(labels)
        return {
            "n": len(labels),
            "accuracy": float(right.mean()),
            "full_depth_accuracy": float((np.asarray(self.full_answers) == labels).mean()),
            "mean_macs_fraction": float(np.mean(self.macs)) / max(self.backbone_macs, 1),
            "mean_latency_s": float(latencies.mean()),
            "p50_latency_s": float(np.quantile(latencies, 0.5)),
            "p99_latency_s": float(np.quantile(latencies, 0.99)),
            "full_depth_latency_s": float(full.mean()),
            "full_depth_p50_latency_s": float(np.quantile(full, 0.5)),
            "full_depth_p99_latency_s": float(np.quantile(full, 0.99)),
            "mean_energy_j": float(np.mean(energies)) if known else None,
            "full_depth_energy_j": self.full_depth_energy_j if known else None,
            "energy_provenance": self.energy_provenance if known else None,
            "latency_provenance": "measured",
            "threads": self.threads,
            "exits": exits_json(exits_taken(self.exit_names, taken, right)),
            "policy": self.policy,
            "budget": self.budget,
            "differing_fraction": float(np.mean(np.not_equal(self.answers, self.full_answers))),
            "offloaded_fraction": float(np.mean(self.offloaded)),
            "audited_fraction": float(np.mean(self.audited)),
            "offload": self.offload,
            "offload_failure": self.offload_failure,
            "guard": self.guard and self.guard.to_json(),
            **self._gates_json(),
            **self._halt_json(),
            **self._clock_json(len(labels)),
        }

    def _gates_json(self) -> dict[str, Any]:
        """``blocks``, ``blocks_run`` and ``channels``: see `eecompile.gate_counts.counts_json`."""
        if not self.decided:
            return dict(NO_GATES)
        return kept_when_run(self.decided, np.stack(self.kept))

    def _halt_json(self) -> dict[str, Any]:
        """How many were stopped by a budget for each sample, and how many spent more after all.

        Energies are the cost table's, which is what is halted by: none is over.
        """
        found: dict[str, Any] = {
            "halt": None if self.halt is None else str(self.halt),
            "halted": float(np.mean(self.halted)),
            "worst_latency_s": float(np.max(self.latencies_s)),
            "over_budget": None,
        }
        if self.halt is not None:
            shares = np.asarray(self.macs) / max(self.backbone_macs, 1)
            spent = {"macs": shares, "latency_s": np.asarray(self.latencies_s)}
            over = {
                name: spent[name] - limit
                for name, limit in self.halt.given.items()
                if name in spent
            }
            found["over_budget"] = {
                name: {"samples": int((more > 1e-12).sum()), "most": float(max(more.max(), 0.0))}
                for name, more in over.items()
            }
        return found

    def _clock_json(self, count: int) -> dict[str, Any]:
        """What became of the deadline and the clocks, as `eval --board` says it too."""
        if self.clock is None:
            return {}
        return {
            "clock": str(self.clock),
            "deadline_s": self.clock.deadline_s,
            "deadline_misses": self.clock_counts["late"],
            "forced_answers": self.clock_counts["forced"],
            "transitions_per_sample": self.clock_counts["transitions"] / max(count, 1),
        }


def evaluate_artifact(
    path: Path,
    data: str,
    policy: str | None,
    budget: str | None,
    samples: int | None,
    progress: Reporter,
    threads: int | None = None,
    *,
    halt: str | None = None,
    endpoint: str | None = None,
    state: Path | None = None,
    trusted: Trusted | None = None,
) -> Evaluation:
    """Every sample through the exits and at full depth, in turn, so that noise hits both alike.

    On the artifact's threads unless their number is given. Where the policy chooses clocks, a few
    samples at a time take turns: full depth runs at the fastest clock, and going there and back
    for each would be no use of the policy. A policy that learns, and a guard, begin with what
    `state` holds, where that is a file, and it is written at the end. Where `trusted` names public
    keys, one of them must have signed the artifact.

    Raises:
        CompileErrors: the artifact, the data, the policy, the budget, the halt, the endpoint or the
            state are wrong, or the server has other models.
    """
    if state is not None:
        check_file(state, may_make_folder=False)  # before anything takes time
    artifact = read_artifact(path, trusted=trusted)
    name = policy or artifact.manifest.default_policy
    with Session(artifact, policy, threads, endpoint=endpoint) as session:
        if budget is not None:
            choose_budget(session, name, budget)  # It says where the text is wrong.
            limits, _ = given_budget("--budget", budget)
            session.set_budget({limits.quantity: limits.limit})
        if halt is not None:
            limit, _ = given_halt("--halt", halt)
            session.set_halt({limit.quantity: limit.limit})
        dataset = open_test_data(session, data)
        network = artifact.manifest.network
        found = Evaluation(name, network.exit_names, network.macs, session.threads, budget)
        found.clock, found.halt = session.clock_rule, session.halt
        found.decided = decided_by_gates(network)
        session.record_steps()
        if artifact.costs is not None:
            _with_energies(found, artifact.costs)
        total = min(dataset.count or samples or 0, samples or dataset.count or 0)
        if state is not None and state.exists():
            session.load_state(state)  # What is wrong with it is told before anything runs.
        _warm_up(session, dataset, state, answers=session.connect())
        sent = session.offload_counts
        turn = _TURN if session.clock_rule else 1
        for images, labels in dataset.batches(_SAMPLES):
            left = None if samples is None else samples - len(found.labels)
            for at in range(0, len(images[:left]), turn):
                rows = slice(at, at + turn if left is None else min(at + turn, left))
                _measure(session, images[rows], labels[rows].tolist(), found)
            progress(len(found.labels), total)
            if len(found.labels) == samples:
                break
        found.clock_counts, found.guard = session.clock_counts, session.guard
        counts = session.offload_counts
        found.offload = {name: n - sent[name] for name, n in counts.items()} or None
        found.offload_failure = session.offload_failure
        if state is not None:
            session.save_state(state)
        return found


def _with_energies(found: Evaluation, table: CostTable) -> None:
    """What the table says of energies: where they come from, and that of the full depth."""
    found.energy_provenance, fastest = table.energy_provenance, table.fastest
    whole = None if fastest is None else table.full_depth(fastest)
    found.full_depth_energy_j = None if whole is None else whole.energy_j


def _warm_up(session: Session, dataset: Dataset, state: Path | None, *, answers: bool) -> None:
    """Memory is touched and clocks are up; nothing of it is learned.

    Where no server `answers`, none is asked yet: samples that fail are to be seen in the figures.
    """
    images, _ = next(iter(dataset.batches(_SAMPLES)))
    for image in images:
        session.full_depth(image[None])
    for image in images if answers else ():
        session.run(image[None])
    session.reset_counts()
    if session.learns:
        session.reset_state()
        if state is not None and state.exists():
            session.load_state(state)


def _measure(
    session: Session, images: np.ndarray, labels: Sequence[int], found: Evaluation
) -> None:
    """Some samples with exits, then the same at full depth."""
    for image, label in zip(images, labels, strict=True):
        answer = session.run(image[None])
        found.labels.append(label)
        found.answers.append(int(answer.logits.argmax()))
        found.exits.append(answer.exit)
        found.macs.append(answer.macs)
        found.latencies_s.append(answer.latency_s)
        found.energies_j.append(answer.energy_j)
        found.offloaded.append(answer.offloaded)
        found.audited.append(answer.audited)
        found.halted.append(answer.halted)
        kept = session.steps_kept
        if kept is not None:
            found.kept.append(kept.copy())
    for image in images:
        full = session.full_depth(image[None])
        found.full_answers.append(int(full.logits.argmax()))
        found.full_latencies_s.append(full.latency_s)


def choose_budget(session: Session, name: str | None, text: str) -> ExitPolicy:
    """The policy's operating point for another budget than it was built for.

    Raises:
        CompileErrors: the budget cannot be read, the policy has no operating points, or none of
            them keeps it; what can be reached is named.
    """
    budget, place = given_budget("--budget", text)
    return choose_point(session.artifact, name, {budget.quantity: budget.limit}, place).make()


def open_test_data(session: Session, given: str) -> Dataset:
    """The data to report on.

    Args:
        session: of the artifact, whose normalisation and keys are used.
        given: ``FILE.npz``, ``FILE.npz[5000..]``, ``FILE.py:FUNCTION``, or a `.ee` file, whose test
            set is taken.

    Raises:
        CompileErrors: there are none, or they do not fit.
    """
    network = session.manifest.network
    if network.classes is None or len(network.inputs) != 1:
        message = f"`{network.name}` is no classifier of one input: its accuracy is not defined"
        raise CompileErrors([Diagnostic("bad-argument", message)])
    if '"' in given or not given.isprintable():
        raise CompileErrors([Diagnostic("bad-argument", f"`{given}` cannot be a path here")])
    if given.endswith(".ee"):
        spec, found = parse_file(given)
        found.raise_errors()
        data = spec.data_for(spec.model)
    else:
        written, _ = parse(Source("model.ee", session.artifact.source_text))
        written = apply_overrides(written, session.manifest.fitted.get("overrides", ()))
        spec, found = parse(Source("--data", f"eecompile 1 data given {{ test {_quoted(given)} }}"))
        found.raise_errors()
        known = written.data_for(written.model) or DataSet("data")
        data = replace(known, test=spec.data[0].test)
    (_, type_) = network.inputs[0]
    opened = data and open_dataset(spec, data, "test", type_, network.classes)
    if not opened:
        raise CompileErrors([Diagnostic("missing-data", f"`{given}` names no test data")])
    opened.check()
    return opened


def _quoted(given: str) -> str:
    """A path with its slice as the language writes it; Python's colon is understood too.

    >>> _quoted("test.npz[5000..]"), _quoted("test.npz[:10]")
    ('"test.npz"[5000..]', '"test.npz"[..10]')
    """
    match = re.fullmatch(r"(.*?)(\[[^\[\]]*\])?", given, re.DOTALL)
    assert match is not None, "the pattern matches any text"
    return f'"{match[1]}"{(match[2] or "").replace(":", "..")}'

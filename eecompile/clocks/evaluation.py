"""`eecompile eval --board`: answers of this machine, times and energies of a board not at hand.

The data go through the network here once, every exit's head included, gates deciding as the policy
has them; policy and scheduler are then replayed over what was recorded, with the board's costs. All
of those are modelled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eecompile.artifact import Artifact, PolicyEntry, read_artifact
from eecompile.board import Board
from eecompile.boards.file import read_board
from eecompile.clock_rule import ClockRule
from eecompile.clocks.checks import check_rule
from eecompile.clocks.fitting import fit_start
from eecompile.clocks.outcomes import clock_outcomes, outcome
from eecompile.clocks.paying import PaidCosts
from eecompile.clocks.planning import allowed_states, clock_rule
from eecompile.clocks.recording import recorded
from eecompile.clocks.simulation import Simulation
from eecompile.compiled import CompiledGraph
from eecompile.console import Reporter
from eecompile.cost_model import model_table
from eecompile.cost_table import CostTable
from eecompile.datasets import Dataset, open_dataset
from eecompile.diagnostics import CompileErrors, Diagnostic, Diagnostics, Span
from eecompile.dsl.given import given_deadline, given_frequency
from eecompile.dsl.parser import parse_file
from eecompile.evaluation import choose_budget, open_test_data
from eecompile.gate_counts import NO_GATES, decided_by_gates, kept_in_record
from eecompile.gated_costs import gated_costs
from eecompile.outcomes import ExitCosts, exits_json, exits_taken
from eecompile.policies import ExitPolicy, NeverPolicy, from_json
from eecompile.record import CalibrateRecord, TestRecord
from eecompile.runtime.governor import NoGovernor
from eecompile.runtime.paid import with_gates_run
from eecompile.runtime.scheduler import Scheduler
from eecompile.runtime.session import Session
from eecompile.signatures import Trusted
from eecompile.spec import Policy, Target

__all__ = ["BoardOptions", "evaluate_on_board", "read_rule"]


@dataclass(frozen=True, slots=True)
class BoardOptions:
    """What is to be evaluated.

    Attributes:
        artifact: folder; its code has to run on this machine.
        data: as for `eval`; of a `.ee` file that has calibration data the start clock is fitted.
        board: name, or the path of a board file.
        policy: of the artifact; None: its default one.
        deadline: as the language writes it ("40 ms safe"); None: the policy's own.
        frequency: likewise ("lowest_energy").
        budget: chooses another operating point of the policy.
        samples: at most so many.
        threads: cores that work on an answer there; None: as many as the artifact was built for.
        cluster: of the board, that answers; None: the scheduler chooses.
        trusted: public keys, one of which must have signed the artifact; None: anybody may have.
    """

    artifact: Path
    data: str
    board: str
    policy: str | None = None
    deadline: str | None = None
    frequency: str | None = None
    budget: str | None = None
    samples: int | None = None
    threads: int | None = None
    cluster: str | None = None
    trusted: Trusted | None = None


def evaluate_on_board(options: BoardOptions, progress: Reporter) -> dict[str, Any]:
    """The figures as a JSON value; keys scripts rely on, SI units.

    Raises:
        CompileErrors: the artifact, the data, the policy, the board or the rule are wrong, or the
            artifact's code cannot run here.
    """
    artifact, board = _read_artifact(options), read_board(options.board)
    name = options.policy or artifact.manifest.default_policy
    network, entry = artifact.manifest.network, artifact.policies.get(name or "")
    if entry is not None and entry.offload is not None:
        message = f"Policy `{name}` has a server answer: no replay knows how long that takes"
        help_ = "take a policy that leaves early, or evaluate it on this machine without `--board`"
        raise CompileErrors([Diagnostic("bad-argument", message, help=help_)])
    session = Session(artifact, options.policy, governor=NoGovernor())
    stored = None if entry is None else entry.clock
    rule, written = read_rule(options.deadline, options.frequency, stored)
    threads = options.threads or artifact.manifest.target.cores
    table = _table(artifact, board, threads, options.cluster)
    found = Diagnostics()
    deadline = written.at("deadline") if options.deadline is not None else None
    frequency = written.at("frequency") if options.frequency is not None else None
    # As in a session: without a policy decisions are off, those of gates as well.
    at_most = table if entry is None else with_gates_run(network, table)
    found.add(*check_rule(rule, at_most, deadline, frequency))
    found.raise_errors()
    policy: ExitPolicy = NeverPolicy(len(network.exits))
    if options.budget is not None:
        policy = choose_budget(session, name, options.budget)
    elif entry is not None:
        policy = from_json(entry.rule)
    dataset, calibration = open_test_data(session, options.data), _calibration(session, options)
    shift, fitted_on = None if entry is None else policy.gate_shift, 0
    if calibration is not None and rule.objective == "lowest_energy":
        known = recorded(CalibrateRecord, session, calibration, None, progress, shift)
        paid = PaidCosts.of(network, table, known.shares)
        rule, fitted_on = fit_start(policy, known, at_most, rule, paid), len(known)
    tested = recorded(TestRecord, session, dataset, options.samples, progress, shift)
    scheduler = Scheduler(at_most, rule)
    return {
        **_figures(policy, tested, table, scheduler, network),
        "energy_provenance": "modelled" if table.energy_covers else None,
        "latency_provenance": "modelled",
        "threads": threads,
        "policy": name,
        "budget": options.budget,
        "board": board.name,
        "cluster": options.cluster,
        "deadline_s": rule.deadline_s,
        "clock": str(rule),
        "start_fitted_on": fitted_on,
        "model": _model(board, table),
        "notes": [
            *_notes(found, scheduler, table),
            *_gate_notes(network, tested, rule),
            *_unwatched(entry),
        ],
        # As `eval` has them: nothing is sent, no guard is at work, and nothing is halted.
        **{"offloaded_fraction": 0.0, "offload": None, "offload_failure": None},
        **{"audited_fraction": 0.0, "guard": None},
        **{"halt": None, "halted": 0.0, "over_budget": None},
    }


def _table(artifact: Artifact, board: Board, threads: int, cluster: str | None) -> CostTable:
    """Costs of an artifact's pieces at the clocks of the board, or of one cluster of it."""
    manifest = artifact.manifest
    allowed = allowed_states(board, Target(board.name, cluster=cluster))
    table = model_table(manifest.network, board, threads, manifest.target.name)
    return table.restricted([k for k, state in enumerate(table.states) if state in allowed])


def _read_artifact(options: BoardOptions) -> Artifact:
    try:
        return read_artifact(options.artifact, trusted=options.trusted)
    except CompileErrors as errors:
        if any(found.id != "wrong-machine" for found in errors.diagnostics):
            raise
        help_ = (
            "its answers are computed on this machine and its costs modelled for the board: build "
            f"it with `--target host`, and give `--board {options.board}` here"
        )
        raise CompileErrors([replace(d, help=help_) for d in errors.diagnostics]) from None


def read_rule(
    deadline: str | None, frequency: str | None, stored: Mapping[str, Any] | None
) -> tuple[ClockRule, Policy]:
    """The stored rule with what is given on the command line in its place, and that as written.

    A stored start belongs to the costs it was fitted with and is left out.

    Raises:
        CompileErrors: what is given cannot be read.

    >>> rule, _ = read_rule("40 ms safe", None, ClockRule("race_to_idle").to_json())
    >>> print(rule)
    frequency race_to_idle, deadline 40.0 ms safe
    """
    known = ClockRule("unchanged") if stored is None else ClockRule.from_json(stored)
    known = replace(known, start=None)
    found, policy, spans = Diagnostics(), Policy("given"), dict[str, Span]()
    try:
        if deadline is not None:
            value, spans["deadline"] = given_deadline("--deadline", deadline)
            policy = replace(policy, deadline=value)
    except CompileErrors as errors:
        found.add(*errors.diagnostics)
    try:
        if frequency is not None:
            chosen, spans["frequency"] = given_frequency("--frequency", frequency)
            policy = replace(policy, frequency=chosen)
    except CompileErrors as errors:
        found.add(*errors.diagnostics)
    found.raise_errors()
    policy = replace(policy, spans=spans)
    given = clock_rule(policy)
    if given is None:
        return known, policy
    clock, limit = (given if frequency is not None else known), known
    if deadline is not None:
        limit = given
    return (
        ClockRule(clock.objective, limit.deadline_s, limit.safe, limit.hard, clock.frequency_hz),
        policy,
    )


def _calibration(session: Session, options: BoardOptions) -> Dataset | None:
    """The calibration data of the `.ee` file that was given, if one was."""
    if not options.data.endswith(".ee"):
        return None
    spec, found = parse_file(options.data)
    found.raise_errors()
    network, data = session.manifest.network, spec.data_for(spec.model)
    if data is None or network.classes is None:
        return None
    (_, type_) = network.inputs[0]
    opened = open_dataset(spec, data, "calibrate", type_, network.classes)
    if opened is not None:
        opened.check()
    return opened


def _figures(
    policy: ExitPolicy,
    tested: TestRecord,
    table: CostTable,
    scheduler: Scheduler,
    network: CompiledGraph,
) -> dict[str, Any]:
    """Of the policy with its clocks, and of what that is compared with."""
    labels = tested.labels
    paid = PaidCosts.of(network, table, tested.shares)
    runs = dict(clock_outcomes(policy, tested, table, scheduler, paid))
    chosen, full = runs["chosen"], runs["full_depth_top_clock"]
    macs = _macs(network, {})
    as_paid = _macs(network, {tested.split: tested.shares} if tested.shares else {})

    def figures(found: Simulation) -> dict[str, Any]:
        costs = macs if found is full else as_paid
        spent = float(costs.paid(found.exit, found.evaluated, tested.split).mean())
        return outcome(found, labels) | {"mean_macs_fraction": spent / max(network.macs, 1)}

    whole = outcome(full, labels)
    taken = exits_taken(network.exit_names, chosen.exit, chosen.correct(labels))
    return {
        **figures(chosen),
        "full_depth_accuracy": whole["accuracy"],
        "full_depth_latency_s": whole["mean_latency_s"],
        "full_depth_energy_j": whole["mean_energy_j"],
        "full_depth_p50_latency_s": whole["p50_latency_s"],
        "full_depth_p99_latency_s": whole["p99_latency_s"],
        "differing_fraction": float((~chosen.correct(tested.as_built.argmax(axis=1))).mean()),
        "worst_latency_s": float(chosen.latency_s.max()),
        "exits": exits_json(taken),
        "clocks": _clocks(table, chosen, scheduler.home),
        "baselines": {name: figures(run) for name, run in runs.items() if run is not chosen},
        **_gates(network, tested, chosen.exit),
    }


def _macs(network: CompiledGraph, shares: Mapping[str, Mapping[str, np.ndarray]]) -> ExitCosts:
    """Multiply-accumulates, as samples of which so much was kept pay them: by split, and score."""
    pieces, heads = network.segments, network.exits
    counted = [tuple(float(one.macs) for one in some) for some in (pieces, heads)]
    steps = [float(function.macs) for _, function in network.named_steps()]
    whole = ExitCosts(counted[0], counted[1], float(network.macs))
    return gated_costs(whole, network, steps, shares)


def _gates(network: CompiledGraph, tested: TestRecord, exit_: np.ndarray) -> Mapping[str, Any]:
    """What gates kept of samples that leave at these exits, as `eval` tells it."""
    about = decided_by_gates(network)
    if not about:
        return NO_GATES
    everything = np.ones((len(tested), 1), np.float32)
    return kept_in_record(about, tested.shares or {a.score: everything for a in about}, exit_)


def _clocks(table: CostTable, found: Simulation, home: int) -> list[dict[str, Any]]:
    """Of each: what the full depth costs there, and the share of the time spent at it."""
    shares = found.seconds_at.sum(axis=0) / max(float(found.seconds_at.sum()), 1e-300)
    rows = []
    for index, state in enumerate(table.states):
        cost = table.full_depth(index)
        rows.append(
            {
                "cluster": state.cluster,
                "frequency_hz": state.frequency_hz,
                "voltage_v": state.voltage_v,
                "full_depth_latency_s": cost and cost.latency_s,
                "full_depth_energy_j": cost and cost.energy_j,
                "time_fraction": float(shares[index]),
                "begins": index == home,
            }
        )
    return rows


def _model(board: Board, table: CostTable) -> dict[str, Any]:
    """The board's numbers that costs were modelled with; None where no source gives one."""
    clusters = [
        {
            "name": cluster.name,
            "core": cluster.core,
            "cpus": len(cluster.cpus),
            # As device trees have it: uW / MHz / V^2.
            "dynamic_power_coefficient": cluster.capacitance_f and cluster.capacitance_f * 1e12,
            "static_power_w": cluster.static_power_w,
            "transition_latency_s": cluster.transition_latency_s,
        }
        for cluster in board.clusters
        if any(state.cluster == cluster.name for state in table.states)
    ]
    return {
        "clusters": clusters,
        "memory_bandwidth": board.memory_bandwidth,
        "idle_power_w": board.idle_power_w,
        "migration_latency_s": board.migration_latency_s,
        "energy_covers": table.energy_covers,
    }


def _gate_notes(network: CompiledGraph, tested: TestRecord, rule: ClockRule) -> list[str]:
    """What figures with gates stand for."""
    if not network.gated:
        return []
    if not tested.shares:
        return ["without a policy gates do not run: nothing is left out"]
    clocks = "clocks are chosen as if nothing to come was left out, by the time that went by"
    return [
        "gates are paid; blocks they leave out take nothing, and channels as much less as they "
        "save multiply-accumulates",
        "the full network is without its gates: nothing is left out",
        *[clocks] * (rule.sets_clocks or rule.deadline_s is not None),
    ]


def _unwatched(entry: PolicyEntry | None) -> list[str]:
    guarded = entry is not None and entry.guard is not None
    halts = entry is not None and entry.halt is not None
    return [
        *["the policy is taken as it was built: without its guard and the audits"] * guarded,
        *["the policy is taken without its halt: samples are not stopped"] * halts,
    ]


def _notes(found: Diagnostics, scheduler: Scheduler, table: CostTable) -> list[str]:
    """What the figures rest on, what is missing, and what to beware of."""
    work = f"work is that of code compiled for `{table.target}`"
    told = [f"{d.message} ({d.help})" if d.help else d.message for d in found.in_order()]
    return [*told, *scheduler.notes, work, *table.notes]

"""Many samples with decisions: those that leave are written down, those that stay close ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from eecompile.compiled import CompiledExit, CompiledGraph, batch_shape
from eecompile.diagnostics import InternalError
from eecompile.manifest import Manifest
from eecompile.memory import values_needed_after
from eecompile.policies.base import EXIT, HALT, OFFLOAD, ExitOutputs, ExitPolicy
from eecompile.runtime.answers import BatchAnswer
from eecompile.runtime.deciding import Deciding
from eecompile.runtime.inputs import Inputs, raw_inputs
from eecompile.runtime.lane import Call, Lane
from eecompile.runtime.library import Library, Team
from eecompile.runtime.runner import batch_inputs, chunk_size
from eecompile.runtime.steps import Part, Program

__all__ = ["Batches"]


class Batches:
    """Memory for samples that go through a network together. For one thread."""

    def __init__(self, library: Library, manifest: Manifest, team: Team | None) -> None:
        """Allocates nothing yet."""
        self._library, self._manifest, self._team = library, manifest, team
        network, threads = manifest.network, 1 if team is None else team.threads
        self._needed = values_needed_after(network)
        self._chunk = chunk_size(network.inputs, network.steps(), threads)
        self._room: Room | None = None

    def run(self, how: Deciding | None, x: Inputs, normalize: bool) -> BatchAnswer:
        """The answers for n samples: see `Session.run_batch`; None runs no exit head."""
        start = perf_counter()
        network = self._manifest.network
        given = raw_inputs(x, self._manifest) if normalize else x
        arrays, count = batch_inputs(given, network.inputs)
        results = Results(network, count)
        chunk = min(self._chunk, max(count, 1))
        room = self._room_for(chunk)
        room.decide(how)
        policy, lane = None if how is None else how.policy, room.lane
        if how is not None and how.halt is not None:
            policy = how.halt.policy(how.policy)
        for at in range(0, count, chunk):
            rows = slice(at, min(at + chunk, count))
            for name, array in arrays.items():
                lane.values[name][: rows.stop - at] = array[rows]
            run_chunk(network, room, policy, self._needed, results, rows)
        final = bool((results.exits == len(network.exits)).all())
        return BatchAnswer(
            results.logits,
            results.exits,
            network.exit_names,
            results.segments_run,
            results.heads_run,
            results.macs,
            perf_counter() - start,
            np.zeros(count, bool),
            results.halted,
            results.outputs if final else {},
            results.blocks_run if network.blocks else None,
            network.blocks,
        )

    def _room_for(self, capacity: int) -> Room:
        """Room for batches, kept between calls and replaced when it is too small."""
        room, network = self._room, self._manifest.network
        if room is None or room.lane.capacity < capacity:
            room = self._room = None  # Not both at once.
            lane = Lane(self._library, network.inputs, network.steps(), capacity, self._team)
            room = self._room = Room(network, lane)
        return room


class Room:
    """A lane, and the network's segments bound to it.

    Attributes:
        lane: for many samples.
        program: of all segments, where gates decide.
        segments: each of them, to be called.
    """

    def __init__(self, network: CompiledGraph, lane: Lane) -> None:
        """The lane has the network's steps."""
        self.lane, self.program = lane, segments_program(network, lane)
        if self.program is None:
            calls = [lane.calls[f.symbol] for part in network.segments for f in part.functions]
            self.segments: list[Call | Part] = [*calls]
        else:
            self.segments = [*segment_parts(network, self.program)]
        self._gates, self._shift = False, 0.0

    def decide(self, how: Deciding | None) -> None:
        """Whether gates do, from now on."""
        self._gates = how is not None and how.gates
        self._shift = 0.0 if how is None else how.policy.gate_shift

    def run(self, index: int, results: Results, ids: np.ndarray) -> None:
        """A segment for the samples at the front, and what it took for each."""
        program, count = self.program, len(ids)
        if program is None:
            self.segments[index].many(count)
            return
        program.begin(count, gates=self._gates, shift=self._shift)
        self.segments[index].many(count)
        results.macs[ids] += program.tallies["macs"][:count]
        results.blocks_run[ids] += program.tallies["blocks"][:count]


def segments_program(network: CompiledGraph, lane: Lane) -> Program | None:
    """The steps of all segments; None where no gates decide."""
    if not network.gated:
        return None
    steps = [step for segment in network.segments for step in segment.steps]
    seen = [name for exit_ in network.exits for f in exit_.functions for name, _ in f.inputs]
    return Program(lane, steps, [*seen, *(name for name, _ in network.segments[-1].outputs)])


def segment_parts(network: CompiledGraph, program: Program) -> list[Part]:
    """Each segment's part of `segments_program`."""
    found: list[Part] = []
    end = 0
    for segment in network.segments:
        first, end = end, end + len(segment.steps)
        found.append(program.part(first, end))
    return found


class Results:
    """Room for the answers of n samples; chunks write their own rows."""

    def __init__(self, network: CompiledGraph, count: int) -> None:
        """Rows of `outputs` are filled in for samples that reach the last segment."""
        self.outputs = {
            name: np.empty(batch_shape(type_, count), type_.dtype)
            for name, type_ in network.segments[-1].outputs
        }
        output = self.outputs[network.output]
        # The same memory: an exit's answer stands where the network's own would.
        classes = network.classes
        self.logits = output if classes is None else output.reshape(count, classes)
        self.exits = np.empty(count, np.int64)
        self.segments_run = np.zeros(count, np.int64)
        self.heads_run = np.zeros(count, np.int64)
        self.macs = np.zeros(count, np.int64)
        self.blocks_run = np.zeros(count, np.int64)
        self.halted = np.zeros(count, bool)


@dataclass(slots=True)
class _Group:
    """Samples that wait for the same exit: their rows in the lane, and the policy's state."""

    rows: np.ndarray
    due: int
    state: Any


def run_chunk(
    network: CompiledGraph,
    room: Room,
    policy: ExitPolicy | None,
    needed: Sequence[Sequence[str]],
    results: Results,
    rows: slice,
) -> None:
    """Take the samples in the lane through the network; their answers go to `rows` of `results`.

    A segment is called once for all samples that have not left; a head for those whose policy
    asked for it. Samples that want to be seen next at different exits are told apart.
    """
    lane, ids = room.lane, np.arange(rows.start, rows.stop)
    last = len(network.exits)
    groups = [_Group(np.arange(len(ids)), last, None)]
    if policy is not None and len(ids):
        groups = [_Group(groups[0].rows, policy.first(), policy.start(len(ids)))]
    for index, segment in enumerate(network.segments):
        room.run(index, results, ids)
        results.segments_run[ids] += 1
        results.macs[ids] += 0 if room.program is not None else segment.macs
        if index == last:
            break
        waiting: list[_Group] = []
        staying = np.ones(len(ids), bool)
        for group in groups:
            if group.due == index and policy is not None:
                waiting += _decide(network, lane, policy, index, group, results, ids, staying)
            else:
                waiting.append(group)
        groups = _joined(waiting)
        if not staying.all():
            kept = np.flatnonzero(staying)
            if not len(kept):
                return
            lane.keep(needed[index], kept)
            ids = ids[kept]
            moved = np.cumsum(staying) - 1
            for group in groups:
                group.rows = moved[group.rows]
    for name, output in results.outputs.items():
        output[ids] = lane.values[name][: len(ids)]
    results.exits[ids] = last


def _decide(
    network: CompiledGraph,
    lane: Lane,
    policy: ExitPolicy,
    index: int,
    group: _Group,
    results: Results,
    ids: np.ndarray,
    staying: np.ndarray,
) -> list[_Group]:
    """Evaluate exit `index` for a group: writes down who leaves, returns who waits for what."""
    exit_ = network.exits[index]
    outputs = _evaluate(exit_, lane, group.rows, len(ids))
    mine = ids[group.rows]
    results.heads_run[mine] += len(exit_.functions)
    results.macs[mine] += exit_.macs
    decisions = policy.decide(index, outputs, group.state)
    if (decisions == OFFLOAD).any():  # Samples that may be sent go one by one; here nobody answers.
        decisions = np.where(decisions == OFFLOAD, len(network.exits), decisions)
    halting = decisions == HALT
    leaving = halting | (decisions == EXIT)
    if leaving.any():
        results.halted[mine[halting]] = True
        results.logits[mine[leaving]] = policy.answer(index, outputs)[leaving]
        results.exits[mine[leaving]] = index
        staying[group.rows[leaving]] = False
    waiting = []
    for due in np.unique(decisions[~leaving]).tolist():
        if not index < due <= len(network.exits):
            raise InternalError(f"policy {policy.kind} asked for exit {due} after exit {index}")
        kept = np.flatnonzero(decisions == due)
        state = group.state if len(kept) == len(decisions) else policy.select(group.state, kept)
        waiting.append(_Group(group.rows[kept], due, state))
    return waiting


def _joined(groups: list[_Group]) -> list[_Group]:
    """Groups that wait for one exit as one, where there is no state to tell them apart."""
    if len(groups) < 2 or any(group.state is not None for group in groups):
        return groups
    found: dict[int, list[np.ndarray]] = {}
    for group in groups:
        found.setdefault(group.due, []).append(group.rows)
    return [_Group(np.sort(np.concatenate(rows)), due, None) for due, rows in found.items()]


def _evaluate(exit_: CompiledExit, lane: Lane, rows: np.ndarray, alive: int) -> ExitOutputs:
    """What an exit computes for some of the samples in the lane."""
    found: list[np.ndarray | None] = []
    for function in (exit_.head, exit_.comparator):
        if function is None:
            found.append(None)
            continue
        call, inputs = lane.calls[function.symbol], []
        if len(rows) < alive:
            inputs = [lane.copied(name, rows) for name, _ in function.inputs]
            call = lane.bound(function, inputs, [lane.values[function.outputs[0][0]]])
        call.many(len(rows))
        scores = lane.values[function.outputs[0][0]][: len(rows)]
        found.append(scores.reshape(len(rows), -1).copy())
    head, comparator = found
    logits = comparator if head is None else head
    if logits is None:
        raise InternalError(f"exit {exit_.name} computes nothing")
    return ExitOutputs(logits, comparator)

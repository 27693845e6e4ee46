"""One sample at a time: segment by segment, until the policy is content."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter

import numpy as np

from eecompile.compiled import CompiledExit
from eecompile.diagnostics import InternalError
from eecompile.manifest import Manifest
from eecompile.memory import border_values
from eecompile.policies.base import EXIT, OFFLOAD, ExitOutputs, ExitPolicy
from eecompile.runtime.answers import Answer
from eecompile.runtime.batch import segment_parts, segments_program
from eecompile.runtime.clock import Clock
from eecompile.runtime.deciding import Deciding
from eecompile.runtime.guard import Guard
from eecompile.runtime.halting import Halting
from eecompile.runtime.inputs import Inputs, copy_inputs
from eecompile.runtime.lane import Call, Chain, Lane
from eecompile.runtime.library import Library, Team
from eecompile.runtime.steps import Part, Program
from eecompile.runtime.stopping import StopWord

__all__ = ["Singles", "Stop"]


class Stop:
    """An exit bound to the memory of single samples."""

    __slots__ = ("calls", "exit", "macs", "outputs")

    def __init__(self, exit_: CompiledExit, lane: Lane) -> None:
        self.exit, self.macs = exit_, exit_.macs
        self.calls = tuple(lane.calls[function.symbol] for function in exit_.functions)
        scores = [
            None if f is None else lane.values[f.outputs[0][0]].reshape(1, -1)
            for f in (exit_.head, exit_.comparator)
        ]
        logits = scores[1] if scores[0] is None else scores[0]
        if logits is None:
            raise InternalError(f"exit {exit_.name} computes nothing")
        # Views of the lane's memory: they show what the latest call computed. What no function
        # reads stays to the end of the way, see `plan_network`.
        self.outputs = ExitOutputs(logits, scores[1])

    def run(self) -> ExitOutputs:
        """What it computes for the sample that is there; as it is until the next one."""
        for call in self.calls:
            call.one()
        return self.outputs


class Singles:
    """Memory for one sample, and everything bound to it. For one thread.

    Attributes:
        lane: the memory.
        program: the steps of all segments, where gates decide.
        stops: the exits.
        counts: samples answered by each exit, the final one last; shared with the session.
    """

    def __init__(
        self, library: Library, manifest: Manifest, team: Team | None, counts: list[int]
    ) -> None:
        """Allocates everything; answers allocate only what they hand out."""
        network = manifest.network
        self._manifest, self._exit_names = manifest, network.exit_names
        self._labels = manifest.labels
        self.lane = Lane(library, network.inputs, network.steps(), 1, team)
        self.program = segments_program(network, self.lane)
        values = self.lane.values
        self._inputs = [(name, type_, values[name]) for name, type_ in network.inputs]
        self._segments: list[tuple[Call | Part, int]]
        self._all: Chain | Part
        if self.program is None:
            calls = [self.lane.calls[f.symbol] for part in network.segments for f in part.functions]
            self._segments = [
                (call, part.macs) for call, part in zip(calls, network.segments, strict=True)
            ]
            self._all = Chain(library.chain(), calls, team)
        else:  # It counts what they take.
            self.program.table["cost"] = [step.function.macs for step in self.program.steps]
            self.program.table["group_cost"] = [step.group_macs for step in self.program.steps]
            self._segments = [(part, 0) for part in segment_parts(network, self.program)]
            self._all = self.program.part(0, len(self.program.steps))
        self.stops = [Stop(exit_, self.lane) for exit_ in network.exits]
        self._border = [
            [(name, values[name]) for name in names] for names in border_values(network)
        ]
        self._macs = 0 if self.program is not None else network.macs
        self._output, self._classes = network.output, network.classes
        self._last_outputs = [(name, values[name]) for name, _ in network.segments[-1].outputs]
        self.counts = counts

    @property
    def steps_kept(self) -> np.ndarray | None:
        """See `Session.steps_kept`."""
        if self.program is None or self.program.kept is None:
            return None
        return np.asarray(self.program.kept[0])

    def record_steps(self) -> None:
        """See `Session.record_steps`."""
        if self.program is not None and self.program.kept is None:
            self.program.record()

    def run(self, how: Deciding, x: Inputs, normalize: bool, stop: StopWord) -> Answer:
        """The answer for one sample: see `Session.run`.

        `stop` is true once it is cancelled.
        """
        start = perf_counter()
        copy_inputs(x, normalize, self._manifest, self._inputs)
        policy, guard, audits = how.policy, how.guard, False
        if guard is not None:
            with how.lock:
                policy, audits = guard.begin()
        if how.clock is not None:
            self.record_steps()  # Energies are of those that ran.
        if self.program is not None:
            self._begin(self.program, how.gates, policy.gate_shift)
        if how.halt is not None:
            return self._halted(policy, how.halt, start, stop)
        if guard is not None and audits:
            return self._audited(how, guard, start, stop)
        answer = self._decided(how, policy, start, stop)
        if guard is not None and not answer.cancelled:  # It watches what the policy answers.
            index = self._exit_names.index(answer.exit)
            with how.lock:
                guard.answered(index, answer.logits.reshape(1, -1))
        return answer

    def _begin(self, program: Program, gates: bool, shift: float = 0.0) -> None:
        """Gates decide from now on, or do not; nothing stops the way."""
        program.begin(gates=gates, shift=shift)
        program.limit(None)
        program.stop_by(None)

    def _held(self, policy: ExitPolicy, index: int) -> np.ndarray:
        """The logits of exit `index`, whose head has run for this sample."""
        logits: np.ndarray = policy.answer(index, self.stops[index].outputs)[0]
        return logits.copy()

    @property
    def _stopped(self) -> bool:
        """Whether the latest segment was not finished."""
        return self.program is not None and self.program.stopped is not None

    def whole(
        self, clock: Clock | None, x: Inputs, normalize: bool, stop: StopWord | None = None
    ) -> Answer:
        """The network's own answer for one sample: no exit head runs.

        With `stop`, the next exit answers once that is true.
        """
        start = perf_counter()
        copy_inputs(x, normalize, self._manifest, self._inputs)
        if self.program is not None:
            self._begin(self.program, False)
        if clock is not None:
            clock.full_speed()
        if stop is None or not self.stops:
            self._all.one()
            return self._final(len(self._segments), 0, self._macs, start)
        for index, (call, _) in enumerate(self._segments):
            call.one()
            if stop and index < len(self.stops):
                head = self.stops[index]
                logits = head.run().logits[0].copy()
                macs = sum(cost for _, cost in self._segments[: index + 1]) + head.macs
                counts = index + 1, len(head.calls), macs
                return self._made(index, logits, *counts, start, cancelled=True)
        return self._final(len(self._segments), 0, self._macs, start)

    def _halted(self, policy: ExitPolicy, halt: Halting, start: float, stop: StopWord) -> Answer:
        """Segment by segment as far as limits go: the rule of `eecompile.policies.halted`."""
        last, account, program = len(self.stops), halt.account(start), self.program
        due, state = policy.first(), policy.start(1)
        heads_run = macs = gated = 0
        held = -1  # The deepest exit whose head has run.
        for index, (call, cost) in enumerate(self._segments):
            call.one()
            macs += cost
            if held >= 0 and self._stopped:
                cancelled, logits = bool(stop), self._held(policy, held)
                return self._made(
                    *(held, logits, index, heads_run, macs, start),
                    halted=not cancelled,
                    cancelled=cancelled,
                )
            if index == last:
                break
            if program is not None:
                gated, before = program.macs, gated
                cost = gated - before
                program.limit(None)
            account.segment(index, cost)
            head, wanted, cancelled = self.stops[index], last, bool(stop)
            asks = index == due and not cancelled and account.affords(index)
            ends = not asks and (cancelled or not account.goes_on(index))
            if asks or (ends and (held < 0 or (not cancelled and account.affords(index)))):
                outputs = head.run()
                account.head(index)
                heads_run += len(head.calls)
                macs += head.macs
                held = index
                if asks:
                    wanted = policy.decide(index, outputs, state).item()
                if program is not None:
                    program.stop_by(stop)
                cancelled = bool(stop)
                ends = ends or wanted == EXIT or cancelled or not account.goes_on(index)
            if ends and held >= 0:
                forced = wanted != EXIT
                if not forced or cancelled or not account.tries(index, program):
                    return self._made(
                        *(held, self._held(policy, held), index + 1, heads_run, macs, start),
                        halted=forced and not cancelled,
                        cancelled=forced and cancelled,
                    )
            if asks and not index < wanted <= last and wanted != OFFLOAD:
                raise InternalError(f"policy {policy.kind} asked for exit {wanted} after {index}")
            if index >= due:
                # A head that was not affordable is missed: the policy is asked no more.
                due = wanted
        return self._final(last + 1, heads_run, macs, start)

    def _decided(self, how: Deciding, policy: ExitPolicy, start: float, stop: StopWord) -> Answer:
        """Segment by segment; with a clock, each stretch at the one that is chosen for it."""
        clock, last, program = how.clock, len(self.stops), self.program
        heads_run = macs = 0
        if policy.online:
            with how.lock:  # What another thread learns in between could part the two.
                due, state = policy.first(), policy.start(1)
        else:
            due, state = policy.first(), policy.start(1)
        answers = alone = False
        held = -1  # The deepest exit whose head has run.
        if clock is not None:
            due, _, answers = clock.begin(due)
        for index, (call, cost) in enumerate(self._segments):
            call.one()
            macs += cost
            cancelled = bool(stop) and (index < last or self._stopped)
            if not cancelled and (index != due or index == last):
                continue
            if not cancelled or held < 0:
                head = self.stops[index]
                outputs = head.run()
                heads_run += len(head.calls)
                macs += head.macs
                held = index
                if program is not None:  # There is an answer: it may end between steps as well.
                    program.stop_by(stop)
            if cancelled:
                answer = self._made(
                    *(held, self._held(policy, held), index + 1, heads_run, macs, start),
                    clock=clock,
                    cancelled=True,
                )
                break
            wanted = policy.decide(index, outputs, state).item()
            if wanted == OFFLOAD:
                found, wanted = self._offloaded(how, index), last
                alone = found is None
                if found is not None:
                    answer = self._made(last, found, index + 1, heads_run, macs, start, sent=True)
                    break
            if wanted != EXIT:
                if not index < wanted <= last:
                    raise InternalError(
                        f"policy {policy.kind} asked for exit {wanted} after {index}"
                    )
                if clock is None:
                    due = wanted
                    continue
                if not answers:
                    elapsed_s = perf_counter() - start
                    due, _, answers = clock.after(
                        index, wanted, elapsed_s, policy.forecasts, self.steps_kept
                    )
                    if due != EXIT:
                        continue
                clock.forced += 1
            logits = self._held(policy, index)
            answer = self._made(index, logits, index + 1, heads_run, macs, start, clock=clock)
            break
        else:
            answer = self._final(last + 1, heads_run, macs, start, clock)
        if policy.online:
            final = answer.logits.reshape(1, -1) if answer.exit == self._exit_names[last] else None
            with how.lock:
                policy.learn(state, final, alone)
        return answer

    def _offloaded(self, how: Deciding, index: int) -> np.ndarray | None:
        """The network's own logits as a server gave them for a sample that leaves at exit `index`.

        None: nobody did; what the rest of the network reads is still there.
        """
        if how.server is None:
            return None
        found = how.server.answer(index, dict(self._border[index]))
        return None if found is None else self._as_logits(found)

    def _as_logits(self, output: np.ndarray) -> np.ndarray:
        """Of one sample, from the network's output."""
        return output[0] if self._classes is None else output.reshape(-1)

    def _audited(self, how: Deciding, guard: Guard, start: float, stop: StopWord) -> Answer:
        """The network's own answer, with every exit evaluated on the way for the guard to see.

        Of a sample that is cancelled it sees nothing.
        """
        segments_run = heads_run = macs = 0
        seen: list[ExitOutputs] = []
        for index, (call, cost) in enumerate(self._segments):
            call.one()
            segments_run += 1
            macs += cost
            if index == len(self.stops):
                break
            head = self.stops[index]
            seen.append(head.run())
            heads_run += len(head.calls)
            macs += head.macs
            if stop:
                logits, counts = head.outputs.logits[0].copy(), (segments_run, heads_run, macs)
                return self._made(index, logits, *counts, start, cancelled=True)
        answer = self._final(segments_run, heads_run, macs, start, audited=True)
        with how.lock:
            guard.audited(seen, answer.logits.reshape(1, -1))
        return answer

    def _final(
        self,
        segments_run: int,
        heads_run: int,
        macs: int,
        start: float,
        clock: Clock | None = None,
        *,
        audited: bool = False,
    ) -> Answer:
        """The network's own answer."""
        outputs = {name: values.copy() for name, values in self._last_outputs}
        counts = segments_run, heads_run, macs
        logits, last = self._as_logits(outputs[self._output]), len(self.stops)
        return self._made(last, logits, *counts, start, outputs, clock, audited=audited)

    def _made(
        self,
        index: int,
        logits: np.ndarray,
        segments_run: int,
        heads_run: int,
        macs: int,
        start: float,
        outputs: Mapping[str, np.ndarray] | None = None,
        clock: Clock | None = None,
        *,
        sent: bool = False,
        audited: bool = False,
        halted: bool = False,
        cancelled: bool = False,
    ) -> Answer:
        self.counts[index] += 1
        latency_s = perf_counter() - start
        blocks_run, blocks = None, 0
        if self.program is not None:
            macs += self.program.macs
            if blocks := self.program.blocks:
                blocks_run = self.program.blocks_run
        frequency_hz = energy_j = None
        if clock is not None:
            frequency_hz, energy_j = clock.finish(index, latency_s, self.steps_kept)
        return Answer(
            logits,
            self._exit_names[index],
            segments_run,
            heads_run,
            macs,
            latency_s,
            energy_j,
            frequency_hz,
            sent,
            audited,
            halted,
            cancelled,
            outputs or {},
            self._labels,
            blocks_run,
            blocks,
        )

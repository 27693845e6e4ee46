"""One sample at a time: segment by segment, until the policy is content."""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter

import numpy as np

from eecompile.compiled import CompiledExit
from eecompile.diagnostics import InternalError
from eecompile.manifest import Manifest
from eecompile.policies.base import EXIT, OFFLOAD, ExitOutputs, ExitPolicy
from eecompile.runtime.answers import Answer
from eecompile.runtime.batch import border_values
from eecompile.runtime.clock import Clock
from eecompile.runtime.deciding import Deciding
from eecompile.runtime.guard import Guard
from eecompile.runtime.inputs import Inputs, as_batch, as_mapping, raw_inputs
from eecompile.runtime.lane import Call, Chain, Lane
from eecompile.runtime.library import Library, Team

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
        # Views of the lane's memory: they show what the latest call computed.
        self.outputs = ExitOutputs(logits, scores[1])


class Singles:
    """Memory for one sample, and everything bound to it. For one thread.

    Attributes:
        lane: the memory.
        stops: the exits.
        counts: samples answered by each exit, the final one last.
    """

    def __init__(self, library: Library, manifest: Manifest, team: Team | None) -> None:
        """Allocates everything; answers allocate only what they hand out."""
        network = manifest.network
        self._manifest, self._exit_names = manifest, network.exit_names
        self.lane = Lane(library, network.inputs, network.functions(), 1, team)
        values = self.lane.values
        self._inputs = [(name, type_, values[name]) for name, type_ in network.inputs]
        calls = [
            [self.lane.calls[f.symbol] for f in segment.backbone] for segment in network.segments
        ]
        self._segments: list[tuple[Call | Chain, int]] = [
            (some[0] if len(some) == 1 else Chain(library.chain(), some, team), segment.macs)
            for some, segment in zip(calls, network.segments, strict=True)
        ]
        self._all = Chain(library.chain(), [call for some in calls for call in some], team)
        self.stops = [Stop(exit_, self.lane) for exit_ in network.exits]
        self._border = [
            [(name, values[name]) for name in names] for names in border_values(network)
        ]
        self._macs, self._output, self._classes = network.macs, network.output, network.classes
        self._last_outputs = [(name, values[name]) for name, _ in network.segments[-1].outputs]
        self.counts = [0] * len(network.exit_names)

    def run(self, how: Deciding, x: Inputs, normalize: bool) -> Answer:
        """The answer for one sample: see `Session.run`."""
        start = perf_counter()
        self._take(x, normalize)
        guard = how.guard
        if guard is None:
            return self._decided(how, how.policy, start)
        with how.lock:
            policy, audits = guard.begin()
        if audits:
            return self._audited(how, guard, start)
        answer = self._decided(how, policy, start)
        index = self._exit_names.index(answer.exit)
        with how.lock:
            guard.answered(index, answer.logits.reshape(1, -1))
        return answer

    def whole(self, clock: Clock | None, x: Inputs, normalize: bool) -> Answer:
        """The network's own answer for one sample: no exit head runs."""
        start = perf_counter()
        self._take(x, normalize)
        if clock is not None:
            clock.full_speed()
        self._all.one()
        return self._final(len(self._segments), 0, self._macs, start)

    def _take(self, x: Inputs, normalize: bool) -> None:
        """Copy one sample into the lane; this also aligns it and makes it dense."""
        if not normalize and len(self._inputs) == 1:
            ((_, _, memory),) = self._inputs
            # What is as it should be needs no looking into, which takes longer than copying it.
            if type(x) is np.ndarray and x.shape == memory.shape and x.dtype == memory.dtype:
                memory[:] = x
                return
        manifest = self._manifest
        given = raw_inputs(x, manifest) if normalize else x
        arrays: Mapping[str, np.ndarray] = as_mapping(given, manifest.network.inputs)
        for name, type_, memory in self._inputs:
            memory[:] = as_batch(name, type_, arrays[name], single=True)

    def _decided(self, how: Deciding, policy: ExitPolicy, start: float) -> Answer:
        """Segment by segment; with a clock, each stretch at the one that is chosen for it."""
        clock, last = how.clock, len(self.stops)
        segments_run = heads_run = macs = 0
        if policy.online:
            with how.lock:  # What another thread learns in between could part the two.
                due, state = policy.first(), policy.start(1)
        else:
            due, state = policy.first(), policy.start(1)
        answers = alone = False
        if clock is not None:
            due, _, answers = clock.begin(due)
        for index, (call, cost) in enumerate(self._segments):
            call.one()
            segments_run += 1
            macs += cost
            if index != due or index == last:
                continue
            stop = self.stops[index]
            for head in stop.calls:
                head.one()
                heads_run += 1
            macs += stop.macs
            wanted = policy.decide(index, stop.outputs, state).item()
            if wanted == OFFLOAD:
                found, wanted = self._offloaded(how, index), last
                alone = found is None
                if found is not None:
                    answer = self._made(
                        last, found, segments_run, heads_run, macs, start, sent=True
                    )
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
                    due, _, answers = clock.after(index, wanted, elapsed_s, policy.forecasts)
                    if due != EXIT:
                        continue
                clock.forced += 1
            logits = policy.answer(index, stop.outputs)[0].copy()
            answer = self._made(index, logits, segments_run, heads_run, macs, start, clock=clock)
            break
        else:
            answer = self._final(segments_run, heads_run, macs, start, clock)
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

    def _audited(self, how: Deciding, guard: Guard, start: float) -> Answer:
        """The network's own answer, with every exit evaluated on the way for the guard to see."""
        segments_run = heads_run = macs = 0
        seen: list[ExitOutputs] = []
        for index, (call, cost) in enumerate(self._segments):
            call.one()
            segments_run += 1
            macs += cost
            if index == len(self.stops):
                break
            stop = self.stops[index]
            for head in stop.calls:
                head.one()
                heads_run += 1
            macs += stop.macs
            means = stop.outputs.class_means  # Later segments may write where these are.
            seen.append(
                ExitOutputs(stop.outputs.logits.copy(), None if means is None else means.copy())
            )
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
    ) -> Answer:
        self.counts[index] += 1
        latency_s = perf_counter() - start
        frequency_hz = energy_j = None
        if clock is not None:
            frequency_hz, energy_j = clock.finish(index, latency_s)
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
            outputs=outputs or {},
            label_names=self._manifest.labels,
        )

"""A compiled network ready to answer: segments, exits and a policy that decides between them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from time import perf_counter

import numpy as np

from eecompile.artifact import Artifact, PolicyEntry, read_artifact
from eecompile.artifact_files import LIBRARY, bad_artifact
from eecompile.clock_rule import ClockRule
from eecompile.compiled import CompiledExit
from eecompile.diagnostics import CompileErrors, InternalError, did_you_mean_help
from eecompile.hardware import usable_cores
from eecompile.manifest import Manifest
from eecompile.policies import from_json
from eecompile.policies.base import EXIT, ExitOutputs, ExitPolicy
from eecompile.runtime.answers import Answer, BatchAnswer
from eecompile.runtime.batch import Results, run_chunk, values_needed_after
from eecompile.runtime.clock import Clock
from eecompile.runtime.governor import Governor, NoGovernor
from eecompile.runtime.inputs import Inputs, as_batch, as_mapping, bad_argument, normalized
from eecompile.runtime.lane import Call, Chain, Lane
from eecompile.runtime.library import Library
from eecompile.runtime.runner import batch_inputs, chunk_size
from eecompile.runtime.sysfs_governor import open_governor

__all__ = ["Session", "load"]


def load(
    path: str | Path,
    policy: str | ExitPolicy | None = None,
    threads: int | None = None,
    governor: Governor | None = None,
) -> Session:
    """The network in an artifact's folder, ready to run.

    Every check of `eecompile.artifact` is made before any of its code is loaded. They show that
    the artifact is whole, not who made it: load only what comes from people you trust.

    Args:
        path: the folder.
        policy: name of an exit policy in it, or one of your own; its default one if not given.
        threads: cores that work on an answer, the caller's included. None: as many as the `.ee`
            file says (``cores``). Never more than the CPUs this process may use: a larger number
            means all of them, and `Session.threads` tells how many. The answers are the same, to
            the bit, whatever the number. Threads sleep while there is nothing to answer.
        governor: what sets clocks for a policy that chooses them. None: Linux's files, where this
            process may write them; if not, clocks stay as they are, a `ClockWarning` says so once,
            and `eecompile doctor` how to allow it. `NoGovernor()` leaves them alone without a word.
            One that is given is shared with clones, and `close` restores through it.

    Raises:
        CompileErrors: it is no artifact, damaged, for another machine or version, or has no such
            policy; `threads` is no whole number above 0; or the system gives no such threads.
    """
    return Session(read_artifact(path), policy, threads, governor=governor)


class _Stop:
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


def _in_use() -> CompileErrors:
    message = "This session is in use by another thread"
    return bad_argument(message, "give each thread a `clone()`")


def _threads_for(given: int | None, cores: int) -> int:
    """Threads that are started where `given` are asked for, or the artifact's cores."""
    if given is None:
        given = cores
    if isinstance(given, bool) or not isinstance(given, int | np.integer):
        raise bad_argument(f"Expected a whole number of threads, found {given!r}")
    if given < 1:
        raise bad_argument(f"Expected 1 or more threads, found {given}")
    return min(int(given), usable_cores())


class Session:
    """A loaded network. For one thread: give each further thread a `clone`, which is cheap.

    A call made while another thread's is at work is refused: both would use the same memory.

    With a policy that chooses clocks, `close` (or leaving it as a context manager) puts them back
    as they were found; at the latest that happens when the process ends, however it does. On a
    board of several clusters the calling thread and the session's own are kept on the CPUs of the
    cluster that was chosen, until then.

    Its own threads are shared with its clones: while they work on one answer, another is computed
    by its caller's thread alone. In a forked process that is always so; a clone made there has
    threads again.

    Attributes:
        artifact: what it was loaded from.
        library: its code and weights, shared with its clones.
        threads: cores that work on an answer.
    """

    def __init__(
        self,
        artifact: Artifact,
        policy: str | ExitPolicy | None = None,
        threads: int | None = None,
        library: Library | None = None,
        governor: Governor | None = None,
    ) -> None:
        """Loads the artifact's code, unless `library` holds it already; arguments as in `load`.

        Raises:
            CompileErrors: the code cannot be loaded, there is no such policy, or the system gives
                no such threads, or no whole number above 0 is asked for.
        """
        threads = _threads_for(threads, artifact.manifest.target.cores)
        self.artifact, self.threads = artifact, threads
        self._in_use = Lock()
        network = artifact.manifest.network
        self._network, self._exit_names = network, network.exit_names
        name = str(artifact.path / LIBRARY)
        self.library = library or Library(artifact.library, artifact.weights, name)
        self._team = self.library.team(threads) if threads > 1 else None
        self._lane = Lane(self.library, network.inputs, network.functions(), 1, self._team)
        self._inputs = [(name, type_, self._lane.values[name]) for name, type_ in network.inputs]
        self._segments: list[tuple[Call, int]] = [
            (self._lane.calls[segment.symbol], segment.macs) for segment in network.segments
        ]
        self._all = Chain(self.library.chain(), [call for call, _ in self._segments], self._team)
        self._stops = [_Stop(exit_, self._lane) for exit_ in network.exits]
        self._network_macs = network.macs
        self._last_outputs = [
            (name, self._lane.values[name]) for name, _ in network.segments[-1].outputs
        ]
        self._needed = values_needed_after(network)
        self._chunk = chunk_size(network.inputs, network.functions(), threads)
        self._batch_lane: Lane | None = None
        self._counts = [0] * (len(network.exits) + 1)
        self._policy: ExitPolicy | None = None
        self._policy_name: str | None = None
        self._clock: Clock | None
        if governor is not None and not hasattr(governor, "set"):
            raise bad_argument(
                f"Expected a governor, found {governor!r}",
                "`NoGovernor()` of eecompile.runtime.governor leaves clocks alone",
            )
        self._governor, self._clock = governor, None
        self.set_policy(artifact.manifest.default_policy if policy is None else policy)

    @property
    def manifest(self) -> Manifest:
        """What the artifact says about itself."""
        return self.artifact.manifest

    @property
    def policies(self) -> tuple[str, ...]:
        """Names of the artifact's exit policies."""
        return self.manifest.policies

    @property
    def policy(self) -> str | None:
        """Name of the policy in use; None where decisions are off or the policy is the caller's."""
        return self._policy_name

    @property
    def exit_names(self) -> tuple[str, ...]:
        """Names by exit index; the last is ``final``."""
        return self._exit_names

    @property
    def exit_counts(self) -> dict[str, int]:
        """Samples each exit has answered since the session was opened or `reset_counts` called."""
        return dict(zip(self.exit_names, self._counts, strict=True))

    @property
    def clock_counts(self) -> dict[str, int]:
        """Changes of the clock, answers after their deadline, and answers the deadline forced.

        Of single samples, since the policy was set; empty where it neither chooses clocks nor has
        a deadline.
        """
        clock = self._clock
        if clock is None:
            return {}
        return {"transitions": clock.transitions, "late": clock.late, "forced": clock.forced}

    def reset_counts(self) -> None:
        """Count from zero."""
        self._counts = [0] * len(self._counts)
        if self._clock is not None:
            self._clock.reset_counts()

    @property
    def clock_rule(self) -> ClockRule | None:
        """How clocks are chosen and deadlines kept; None where neither is done."""
        return None if self._clock is None else self._clock.rule

    def set_policy(self, policy: str | ExitPolicy | None, *, keep_clock: bool = False) -> None:
        """Decide by another policy from now on: one of the artifact's, one of your own, or None.

        With None, as where an artifact has no policies, decisions are off.

        Args:
            policy: see above; a stored policy brings its own rule for clocks and deadlines.
            keep_clock: whether one of your own goes on with the rule in use.

        Raises:
            CompileErrors: the artifact has no policy of this name, or one that cannot be used.
        """
        if policy is None or isinstance(policy, ExitPolicy):
            if not keep_clock or policy is None:
                self.close()
                self._clock = None
            self._policy, self._policy_name = policy, None
            return
        entry = self.artifact.policies.get(policy)
        if entry is None:
            known = ", ".join(self.policies) or "none"
            raise bad_argument(
                f"The artifact has no policy `{policy}`",
                did_you_mean_help(policy, self.policies) or f"policies: {known}",
            )
        made, clock = self._stored_policy(policy, entry), self._stored_clock(policy, entry)
        self.close()
        self._policy, self._policy_name, self._clock = made, policy, clock

    def _stored_clock(self, name: str, entry: PolicyEntry) -> Clock | None:
        """How the policy of an entry chooses clocks, if it does."""
        if entry.clock is None:
            return None
        costs = self.artifact.costs
        try:
            if costs is None:
                raise ValueError("the artifact has no costs to choose its clocks by")
            rule = ClockRule.from_json(entry.clock)
            if not rule.sets_clocks:
                return Clock(costs, rule, NoGovernor())
            if self._governor is None:
                self._governor = open_governor(costs.clusters)
            workers = () if self._team is None else self._team.workers
            return Clock(costs, rule, self._governor, workers)
        except ValueError as error:
            raise bad_artifact(
                self.artifact.path, f"The policy `{name}` cannot be used: {error}"
            ) from error

    def close(self) -> None:
        """Put clocks back as they were found. The session can be used again."""
        if self._clock is not None:
            self._clock.restore()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stored_policy(self, name: str, entry: PolicyEntry) -> ExitPolicy:
        """The policy of an entry, tried on every exit so that it cannot fail while running."""
        try:
            policy = from_json(entry.rule)
            first, last = policy.first(), len(self._stops)
            if not 0 <= first <= last:
                raise ValueError(f"it starts at exit {first} of {last}")
            for index, stop in enumerate(self._stops):
                zeros = np.zeros_like(stop.outputs.logits)
                means = None if stop.outputs.class_means is None else np.zeros_like(zeros)
                after = int(policy.decide(index, ExitOutputs(zeros, means), policy.start(1))[0])
                if after != EXIT and not index < after <= last:
                    raise ValueError(f"it goes from exit {index} to exit {after} of {last}")
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise bad_artifact(
                self.artifact.path, f"The policy `{name}` cannot be used: {error}"
            ) from error
        return policy

    def clone(self) -> Session:
        """A session for another thread: same code, weights and policy, its own memory."""
        policy = self._policy_name or self._policy
        found = Session(self.artifact, policy, self.threads, self.library, self._governor)
        if policy is None:
            found.set_policy(None)
        return found

    def run(self, x: Inputs, *, normalize: bool = False) -> Answer:
        """The answer for one sample: as soon as the policy is content, no segment after that runs.

        Args:
            x: the input, of its type and shape, with or without its leading 1; a mapping by name
                where there are several.
            normalize: whether `x` is raw data, to be normalised as the `.ee` file says.

        Raises:
            CompileErrors: `x` is not that, or another thread is using the session.
        """
        policy = self._policy
        if policy is None:
            return self.full_depth(x, normalize=normalize)
        start = perf_counter()
        if not self._in_use.acquire(False):
            raise _in_use()
        try:
            self._take(x, normalize)
            return self._answer(policy, start)
        finally:
            self._in_use.release()

    def full_depth(self, x: Inputs, *, normalize: bool = False) -> Answer:
        """The network's own answer for one sample: decisions off, no exit head runs."""
        start = perf_counter()
        if not self._in_use.acquire(False):
            raise _in_use()
        try:
            self._take(x, normalize)
            self._at_full_speed()
            self._all.one()
            return self._final(len(self._segments), 0, self._network_macs, start)
        finally:
            self._in_use.release()

    def run_batch(self, x: Inputs, *, normalize: bool = False) -> BatchAnswer:
        """The answers for n samples, each leaving at its own exit; what stays goes on together.

        Each answer is that of `run`, whatever other samples there are. Deadlines are of single
        samples: a batch runs at the fastest clock, and no answer is forced.

        Args:
            x: (n, ...) samples of the input; a mapping by name where there are several.
            normalize: as in `run`.

        Raises:
            CompileErrors: `x` is not that, or another thread is using the session.
        """
        return self._alone(self._policy, x, normalize)

    def full_depth_batch(self, x: Inputs, *, normalize: bool = False) -> BatchAnswer:
        """The network's own answers for n samples: decisions off, no exit head runs."""
        return self._alone(None, x, normalize)

    def _alone(self, policy: ExitPolicy | None, x: Inputs, normalize: bool) -> BatchAnswer:
        """A batch, while no other thread uses the session."""
        if not self._in_use.acquire(False):
            raise _in_use()
        try:
            return self._batch(policy, x, normalize)
        finally:
            self._in_use.release()

    def _raw(self, x: Inputs) -> Inputs:
        """Raw data, normalised; inputs without a rule are passed on as they are."""
        rules = self.manifest.normalizations
        if not rules:
            raise bad_argument(
                "The artifact does not say how to normalise its input",
                "give normalised data, or add `normalize` to the `.ee` file's data block",
            )
        types = dict(self._network.inputs)
        return {
            name: normalized(array, types[name], rules[name]) if name in rules else array
            for name, array in as_mapping(x, self._network.inputs).items()
        }

    def _take(self, x: Inputs, normalize: bool) -> None:
        """Copy one sample into the lane; this also aligns it and makes it dense."""
        if not normalize and len(self._inputs) == 1:
            ((_, _, memory),) = self._inputs
            # What is as it should be needs no looking into, which takes longer than copying it.
            if type(x) is np.ndarray and x.shape == memory.shape and x.dtype == memory.dtype:
                memory[:] = x
                return
        given = self._raw(x) if normalize else x
        arrays: Mapping[str, np.ndarray] = as_mapping(given, self._network.inputs)
        for name, type_, memory in self._inputs:
            memory[:] = as_batch(name, type_, arrays[name], single=True)

    def _answer(self, policy: ExitPolicy, start: float) -> Answer:
        """Segment by segment; with a clock, each stretch at the one that is chosen for it."""
        clock, last = self._clock, len(self._stops)
        segments_run = heads_run = macs = 0
        due, answers = policy.first(), False
        if clock is not None:
            due, _, answers = clock.begin(due)
        state = policy.start(1)
        for index, (call, cost) in enumerate(self._segments):
            call.one()
            segments_run += 1
            macs += cost
            if index != due or index == last:
                continue
            stop = self._stops[index]
            for head in stop.calls:
                head.one()
                heads_run += 1
            macs += stop.macs
            wanted = policy.decide(index, stop.outputs, state).item()
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
            return self._made(index, logits, segments_run, heads_run, macs, start, clock=clock)
        return self._final(segments_run, heads_run, macs, start, clock)

    def _at_full_speed(self) -> None:
        if self._clock is not None:
            self._clock.full_speed()

    def _final(
        self,
        segments_run: int,
        heads_run: int,
        macs: int,
        start: float,
        clock: Clock | None = None,
    ) -> Answer:
        """The network's own answer."""
        outputs = {name: values.copy() for name, values in self._last_outputs}
        logits = outputs[self._network.output][0]
        if self._network.classes is not None:
            logits = logits.reshape(-1)
        last = len(self._stops)
        return self._made(last, logits, segments_run, heads_run, macs, start, outputs, clock)

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
    ) -> Answer:
        self._counts[index] += 1
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
            outputs=outputs or {},
            label_names=self.manifest.labels,
        )

    def _batch(self, policy: ExitPolicy | None, x: Inputs, normalize: bool) -> BatchAnswer:
        start = perf_counter()
        self._at_full_speed()
        network = self._network
        arrays, count = batch_inputs(self._raw(x) if normalize else x, network.inputs)
        results = Results(network, count)
        chunk = min(self._chunk, max(count, 1))
        lane = self._lane_for(chunk)
        for at in range(0, count, chunk):
            rows = slice(at, min(at + chunk, count))
            for name, array in arrays.items():
                lane.values[name][: rows.stop - at] = array[rows]
            run_chunk(network, lane, policy, self._needed, results, rows)
        for index, taken in enumerate(np.bincount(results.exits, minlength=len(self._counts))):
            self._counts[index] += int(taken)
        final = bool((results.exits == len(network.exits)).all())
        return BatchAnswer(
            results.logits,
            results.exits,
            self._exit_names,
            results.segments_run,
            results.heads_run,
            results.macs,
            perf_counter() - start,
            results.outputs if final else {},
        )

    def _lane_for(self, capacity: int) -> Lane:
        """The lane for batches, kept between calls and replaced when it is too small."""
        lane, network = self._batch_lane, self._network
        if lane is None or lane.capacity < capacity:
            lane = self._batch_lane = None  # Not both at once.
            lane = Lane(self.library, network.inputs, network.functions(), capacity, self._team)
            self._batch_lane = lane
        return lane

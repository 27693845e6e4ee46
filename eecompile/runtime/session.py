"""A compiled network ready to answer: segments, exits and a policy that decides between them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from eecompile.artifact import Artifact, read_artifact
from eecompile.artifact_files import LIBRARY
from eecompile.clock_rule import ClockRule
from eecompile.diagnostics import CompileErrors
from eecompile.halt_rule import HaltRule
from eecompile.manifest import Manifest
from eecompile.policies.base import ExitPolicy
from eecompile.runtime.answers import Answer, BatchAnswer
from eecompile.runtime.batch import Batches
from eecompile.runtime.budgets import choose_point, given_halt, given_limits
from eecompile.runtime.clock import Clock
from eecompile.runtime.deciding import Deciding, Server
from eecompile.runtime.ending import park_if_ending, session_lock
from eecompile.runtime.governor import Governor
from eecompile.runtime.guard_report import GuardReport
from eecompile.runtime.halting import Halting
from eecompile.runtime.in_turn import run_in_turn
from eecompile.runtime.inputs import Inputs, bad_argument
from eecompile.runtime.learning import forget, recall, store
from eecompile.runtime.library import Library
from eecompile.runtime.limiting import Limiter
from eecompile.runtime.native_singles import NativeSingles, is_native
from eecompile.runtime.opening import (
    exit_shapes,
    policy_entry,
    stored_clock,
    stored_guard,
    stored_halt,
    stored_policy,
    stored_server,
    threads_for,
)
from eecompile.runtime.single import Singles
from eecompile.runtime.stopping import StopWord, StopWords
from eecompile.signatures import Trusted

__all__ = ["Session", "load"]


def load(
    path: str | Path,
    policy: str | ExitPolicy | None = None,
    threads: int | None = None,
    governor: Governor | None = None,
    *,
    budget: Mapping[str, float] | None = None,
    halt: Mapping[str, float] | None = None,
    endpoint: str | None = None,
    state: str | Path | None = None,
    audit_seed: int | None = None,
    trusted: Trusted | None = None,
) -> Session:
    """The network in an artifact, ready to run.

    Every check of `eecompile.artifact` is made before any of its code is loaded. Without `trusted`
    they show that the artifact is whole, not who made it: load only what comes from people you
    trust, or name their keys.

    Args:
        path: the folder, or the packed file.
        policy: name of an exit policy in it, or one of your own; its default one if not given.
        threads: cores that work on an answer, the caller's included. None: as many as the `.ee`
            file says (``cores``). Never more than the CPUs this process may use: a larger number
            means all of them, and `Session.threads` tells how many. The answers are the same, to
            the bit, whatever the number. Threads sleep while there is nothing to answer.
        governor: what sets clocks for a policy that chooses them. None: Linux's files, where this
            process may write them; if not, clocks stay as they are, a `ClockWarning` says so once,
            and `eecompile doctor` how to allow it. `NoGovernor()` leaves them alone without a word.
            One that is given is shared with clones, and `close` restores through it.
        budget: what to choose another operating point of the policy for, as `Session.set_budget`
            takes it: ``{"macs": 0.6}``. None: the one it was built for.
        halt: what each sample may spend at most, as `Session.set_halt` takes it:
            ``{"latency": 0.001}``. None: what the policy says.
        endpoint: the server that a policy with `offload` asks, one of those the `.ee` file allows
            it; the first of them if not given. Nothing is sent before the first sample that needs
            it; `Session.connect` looks at the server earlier.
        state: what `Session.save_state` wrote, to go on from; where there is no such file yet,
            everything starts afresh.
        audit_seed: makes a guard audit the same samples in every run; the system's if not given.
        trusted: public keys (PEM files, their bytes, or 32 bytes), one of which must have signed
            the artifact, see `eecompile sign`. None: whoever made it is believed.

    Raises:
        CompileErrors: it is no artifact, damaged, for another machine or version, not signed by a
            trusted key where any were given, or has no such policy; `threads` is no whole number
            above 0; the system gives no such threads; the policy cannot keep the budget, or may
            not ask `endpoint`; no answer keeps `halt`; or `state` is another policy's, or damaged.
        ToolError: the policy offloads, and the library that speaks to servers is not installed; or
            there are trusted keys, and `cryptography` is not.
    """
    session = Session(
        *(read_artifact(path, trusted=trusted), policy, threads, None, governor),
        endpoint=endpoint,
        audit_seed=audit_seed,
    )
    if budget is not None:
        session.set_budget(budget)
    if halt is not None:
        session.set_halt(halt)
    if state is not None and os.path.lexists(state):
        session.load_state(state)
    return session


def _in_use() -> CompileErrors:
    park_if_ending()
    message = "This session is in use by another thread"
    return bad_argument(message, "give each thread a `clone()`")


class Session:
    """A loaded network. For one thread: give each further thread a `clone`, which is cheap.

    A call made while another thread's is at work is refused: both would use the same memory.

    With a policy that chooses clocks, `close` (or leaving it as a context manager) puts them back
    as they were found; at the latest that happens when the process ends, however it does. On a
    board of several clusters the calling thread and the session's own are kept on the CPUs of the
    cluster that was chosen, until then.

    `run` can be ended early, from outside by `cancel` and from inside by a budget for the sample.
    Either way exits answer that the policy would have passed.

    A policy that learns, and a guard, see every sample that is answered by `run`, one after the
    other. What they know is shared with clones: all threads' samples teach one policy, and no
    clone has to find out for itself. It ends with `set_policy`, and outlives the process where
    `save_state` wrote it. Each clone has its own connection to a server.

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
        *,
        endpoint: str | None = None,
        server: Server | None = None,
        audit_seed: int | None = None,
    ) -> None:
        """Loads the artifact's code, unless `library` holds it already; arguments as in `load`.

        `server` is asked for answers instead of the endpoint, also by a policy of the caller's.

        Raises:
            CompileErrors: as `load`.
            ToolError: as `load`.
        """
        threads = threads_for(threads, artifact.manifest.target.cores)
        self.artifact, self.threads = artifact, threads
        self._in_use = session_lock()
        name = str(artifact.path / LIBRARY)
        self.library = library or Library(artifact.library, artifact.weights, name)
        self.library.check(artifact.manifest.network)
        self._team = self.library.team(threads) if threads > 1 else None
        self._counts = [0] * len(artifact.manifest.network.exit_names)
        self._native: NativeSingles | None = None
        self._stepwise: Singles | None = None
        self._batches = Batches(self.library, artifact.manifest, self._team)
        if governor is not None and not hasattr(governor, "set"):
            raise bad_argument(
                f"Expected a governor, found {governor!r}",
                "`NoGovernor()` of eecompile.runtime.governor leaves clocks alone",
            )
        self._governor, self._endpoint, self._server = governor, endpoint, server
        self._audit_seed = audit_seed
        self._how: Deciding | None = None
        self._budget: dict[str, float] | None = None
        self._limits = Limiter(artifact)
        self._stops = StopWords()
        #: Of the call under way.
        self._stop: StopWord | None = None
        self.set_policy(artifact.manifest.default_policy if policy is None else policy)
        # Functions that somebody stands before, to count their calls, are called one by one.
        if artifact.plan and type(self.library) is Library:
            self._native = NativeSingles(self.library, artifact, self._team, self._counts)

    @property
    def _singles(self) -> Singles:
        """The same in Python, segment by segment, for what only that can do."""
        if self._stepwise is None:
            manifest = self.artifact.manifest
            self._stepwise = Singles(self.library, manifest, self._team, self._counts)
        return self._stepwise

    def _by_native(self, how: Deciding | None) -> NativeSingles | None:
        """What answers single samples, where the native runtime can decide so."""
        recorded = self._stepwise is not None and self._stepwise.steps_kept is not None
        return self._native if not recorded and is_native(how) else None

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
        return None if self._how is None else self._how.name

    @property
    def exit_names(self) -> tuple[str, ...]:
        """Names by exit index; the last is ``final``."""
        return self.manifest.network.exit_names

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

    @property
    def offload_counts(self) -> dict[str, int]:
        """What became of samples for a server: see `eecompile.runtime.offload.Offloader.counts`.

        Of this session, since the policy was set; empty where nothing is offloaded.
        """
        how = self._how
        return {} if how is None or how.server is None else dict(how.server.counts)

    @property
    def offload_failure(self) -> str | None:
        """Why the last attempt that a server failed at did; None where none has."""
        how = self._how
        return None if how is None or how.server is None else how.server.last_failure or None

    @property
    def guard(self) -> GuardReport | None:
        """What the guard knows, of clones' samples too; None where nothing is watched."""
        how = self._how
        if how is None or how.guard is None:
            return None
        with how.lock:
            return how.guard.report()

    @property
    def learns(self) -> bool:
        """Whether answers change what is known: the policy learns, or a guard watches."""
        how = self._how
        return how is not None and (how.policy.online or how.guard is not None)

    @property
    def _clock(self) -> Clock | None:
        return None if self._how is None else self._how.clock

    @property
    def steps_kept(self) -> np.ndarray | None:
        """What ran for the latest single sample, int32 (steps,), a view, after `record_steps`.

        By the steps of all segments, in order: groups of channels that ran, 0 where a step has
        none, -1 where it did not run. None where nothing is recorded.
        """
        return None if self._stepwise is None else self._stepwise.steps_kept

    def record_steps(self) -> None:
        """Fill in `steps_kept` from the next sample on; nothing without gates."""
        self._singles.record_steps()

    def reset_counts(self) -> None:
        """Count from zero."""
        self._counts[:] = [0] * len(self._counts)
        if self._clock is not None:
            self._clock.reset_counts()

    @property
    def clock_rule(self) -> ClockRule | None:
        """How clocks are chosen and deadlines kept; None where neither is done."""
        return None if self._clock is None else self._clock.rule

    def set_policy(
        self,
        policy: str | ExitPolicy | None,
        *,
        keep_clock: bool = False,
    ) -> None:
        """Decide by another policy from now on: one of the artifact's, one of your own, or None.

        With None, as where an artifact has no policies, decisions are off: no exit is taken, and
        nothing is left out. A budget given later, or with a call, is kept by exits all the same;
        gates stay off.

        Args:
            policy: see above; a stored policy brings its own rule for clocks and deadlines.
            keep_clock: whether one of your own goes on with the rule in use.

        Raises:
            CompileErrors: the artifact has no policy of this name, or one that cannot be used.
        """
        if policy is None:
            self._decide_by(None)
        elif isinstance(policy, ExitPolicy):
            clock = self._clock if keep_clock else None
            self._decide_by(Deciding(policy, clock=clock, server=self._server))
        else:
            self._decide_by(self._stored(policy))

    def _stored(self, name: str) -> Deciding:
        """All that the artifact holds of a policy, ready."""
        artifact, stops = self.artifact, exit_shapes(self.manifest.network)
        entry = policy_entry(artifact, name)
        policy = stored_policy(artifact, name, entry, stops)
        guard = stored_guard(artifact, name, entry, self._audit_seed)
        server = stored_server(artifact, name, entry, self._endpoint, self._server)
        halt = stored_halt(artifact, name, entry, self._limits)
        workers = () if self._team is None else self._team.workers
        clock, self._governor = stored_clock(artifact, name, entry, self._governor, workers)
        return Deciding(policy, name, clock, server, guard, halt)

    def _decide_by(self, how: Deciding | None) -> None:
        """From now on; what went with the policy before is closed, but for a clock that stays."""
        before, self._budget = self._how, None
        if before is not None:
            stays = how is not None and how.clock is before.clock
            replace(before, clock=None if stays else before.clock).close()
        self._how = how

    @property
    def budget(self) -> dict[str, float] | None:
        """The limits `set_budget` chose a setting for; None: that of the build."""
        return None if self._budget is None else dict(self._budget)

    def set_budget(self, budget: Mapping[str, float]) -> None:
        """Take another setting of the stored policy in use: its operating point for a budget.

        Of the points that keep all limits it is the most accurate, or the cheapest where accuracy
        is limited; clocks and deadlines stay as they are. `set_policy` brings the built one back.

        Args:
            budget: quantity -> limit: mean "macs" as a fraction of the whole network's, "latency"
                in seconds, "energy" in joules, and "accuracy_drop" as a fraction.

        Raises:
            CompileErrors: these are no limits, the policy has no operating points, or none of them
                keeps the budget; nothing has changed then.
        """
        limits, how = given_limits(budget), self._how
        if how is None or how.name is None:
            raise bad_argument("Only a stored policy has operating points", "set one by its name")
        if how.guard is not None:
            message = (
                f"The guard of `{how.name}` chooses among settings for the budget of its build"
            )
            raise bad_argument(message, "build with the other budget, or without the guard")
        point = choose_point(self.artifact, how.name, limits)
        self._how, self._budget = replace(how, policy=point.make()), limits

    @property
    def halt(self) -> HaltRule | None:
        """What each sample may spend at most; None where that is not limited."""
        return None if self._how is None or self._how.halt is None else self._how.halt.rule

    def set_halt(self, limits: Mapping[str, float] | None) -> None:
        """Limit what each sample may spend from now on, whatever the policy said of it.

        Where more is not sure to fit, the deepest exit that does answers. Nothing is fitted to
        these limits, so that they can change at any time; `set_policy` brings the policy's back.

        Args:
            limits: quantity -> limit, all of them kept: "macs" as a fraction of the whole
                network's, "latency" in seconds from the call to the answer, "energy" in joules as
                the artifact's costs tell it. None: no limit.

        Raises:
            CompileErrors: these are no limits, no answer keeps them (the cheapest is named), a
                cost is not known, or the policy chooses clocks, offloads, learns or is guarded;
                nothing has changed then.
        """
        how = self._how
        if limits is not None:
            self._how = self._limits.halted(how, given_halt(limits))
        elif how is not None:
            self._how = replace(how, halt=None) if how.gates else None

    def cancel(self) -> bool:
        """Have the call of `run` under way answer with what it has; from any thread.

        The deepest exit whose head has run answers, and where none has, the next one the sample
        comes to. A network without exits runs to its end. Takes no lock: a signal handler may call
        it. Of `run_batch`, `full_depth` and their like nothing is cancelled.

        Returns:
            Whether there is a call to cancel; the next one is never.
        """
        stop = self._stop
        if stop is None:
            return False
        stop.set()
        return True

    def connect(self) -> bool:
        """Whether the server of a policy that offloads is there and has this artifact's models.

        False: nobody answered in time; samples are computed here until somebody does. True also
        where the policy offloads nothing.

        Raises:
            CompileErrors: the server has other models or versions; both are named.
        """
        if not self._in_use.acquire(False):
            raise _in_use()
        try:
            how = self._how
            return True if how is None or how.server is None else how.server.connect()
        finally:
            self._in_use.release()

    def save_state(self, path: str | Path) -> None:
        """Write what the policy has learned and the guard knows, so that `load` can go on from it.

        A file that is there is replaced in one step.

        Raises:
            CompileErrors: decisions are off, or the file cannot be written.
        """
        store(self._deciding(), self.manifest, path)

    def load_state(self, path: str | Path) -> None:
        """Go on from what `save_state` wrote for this policy of this artifact; clones do as well.

        Raises:
            CompileErrors: it is another policy's or artifact's, or damaged; nothing has changed.
        """
        recall(self._deciding(), self.manifest, path)

    def reset_state(self) -> None:
        """Forget what was learned, here and in clones: as if the artifact was loaded anew."""
        forget(self._deciding())

    def _deciding(self) -> Deciding:
        if self._how is None:
            raise bad_argument("Decisions are off: there is nothing to learn", "set a policy first")
        return self._how

    def close(self) -> None:
        """Put clocks back as they were found, close connections. The session can be used again."""
        if self._how is not None:
            self._how.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        """A session is memory and code of one process: it is neither copied nor sent to others."""
        raise TypeError(
            "a Session cannot be copied or pickled: `clone()` it for a thread, and load the "
            "artifact in each process (a forked one may use its parent's)"
        )

    def clone(self) -> Session:
        """A session for another thread: same code, weights and policy, its own memory."""
        how = self._how
        policy = None if how is None else how.name or how.policy
        found = Session(
            *(self.artifact, policy, self.threads, self.library, self._governor),
            endpoint=self._endpoint,
            server=self._server,
            audit_seed=self._audit_seed,
        )
        if how is None or found._how is None:
            found.set_policy(None)
        else:
            shared = replace(
                found._how,
                policy=how.policy,
                guard=how.guard,
                halt=how.halt and Halting(how.halt.rule, found._limits.pieces(gates=how.gates)),
                gates=how.gates,
                lock=how.lock,
            )
            found._how, found._budget = shared, self._budget
        return found

    def run(
        self,
        x: Inputs,
        *,
        normalize: bool = False,
        budget_s: float | None = None,
        budget_macs: float | None = None,
        budget_j: float | None = None,
    ) -> Answer:
        """The answer for one sample: as soon as the policy is content, no segment after that runs.

        Budgets of the call hold beside those of the policy, see `set_halt`. `cancel` ends the call
        from another thread.

        Args:
            x: the input, of its type and shape, with or without its leading 1; a mapping by name
                where there are several.
            normalize: whether `x` is raw data, to be normalised as the `.ee` file says.
            budget_s: seconds from the call to the answer.
            budget_macs: multiply-accumulates, as a fraction of the whole network's.
            budget_j: energy in joules, as the artifact's costs tell it.

        Raises:
            CompileErrors: `x` is not that, another thread is using the session, or no answer keeps
                a budget (see `set_halt`); nothing has run then.
        """
        how = self._how
        if budget_s is not None or budget_macs is not None or budget_j is not None:
            how = self._limits.limited(how, budget_macs, budget_s, budget_j)
        if not self._in_use.acquire(False):
            raise _in_use()
        try:
            self._stop = stop = self._stops.begin()
            native = self._by_native(how)
            if native is not None:
                return native.run(how, x, normalize, stop)
            if how is None:
                return self._singles.whole(None, x, normalize, stop)
            return self._singles.run(how, x, normalize, stop)
        finally:
            self._stop = None
            self._in_use.release()

    def full_depth(self, x: Inputs, *, normalize: bool = False) -> Answer:
        """The network's own answer for one sample: decisions off, no exit head runs."""
        if not self._in_use.acquire(False):
            raise _in_use()
        try:
            native = self._by_native(None) if self._clock is None else None
            if native is not None:
                return native.whole(x, normalize)
            return self._singles.whole(self._clock, x, normalize)
        finally:
            self._in_use.release()

    def run_batch(self, x: Inputs, *, normalize: bool = False) -> BatchAnswer:
        """The answers for n samples, each leaving at its own exit; what stays goes on together.

        Each answer is that of `run`, whatever other samples there are, also where each may spend
        so many multiply-accumulates or joules. Deadlines are of single samples: a batch runs at the
        fastest clock, and no answer is forced.

        With a policy that learns, a server, a guard, a limit of each sample's time, or any limit
        where gates decide, samples go one after the other as by `run`.

        Args:
            x: (n, ...) samples of the input; a mapping by name where there are several.
            normalize: as in `run`.

        Raises:
            CompileErrors: `x` is not that, or another thread is using the session.
        """
        return self._batch(self._how, x, normalize)

    def full_depth_batch(self, x: Inputs, *, normalize: bool = False) -> BatchAnswer:
        """The network's own answers for n samples: decisions off, no exit head runs."""
        return self._batch(None, x, normalize)

    def _batch(self, how: Deciding | None, x: Inputs, normalize: bool) -> BatchAnswer:
        """A batch, while no other thread uses the session."""
        if not self._in_use.acquire(False):
            raise _in_use()
        try:
            gated = self.manifest.network.gated and how is not None and how.halt is not None
            if how is not None and (how.one_by_one or gated):
                native, singles = self._by_native(how), self._singles
                stop = StopWords().begin()  # Nothing of a batch is cancelled.
                ask = singles if native is None else native
                return run_in_turn(
                    lambda one: ask.run(how, one, False, stop), *(self.manifest, x, normalize)
                )
            if self._clock is not None:
                self._clock.full_speed()
            answers = self._batches.run(how, x, normalize)
            for index, name in enumerate(self.exit_names):
                self._counts[index] += answers.exit_counts[name]
            return answers
        finally:
            self._in_use.release()

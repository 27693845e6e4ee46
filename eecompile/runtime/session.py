"""A compiled network ready to answer: segments, exits and a policy that decides between them."""

from __future__ import annotations

from pathlib import Path
from threading import Lock

from eecompile.artifact import Artifact, read_artifact
from eecompile.artifact_files import LIBRARY
from eecompile.clock_rule import ClockRule
from eecompile.manifest import Manifest
from eecompile.policies.base import ExitPolicy
from eecompile.runtime.answers import Answer, BatchAnswer
from eecompile.runtime.batch import Batches
from eecompile.runtime.clock import Clock
from eecompile.runtime.governor import Governor
from eecompile.runtime.inputs import Inputs, bad_argument
from eecompile.runtime.library import Library
from eecompile.runtime.opening import policy_entry, stored_clock, stored_policy, threads_for
from eecompile.runtime.single import Singles

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


class _Alone:
    """Held while a call is at work: another thread's is refused meanwhile."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(False):
            message = "This session is in use by another thread"
            raise bad_argument(message, "give each thread a `clone()`")

    def __exit__(self, *_: object) -> None:
        self._lock.release()


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
        threads = threads_for(threads, artifact.manifest.target.cores)
        self.artifact, self.threads = artifact, threads
        self._alone = _Alone()
        name = str(artifact.path / LIBRARY)
        self.library = library or Library(artifact.library, artifact.weights, name)
        self._team = self.library.team(threads) if threads > 1 else None
        self._singles = Singles(self.library, artifact.manifest, self._team)
        self._batches = Batches(self.library, artifact.manifest, self._team)
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
        return self.manifest.network.exit_names

    @property
    def exit_counts(self) -> dict[str, int]:
        """Samples each exit has answered since the session was opened or `reset_counts` called."""
        return dict(zip(self.exit_names, self._singles.counts, strict=True))

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
        self._singles.counts = [0] * len(self.exit_names)
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
        artifact = self.artifact
        entry = policy_entry(artifact, policy)
        made = stored_policy(artifact, policy, entry, [s.outputs for s in self._singles.stops])
        workers = () if self._team is None else self._team.workers
        clock, self._governor = stored_clock(artifact, policy, entry, self._governor, workers)
        self.close()
        self._policy, self._policy_name, self._clock = made, policy, clock

    def close(self) -> None:
        """Put clocks back as they were found. The session can be used again."""
        if self._clock is not None:
            self._clock.restore()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        with self._alone:
            return self._singles.run(policy, self._clock, x, normalize)

    def full_depth(self, x: Inputs, *, normalize: bool = False) -> Answer:
        """The network's own answer for one sample: decisions off, no exit head runs."""
        with self._alone:
            return self._singles.whole(self._clock, x, normalize)

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
        return self._batch(self._policy, x, normalize)

    def full_depth_batch(self, x: Inputs, *, normalize: bool = False) -> BatchAnswer:
        """The network's own answers for n samples: decisions off, no exit head runs."""
        return self._batch(None, x, normalize)

    def _batch(self, policy: ExitPolicy | None, x: Inputs, normalize: bool) -> BatchAnswer:
        """A batch, while no other thread uses the session."""
        with self._alone:
            if self._clock is not None:
                self._clock.full_speed()
            answers = self._batches.run(policy, x, normalize)
            for index, name in enumerate(self.exit_names):
                self._singles.counts[index] += answers.exit_counts[name]
            return answers

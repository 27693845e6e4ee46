"""Sets clocks through sysfs, and puts everything back, whatever happens to this process.

Before the first write, what was found is written to a journal on disk and told to a watchdog, a
small process of its own. Then:

====================================  ==========================================================
how it ends                           who restores
====================================  ==========================================================
`restore`, leaving the context        the governor
an error, Ctrl-C, ``sys.exit``        the governor, at the latest when the interpreter exits
SIGTERM, ``os._exit``, crash, kill    the watchdog, as soon as the process is gone
the same, and the watchdog is killed  the next `open_governor` of this user, from the journal
a reboot                              nobody needs to: clocks begin anew, and the journal is void
====================================  ==========================================================

Signals stay the application's: no handler is installed. Limits that were found are never passed.
Another process that changes a governor or a limit is noticed at the next change of clock, reported
once and not fought: that clock is left alone from then on (see `eecompile.runtime.watchdog` for
what is still restored). Heat that holds a clock down is no such change.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import secrets
import warnings
from collections.abc import Sequence
from threading import RLock
from typing import Any

from eecompile.board import Cluster, DvfsState
from eecompile.runtime import watchdog
from eecompile.runtime.clock_domains import CPUFREQ, DEVFREQ, ClockDomain, Taken
from eecompile.runtime.governor import ClockWarning, Governor, NoGovernor, RestoringContext
from eecompile.runtime.journal import Busy, Journal
from eecompile.runtime.levers import Lever
from eecompile.runtime.sysfs import LocalFiles, SysFiles, read_text
from eecompile.runtime.watchdog_process import WatchdogProcess

__all__ = ["CLOCK_REMEDY", "CannotSet", "SysfsGovernor", "open_governor"]

_LIMITS = ("scaling_min_freq", "scaling_max_freq")
#: How to let users set clocks without root. Files of sysfs begin anew with each boot.
#: Source: systemd's tmpfiles.d(5), types `z` and glob patterns.
CLOCK_REMEDY = "\n".join(
    [
        "let the users of a group set clocks, after each boot: put these lines into",
        "/etc/tmpfiles.d/eecompile.conf and run `systemd-tmpfiles --create`",
        *(
            f"z {CPUFREQ}/policy*/{name} 0664 root GROUP"
            for name in ("scaling_governor", "scaling_setspeed", *_LIMITS)
        ),
        f"z {DEVFREQ}/*/min_freq 0664 root GROUP",
        f"z {DEVFREQ}/*/max_freq 0664 root GROUP",
    ]
)

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
#: Refusals in a row after which a clock is left alone; a CPU that is being unplugged gives a few.
_PATIENCE = 3
_PASSING = (errno.EBUSY, errno.EAGAIN, errno.EINTR)


class CannotSet(Exception):
    """No clock of these clusters can be set here; the message says why."""


def open_governor(clusters: Sequence[Cluster], files: SysFiles | None = None) -> Governor:
    """What sets the clocks of these clusters here; a `NoGovernor` with the reason where none can.

    What an earlier process left behind is put back first.

    Args:
        clusters: of the board (`Board.clusters`).
        files: of the machine; this one's if not given.
    """
    try:
        return SysfsGovernor(files or LocalFiles(), tuple(clusters))
    except CannotSet as error:
        warnings.warn(f"Clocks are left alone: {error}", ClockWarning, stacklevel=2)
        return NoGovernor(str(error))


class SysfsGovernor(RestoringContext):
    """Clocks of CPU clusters through cpufreq, and of what else a board names through devfreq.

    A cluster is matched with the policies that have its CPUs; one without CPUs with the devfreq
    device of its name. Nothing is written before the first `set`.

    Attributes:
        notes: which clocks are not offered and why, in sentences.
    """

    def __init__(self, files: SysFiles, clusters: tuple[Cluster, ...]) -> None:
        """Finds the clocks, and restores what an earlier process left.

        Raises:
            CannotSet: there are none, or they may not be set.
        """
        self._files, self._lock = files, RLock()
        self.notes: list[str] = []
        self._reasons: list[str] = []
        self._reported: set[tuple[str, str]] = set()
        self._current: DvfsState | None = None
        self._busy = False  # something was or may have been written
        self._watchdog = WatchdogProcess()
        self._identity = str(getattr(files, "root", getattr(files, "identity", "")))
        self._journal = Journal.find(self._identity) if self._identity else None
        self._stuck: list[dict[str, Any]] = []
        if self._journal is not None:
            self._begin()
            self._journal.release()
        self._levers = {
            cluster.name: lever for cluster in clusters if (lever := self._lever(cluster))
        }
        self._states = tuple(
            state
            for cluster in clusters
            if cluster.name in self._levers
            for state in cluster.states
            if state in self._levers[cluster.name].values
        )
        if not self._states:
            raise CannotSet("; ".join(self.notes) or "the board file names no clocks")

    @property
    def states(self) -> tuple[DvfsState, ...]:
        """As `Governor.states`."""
        return self._states

    @property
    def current(self) -> DvfsState | None:
        """As `Governor.current`."""
        return self._current

    @property
    def reason(self) -> str:
        """As `Governor.reason`."""
        return "; ".join(self._reasons)

    def set(self, state: DvfsState) -> None:
        """As `Governor.set`; a state that is none of `states` is ignored."""
        current = self._current
        if state is current or state == current:
            return
        with self._lock:
            lever = self._levers.get(state.cluster)
            value = None if lever is None else lever.values.get(state)
            if lever is None or value is None:
                return
            self._current = None
            if self._ready(lever):
                self._move(lever, state, value)

    def restore(self) -> None:
        """As `Governor.restore`."""
        with self._lock:
            if not self._busy:
                return
            self._current = None
            self._put_back([d for lever in self._levers.values() for d in lever.domains])
            self._finish()
            for lever in self._levers.values():
                lever.claimed = False

    # How clocks are found.

    def _lever(self, cluster: Cluster) -> Lever | None:
        try:
            found = Lever(self._files, cluster, [stuck["folder"] for stuck in self._stuck])
        except OSError as error:
            self._note(cluster, f"{error.strerror or error}")
            return None
        if found.missing:
            self._note(cluster, found.missing)
        return found

    def _note(self, cluster: Cluster, text: str) -> None:
        self.notes.append(f"cluster {cluster.name}: {text[:1].lower()}{text[1:]}")

    # Before the first write.

    def _begin(self) -> None:
        """Take the journal and put back what an earlier process left.

        Raises:
            CannotSet: another process has it, or it cannot be read.
        """
        assert self._journal is not None, "callers look"
        try:
            left = self._journal.take()
        except (Busy, OSError) as error:
            raise CannotSet(str(error)) from error
        self._stuck = []
        if left is not None and left["boot"] == self._boot() and left["root"] == self._identity:
            done = watchdog.restore_domains(left["domains"], self._files.read, self._files.write)
            self._stuck = done.failed
            self.notes += [f"left by an earlier run: {error}" for error in done.errors]
        if left is not None:
            with contextlib.suppress(OSError):
                self._journal.write(left | {"domains": self._stuck} if self._stuck else None)

    def _boot(self) -> str:
        return read_text(self._files, _BOOT_ID) or ""

    def _ready(self, lever: Lever) -> bool:
        """Whether the lever may be moved; the first time, everything for that is done."""
        if lever.claimed:
            return True
        try:
            if not self._busy:
                self._prepare()
            for domain in lever.domains:
                domain.claim()
            lever.claimed = True
        except (OSError, Taken, CannotSet) as error:
            self._give_up(lever, error)
            return False
        return True

    def _prepare(self) -> None:
        """Look at everything that may be changed, and see to it that it is put back.

        Raises:
            CannotSet: nobody would put it back if this process were killed.
            Taken, OSError: the settings make no sense or cannot be read.
        """
        if self._journal is not None:
            self._begin()
        try:
            found = [
                domain.find(sorted(set(lever.values.values())))
                for lever in self._levers.values()
                for domain in lever.domains
            ]
            record = self._record(found + self._stuck)
            kept = self._write_journal(record)
            journal = str(self._journal.path) if kept and self._journal else ""
            # What is not of this machine is restored by whoever has the files, or from the journal.
            watched = isinstance(self._files, LocalFiles) and self._watchdog.start(record, journal)
            if self._identity and not (kept or watched):
                raise CannotSet("nobody would restore clocks if this process were killed")
        except BaseException:
            self._finish()
            raise
        self._busy = True
        _LIVE.add(self)

    def _write_journal(self, record: dict[str, Any]) -> bool:
        if self._journal is None:
            return False
        try:
            self._journal.write(record)
        except OSError:
            return False
        return True

    # Changing a clock, and what comes in between.

    def _move(self, lever: Lever, state: DvfsState, value: int) -> None:
        try:
            arrived = all([self._move_one(domain, value) for domain in lever.domains])
        except Taken as error:
            self._give_up(lever, error)
            return
        except OSError as error:
            lever.refused += 1
            if error.errno not in _PASSING or lever.refused >= _PATIENCE:
                self._give_up(lever, error)
            return
        lever.refused = 0
        if arrived:
            self._current = state
            return
        told = f"{_wanted(state)} is not reached ({lever.domains[0].describe()})"
        self._report(lever, "not reached", told)

    def _move_one(self, domain: ClockDomain, value: int) -> bool:
        try:
            return domain.move(value)
        except OSError as error:
            if error.errno not in watchdog.GONE:
                raise
            # A CPU that was unplugged and is back has new files, and its governor of before.
            domain.reopen()
            domain.claim()
            return domain.move(value)

    def _give_up(self, lever: Lever, error: Exception) -> None:
        """Leave this clock alone from now on, as it was found where that is possible."""
        self._levers.pop(lever.name, None)
        self._states = tuple(state for state in self._states if state.cluster in self._levers)
        if self._busy:
            self._put_back(lever.domains)
            if not self._levers:
                self._finish()
        lever.close()
        said = (error.strerror if isinstance(error, OSError) else None) or str(error)
        told = f"{said[:1].lower()}{said[1:]}; its clock is left alone from now on"
        self._report(lever, "given up", told)

    def _report(self, lever: Lever, kind: str, text: str) -> None:
        """Say it, once for each kind of trouble."""
        if (lever.name, kind) in self._reported:
            return
        self._reported.add((lever.name, kind))
        self._reasons.append(f"cluster {lever.name}: {text}")
        warnings.warn(self._reasons[-1], ClockWarning, stacklevel=5)

    # Putting back.

    def _put_back(self, domains: list[ClockDomain]) -> None:
        """Restore these, and try once more what could not be restored before."""
        found = [domain.record() for domain in domains if domain.before] + self._stuck
        done = watchdog.restore_domains(found, self._files.read, self._files.write)
        self._stuck = done.failed

    def _finish(self) -> None:
        """Nothing of ours is set any more but what is stuck; that stays in the journal."""
        if self._journal is not None:
            with contextlib.suppress(OSError):
                self._journal.write(self._record(self._stuck) if self._stuck else None)
            self._journal.release()
        self._watchdog.stop()
        self._busy = False
        _LIVE.discard(self)

    def _record(self, domains: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "format": watchdog.FORMAT,
            "token": secrets.token_hex(16),
            "boot": self._boot(),
            "root": self._identity,
            "process": os.getpid(),
            "domains": domains,
        }

    def _forget(self) -> None:
        """In a forked process: clocks are its parent's, and so is the watchdog."""
        self._lock = RLock()
        self._busy, self._current = False, None
        self._levers, self._states = {}, ()
        self._reasons = ["clocks are set by the process this one was forked from"]
        if self._journal is not None:
            self._journal.release()
        self._watchdog.abandon()


def _wanted(state: DvfsState) -> str:
    return "a clock" if state.frequency_hz is None else f"{state.frequency_hz / 1e6:g} MHz"


#: Governors that have changed something: they must not go away before they have restored it.
_LIVE: set[SysfsGovernor] = set()


def _restore_all() -> None:
    for governor in list(_LIVE):
        governor.restore()


def _forget_all() -> None:
    for governor in list(_LIVE):
        governor._forget()
    _LIVE.clear()


atexit.register(_restore_all)
os.register_at_fork(after_in_child=_forget_all)

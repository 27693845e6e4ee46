"""What is measured: a device that runs every function of a network, here or over a wire."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Protocol, Self, runtime_checkable

import numpy as np

from eecompile.hardware import cpu_name
from eecompile.runtime.affinity import Placement
from eecompile.runtime.lane import Call, Lane
from eecompile.runtime.runner import batch_inputs
from eecompile.runtime.session import Session
from eecompile.runtime.sysfs import LocalFiles, SysFiles

__all__ = ["Device", "LocalDevice", "Placing", "Repeating", "timed_round"]


class Device(Protocol):
    """Runs a network's functions one by one on real inputs, and tells what each took."""

    @property
    def name(self) -> str:
        """The processor, as its system names it."""

    @property
    def files(self) -> SysFiles:
        """Where its kernel tells of clocks, sensors and temperatures."""

    @property
    def threads(self) -> int:
        """That share the work of each function."""

    def round(self) -> list[float]:
        """Every function once, in execution order: seconds from each call to its return."""


@runtime_checkable
class Repeating(Protocol):
    """A device that can run one function again and again, so that a slow meter sees it alone."""

    def repeat(self, function: int, seconds: float) -> float:
        """Run it, by its place in execution order, for at least so long; how long it was."""


@runtime_checkable
class Placing(Protocol):
    """A device that can be told which CPUs to run on."""

    def place(self, cpus: Sequence[int]) -> None:
        """Run there from now on; raises OSError where the system does not allow it."""


def timed_round(
    lane: Lane, calls: Sequence[Call], inputs: Mapping[str, np.ndarray], row: int
) -> list[float]:
    """Seconds of each call, made in turn on the sample of `inputs` (n, ...) in that row."""
    for name, array in inputs.items():
        lane.values[name][:1] = array[row : row + 1]
    times = []
    for call in calls:
        start = perf_counter()
        call.one()
        times.append(perf_counter() - start)
    return times


class LocalDevice:
    """This machine, running an artifact's functions as a session does: same code, same memory.

    A context manager: leaving it gives the threads back the CPUs they had. A time is that of a
    call of the compiled code, with what ctypes takes for it.
    """

    def __init__(
        self,
        session: Session,
        inputs: Mapping[str, np.ndarray],
        files: SysFiles | None = None,
    ) -> None:
        """Takes the session's code and number of threads.

        Args:
            session: whose network is run.
            inputs: samples of each input by name (n, ...), taken in turn.
            files: of this machine's kernel.

        Raises:
            CompileErrors: `inputs` do not fit the network.
        """
        network = session.manifest.network
        self.name, self.threads = cpu_name(), session.threads
        self.files: SysFiles = files or LocalFiles()
        self._inputs, self._count = batch_inputs(inputs, network.inputs)
        team = session.library.team(session.threads) if session.threads > 1 else None
        functions = network.functions()
        self._lane = Lane(session.library, network.inputs, network.steps(), 1, team)
        self._lane.set_shift(-np.inf)  # Gates are timed; what they decide about is all kept.
        self._calls = [self._lane.calls[function.symbol] for function in functions]
        self._rounds = 0
        self._placement = Placement()

    def round(self) -> list[float]:
        """Every function once, on the next sample."""
        row = self._rounds % self._count
        self._rounds += 1
        return timed_round(self._lane, self._calls, self._inputs, row)

    def repeat(self, function: int, seconds: float) -> float:
        """One function on the values that the latest round left, for at least so many seconds."""
        call, start = self._calls[function], perf_counter()
        while True:
            for _ in range(8):
                call.one()
            if (taken := perf_counter() - start) >= seconds:
                return taken

    def place(self, cpus: Sequence[int]) -> None:
        """All threads of this process run on these CPUs from now on.

        Raises:
            OSError: it may use none of them.
        """
        if not self._placement.move(cpus):
            raise OSError(errno.EINVAL, f"this process may not use CPUs {list(cpus)}")

    def close(self) -> None:
        """Give every thread the CPUs it had."""
        self._placement.restore()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes."""
        self.close()

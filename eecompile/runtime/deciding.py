"""Who decides on a session's samples: its policy, and what goes with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Protocol

import numpy as np

from eecompile.policies.base import ExitPolicy
from eecompile.runtime.clock import Clock
from eecompile.runtime.guard import Guard
from eecompile.runtime.halting import Halting

__all__ = ["Deciding", "Server"]


class Server(Protocol):
    """Answers for samples that a policy offloads: see `eecompile.runtime.offload.Offloader`."""

    counts: dict[str, int]
    last_failure: str

    def connect(self) -> bool:
        """Whether it is there and has the artifact's models."""

    def answer(self, exit_index: int, values: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """The network's own answer, of the shape its output has; None: nobody gave it in time.

        `values` are what later segments read; they are the session's memory, and as they are for
        this call only.
        """

    def close(self) -> None:
        """Closes connections; a later answer opens them anew."""


@dataclass(frozen=True, slots=True)
class Deciding:
    """A policy in use.

    Attributes:
        policy: decides.
        name: of a stored one; None where it is the caller's.
        clock: chooses clocks; None where they are left alone.
        server: answers samples that are offloaded; None: they run to the network's end.
        guard: watches answers; None where nothing is watched.
        halt: what each sample may spend; None where that is not limited. It goes with no clock, no
            server, no guard and no policy that learns.
        gates: whether those of the network decide, where it has any. Not where decisions are off,
            and exits only serve to keep a budget.
        lock: held where what the policy and the guard know is read or changed; they are shared
            between clones, and each thread's samples add to it.
    """

    policy: ExitPolicy
    name: str | None = None
    clock: Clock | None = None
    server: Server | None = None
    guard: Guard | None = None
    halt: Halting | None = None
    gates: bool = True
    lock: Lock = field(default_factory=Lock)

    @property
    def one_by_one(self) -> bool:
        """Whether a sample's way may depend on those before it or on time, or lead to a server."""
        timed = self.halt is not None and self.halt.timed
        return self.policy.online or self.server is not None or self.guard is not None or timed

    def close(self) -> None:
        """Clocks are put back, connections closed."""
        if self.clock is not None:
            self.clock.restore()
        if self.server is not None:
            self.server.close()

"""Step 6: one C function for each graph, that calls its kernels for sample after sample.

    int32_t symbol(const int64_t *frame, int32_t thread, int32_t threads, void *team)

`frame` holds n, then the addresses of weights, workspace, inputs and outputs. Every thread of a
team makes this call; between a phase and the next that depends on it all wait for each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import tirx
from tvm.ir import PointerType, PrimType

__all__ = ["Address", "Call", "Shared", "entry_function"]

_POINTER = PointerType(PrimType("void"))

#: What a team's threads call to wait for each other; see team.c.
_WAIT = "eecompile_team_wait"


@dataclass(frozen=True)
class Address:
    """A place: `base` is "weights", "workspace", "private", "in0", "out0", ...

    `stride` is in bytes a sample. "private" is a thread's own part of the workspace.
    """

    base: str
    offset: int = 0
    stride: int = 0


@dataclass(frozen=True)
class Shared:
    """A C function ``(begin, end, pointers...)`` whose `units` up to `threads` threads share."""

    symbol: str
    units: int
    threads: int


@dataclass(frozen=True)
class Call:
    """A kernel's phases and the places it is called with."""

    phases: tuple[Shared, ...]
    arguments: tuple[Address, ...]


def entry_function(
    symbol: str,
    calls: Sequence[Call],
    inputs: int,
    outputs: int,
    workspace_bytes: int,
    private_bytes: int,
) -> tirx.PrimFunc:
    """The function that runs `calls` for each of its n samples and returns 0.

    The workspace holds `workspace_bytes` for all threads, then `private_bytes` for each.
    """
    names = ["weights", "workspace"]
    names += [f"in{i}" for i in range(inputs)] + [f"out{i}" for i in range(outputs)]
    entry = _Entry({name: place + 1 for place, name in enumerate(names)})
    entry.private = (workspace_bytes, private_bytes)
    steps = [(phase, call.arguments) for call in calls for phase in call.phases]
    body: list[tirx.Stmt] = []
    for place, (phase, arguments) in enumerate(steps):
        body.append(entry.run(phase, arguments))
        # The next phase; after the last one that of the next sample, which uses the memory again.
        following = steps[(place + 1) % len(steps)][0]
        if phase.threads > 1 or following.threads > 1:
            body.append(entry.wait())
    zero = tirx.const(0, "int32")
    run = _sequence(body or [tirx.Evaluate(zero)])
    n = tirx.BufferLoad(entry.frame, [0])
    loop = tirx.For(entry.sample, tirx.const(0, "int64"), n, tirx.ForKind.SERIAL, run)
    function = tirx.PrimFunc(
        [entry.pointer, entry.thread, entry.threads, entry.team],
        tirx.SeqStmt([entry.declared, loop, tirx.stmt.Return(zero)]),
        PrimType("int32"),
        tvm.ir.make_node("ir.DictAttrs"),
    )
    return function.with_attr("global_symbol", symbol)


def _sequence(statements: Sequence[tirx.Stmt]) -> tirx.Stmt:
    return tirx.SeqStmt(list(statements)) if len(statements) > 1 else statements[0]


class _Entry:
    """The parameters of an entry function, and statements in their terms."""

    private: tuple[int, int]

    def __init__(self, places: dict[str, int]) -> None:
        self.places = places
        self.pointer = tirx.Var("frame", PointerType(PrimType("int64")))
        self.frame = tirx.decl_buffer((len(places) + 1,), "int64", data=self.pointer)
        self.declared = tirx.DeclBuffer(self.frame, data=self.pointer)
        self.thread = tirx.Var("thread", PrimType("int32"))
        self.threads = tirx.Var("threads", PrimType("int32"))
        self.team = tirx.Var("team", _POINTER)
        self.sample = tirx.Var("sample", PrimType("int64"))

    def _place(self, address: Address) -> Any:
        base = "workspace" if address.base == "private" else address.base
        at = tirx.BufferLoad(self.frame, [self.places[base]])
        if address.offset:
            at = at + tirx.const(address.offset, "int64")
        if address.stride:
            at = at + self.sample * tirx.const(address.stride, "int64")
        if address.base == "private":
            first, size = self.private
            at = at + (
                tirx.const(first, "int64")
                + self.thread.astype("int64") * tirx.const(size, "int64")
            )
        return tirx.call_intrin(_POINTER, "tirx.reinterpret", at)

    def run(self, phase: Shared, arguments: Sequence[Address]) -> tirx.Stmt:
        """A thread's own part of a phase."""
        places = [self._place(argument) for argument in arguments]

        def part(begin: Any, end: Any) -> tirx.Stmt:
            return tirx.Evaluate(tirx.call_extern("int32", phase.symbol, begin, end, *places))

        if phase.threads == 1:
            whole = part(tirx.const(0, "int32"), tirx.const(phase.units, "int32"))
            return tirx.IfThenElse(self.thread == 0, whole, None)
        sharing = tirx.min(self.threads, tirx.const(phase.threads, "int32")).astype("int64")
        units = tirx.const(phase.units, "int64")

        def bound(thread: Any) -> Any:
            return tirx.truncdiv(units * thread.astype("int64"), sharing).astype("int32")

        return tirx.IfThenElse(
            self.thread < phase.threads, part(bound(self.thread), bound(self.thread + 1)), None
        )

    def wait(self) -> tirx.Stmt:
        """Wait for the other threads, where there are any."""
        waiting = tirx.Evaluate(tirx.call_extern("int32", _WAIT, self.team))
        return tirx.IfThenElse(self.threads > 1, waiting, None)

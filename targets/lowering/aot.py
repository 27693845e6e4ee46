"""Step 6: one C function for each graph, that calls its kernels for sample after sample.

    int32_t symbol(const int64_t *frame, int32_t thread, int32_t threads, void *team)

`frame` holds n, then the addresses of weights, workspace, inputs and outputs. Every thread of a
team makes this call; behind a phase that several threads share all wait for each other. A long
function calls parts of itself, each with the number of the sample as a further parameter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import tirx
from tvm.ir import PointerType, PrimType

__all__ = ["Address", "Call", "Shared", "entry_functions"]

_POINTER = PointerType(PrimType("void"))

#: Phases that one function calls at most; an entry function of more calls parts of itself. A long
#: one takes LLVM very long: building a network of 1,205 kernels took 49 s of processor
#: time with one function and 8 to 9 s with parts, measured on an AMD EPYC (family 25 model 17).
_PART = 32

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


def entry_functions(
    symbol: str,
    calls: Sequence[Call],
    inputs: int,
    outputs: int,
    workspace_bytes: int,
    private_bytes: int,
) -> dict[str, tirx.PrimFunc]:
    """The function that runs `calls` for each of its n samples and returns 0, and its parts.

    The workspace holds `workspace_bytes` for all threads, then `private_bytes` for each.
    """
    names = ["weights", "workspace"]
    names += [f"in{i}" for i in range(inputs)] + [f"out{i}" for i in range(outputs)]
    layout = _Layout(
        {name: place + 1 for place, name in enumerate(names)}, workspace_bytes, private_bytes
    )
    steps = [(phase, call.arguments) for call in calls for phase in call.phases]
    # The next phase; after the last one that of the next sample, which uses the memory again.
    following = [phase for phase, _ in (*steps[1:], *steps[:1])]
    parts = [
        [
            (*step, step[0].threads > 1 or after.threads > 1)
            for step, after in zip(steps[first : first + _PART], following[first:], strict=False)
        ]
        for first in range(0, len(steps), _PART)
    ]
    entry = _Entry(layout)
    if len(parts) <= 1:
        return {symbol: entry.over_samples(symbol, entry.steps(parts[0]) if parts else [])}
    found, called = {}, []
    for number, part in enumerate(parts):
        name = f"part{number}_of_{symbol}"
        one = _Entry(layout)
        found[name] = one.for_a_sample(name, one.steps(part))
        called.append(entry.call(name))
    return {**found, symbol: entry.over_samples(symbol, called)}


@dataclass(frozen=True)
class _Layout:
    """Where a frame holds each address, and the bytes of a workspace."""

    places: Mapping[str, int]
    shared_bytes: int
    private_bytes: int


class _Entry:
    """The parameters of an entry function or of a part of it, and statements in their terms."""

    def __init__(self, layout: _Layout) -> None:
        self.layout = layout
        self.pointer = tirx.Var("frame", PointerType(PrimType("int64")))
        self.frame = tirx.decl_buffer((len(layout.places) + 1,), "int64", data=self.pointer)
        self.thread = tirx.Var("thread", PrimType("int32"))
        self.threads = tirx.Var("threads", PrimType("int32"))
        self.team = tirx.Var("team", _POINTER)
        self.sample = tirx.Var("sample", PrimType("int64"))
        self.parameters = [self.pointer, self.thread, self.threads, self.team]

    # -- functions -------------------------------------------------------------

    def over_samples(self, symbol: str, body: Sequence[tirx.Stmt]) -> tirx.PrimFunc:
        """The function that does `body` for each sample."""
        n = tirx.BufferLoad(self.frame, [0])
        run = tirx.SeqStmt([*body, tirx.Evaluate(tirx.const(0, "int32"))])
        loop = tirx.For(self.sample, tirx.const(0, "int64"), n, tirx.ForKind.SERIAL, run)
        return self._function(symbol, self.parameters, [loop])

    def for_a_sample(self, symbol: str, body: Sequence[tirx.Stmt]) -> tirx.PrimFunc:
        """The function that does `body` for the sample it is given."""
        return self._function(symbol, [*self.parameters, self.sample], body)

    def _function(
        self, symbol: str, parameters: Sequence[Any], body: Sequence[tirx.Stmt]
    ) -> tirx.PrimFunc:
        declared = tirx.DeclBuffer(self.frame, data=self.pointer)
        done = tirx.stmt.Return(tirx.const(0, "int32"))
        function = tirx.PrimFunc(
            list(parameters),
            tirx.SeqStmt([declared, *body, done]),
            PrimType("int32"),
            tvm.ir.make_node("ir.DictAttrs"),
        )
        return function.with_attr("global_symbol", symbol)

    # -- statements ------------------------------------------------------------

    def steps(self, steps: Sequence[tuple[Shared, Sequence[Address], bool]]) -> list[tirx.Stmt]:
        """Phases in order, all threads waiting for each other behind those that say so."""
        body = []
        for phase, arguments, waits in steps:
            body.append(self._run(phase, arguments))
            if waits:
                body.append(self._wait())
        return body

    def call(self, part: str) -> tirx.Stmt:
        """Runs a part."""
        arguments = (*self.parameters, self.sample)
        return tirx.Evaluate(tirx.call_extern("int32", part, *arguments))

    def _place(self, address: Address) -> Any:
        base = "workspace" if address.base == "private" else address.base
        at = tirx.BufferLoad(self.frame, [self.layout.places[base]])
        if address.offset:
            at = at + tirx.const(address.offset, "int64")
        if address.stride:
            at = at + self.sample * tirx.const(address.stride, "int64")
        if address.base == "private":
            own = self.thread.astype("int64") * tirx.const(self.layout.private_bytes, "int64")
            at = at + (tirx.const(self.layout.shared_bytes, "int64") + own)
        return tirx.call_intrin(_POINTER, "tirx.reinterpret", at)

    def _run(self, phase: Shared, arguments: Sequence[Address]) -> tirx.Stmt:
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

    def _wait(self) -> tirx.Stmt:
        """Wait for the other threads, where there are any."""
        waiting = tirx.Evaluate(tirx.call_extern("int32", _WAIT, self.team))
        return tirx.IfThenElse(self.threads > 1, waiting, None)

"""Memory for samples on their way through a network, and the functions bound to it."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from eecompile.compiled import CompiledStep, Function, Value, batch_shape
from eecompile.diagnostics import InternalError
from eecompile.memory import lasting_values, plan_network
from eecompile.packing import aligned as padded
from eecompile.runtime.library import Code, Library, Team, aligned
from eecompile.segments import SHIFT

__all__ = ["WORTH_A_TEAM", "Call", "Chain", "Lane", "leading"]

#: Multiply-accumulates that are worth a team where a function's phases alone are not: a core takes
#: some 20 us for them, a thread that sleeps 5 to 50 us to wake.
WORTH_A_TEAM = 1 << 20


class Call:
    """A function with all its arguments but the number of samples.

    Its results do not depend on the team, nor on how the work is shared.
    """

    __slots__ = ("_arguments", "_code", "_frame", "_place", "_run", "_strides", "_team", "function")

    def __init__(
        self, function: Function, code: Code, addresses: Sequence[int], team: Team | None = None
    ) -> None:
        """`addresses` follow the number of samples in the frame."""
        self.function, self._code, self._team = function, code, team
        self._frame = (ctypes.c_int64 * (1 + len(addresses)))(1, *addresses)
        self._strides = (ctypes.c_int64 * len(addresses))(
            0,
            padded(function.workspace_bytes + function.private_bytes),
            *(type_.nbytes for _, type_ in (*function.inputs, *function.outputs)),
        )
        self._place = ctypes.c_void_p(ctypes.addressof(self._frame))
        self._run, self._arguments = leading(code, self._place, team, function.threads)

    @property
    def places(self) -> tuple[int, int]:
        """Addresses of its code and of its frame."""
        code: Any = self._code
        return ctypes.cast(code, ctypes.c_void_p).value or 0, ctypes.addressof(self._frame)

    @property
    def strides(self) -> tuple[int, int]:
        """Address and number of its strides, see team.c."""
        return ctypes.addressof(self._strides), len(self._strides)

    def one(self) -> None:
        """Run it on the first sample."""
        self._frame[0] = 1
        if status := self._run(*self._arguments):
            self._fail(status)

    def many(self, count: int) -> None:
        """Run it on the first `count` samples.

        Where each of a team's threads gets some, they share the samples: sharing phases, they would
        wait for each other after every one.
        """
        self._frame[0] = count
        function, team = self.function, self._team
        if team is None or count < team.threads:
            status = self._run(*self._arguments)
        elif function.threads > 1 or count * function.macs >= WORTH_A_TEAM:
            strides = self._strides
            status = team.samples(
                *(team.handle, ctypes.c_int32(team.threads), self._code, self._place),
                *(strides, ctypes.c_int64(len(strides))),
            )
        else:
            status = self._code(self._place, 0, 1, None)
        if status:
            self._fail(status)

    def _fail(self, status: int) -> None:
        raise InternalError(f"compiled function {self.function.symbol} returned {status}")


class Chain:
    """Calls one after the other on the first sample, as one call: Python is asked once."""

    __slots__ = ("_arguments", "_calls", "_frame", "_run")

    def __init__(self, chain: Code, calls: Sequence[Call], team: Team | None = None) -> None:
        """`chain` is the library's code for it; the calls' lane is for single samples only."""
        self._calls = tuple(calls)  # Their frames must live as long as this one.
        places = [place for call in calls for place in call.places]
        self._frame = (ctypes.c_int64 * (1 + len(places)))(len(calls), *places)
        frame = ctypes.c_void_p(ctypes.addressof(self._frame))
        self._run, self._arguments = leading(
            chain, frame, team, max((call.function.threads for call in calls), default=1)
        )

    def one(self) -> None:
        """Run them."""
        if status := self._run(*self._arguments):
            names = " or ".join(call.function.symbol for call in self._calls)
            raise InternalError(f"compiled function {names} returned {status}")


def leading(
    code: Code, frame: ctypes.c_void_p, team: Team | None, threads: int
) -> tuple[Code, tuple[Any, ...]]:
    """What runs a function phase by phase, and its arguments.

    ctypes is quickest with what is converted already.
    """
    if team is None or threads < 2:
        return code, (frame, ctypes.c_int32(0), ctypes.c_int32(1), ctypes.c_void_p())
    return team.run, (team.handle, ctypes.c_int32(min(team.threads, threads)), code, frame)


class Lane:
    """Room for `capacity` samples of every value, and the functions bound to it. For one thread.

    All of it is one block, in which values and workspaces that are not needed at the same time
    share memory: see `plan_network` for when a value is there.

    Attributes:
        library, team: as given.
        values: value name -> array (capacity, ...), aligned; `batch_shape` says its shape.
        calls: symbol -> the function, reading and writing `values`.
    """

    def __init__(
        self,
        library: Library,
        inputs: Sequence[Value],
        functions: Sequence[Function | CompiledStep],
        capacity: int,
        team: Team | None = None,
        kept: Collection[str] = (),
    ) -> None:
        """Allocates everything; calls allocate nothing. `team` shares the work of every call.

        Args:
            library: has the functions.
            inputs: the network's.
            functions: in the order in which they will be called, perhaps not all of them; steps,
                where some of them may be left out.
            capacity: samples.
            team: None: the caller works alone.
            kept: values that are looked at when all functions have run.

        Raises:
            CompileErrors: the library lacks a function, or there is not enough memory.
        """
        self.capacity, self.team, self.library = capacity, team, library
        threads = 1 if team is None else team.threads
        plan = plan_network(inputs, functions, capacity, threads, kept)
        lasting = lasting_values(functions)
        called = [step.function if isinstance(step, CompiledStep) else step for step in functions]
        self._block = library.memory(plan.nbytes)
        types = dict((*inputs, *lasting.values())) | {v: t for f in called for v, t in f.outputs}
        self.values = {
            name: self._block[plan.values[name] :][: type_.nbytes * capacity]
            .view(type_.dtype)
            .reshape(batch_shape(type_, capacity))
            for name, type_ in types.items()
        }
        start = self._block.ctypes.data
        self._workspaces = {symbol: start + at for symbol, at in plan.workspaces.items()}
        self._codes = {function.symbol: library.function(function) for function in called}
        self.calls = {
            function.symbol: self.bound(
                function,
                [self.values[name] for name, _ in function.inputs],
                [self.values[name] for name, _ in function.outputs],
            )
            for function in called
        }
        self._scores = [self.values[name] for name in lasting if name != SHIFT[0]]
        self.keep_everything()
        self.set_shift(0.0)

    def keep_everything(self) -> None:
        """Scores with which nothing is left out, where no gates run."""
        for scores in self._scores:
            scores.fill(1)

    def set_shift(self, shift: float) -> None:
        """What gates subtract from their scores from now on; 0 before."""
        if SHIFT[0] in self.values:
            self.values[SHIFT[0]].fill(shift)

    def bound(
        self, function: Function, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]
    ) -> Call:
        """`function` on other arrays than the lane's own; the caller keeps them alive."""
        places = [array.ctypes.data for array in (*inputs, *outputs)]
        weights, workspace = self.library.weights.ctypes.data, self._workspaces[function.symbol]
        code = self._codes[function.symbol]
        return Call(function, code, [weights, workspace, *places], self.team)

    def keep(self, names: Iterable[str], rows: np.ndarray) -> None:
        """Move the samples `rows` (ascending) of some values to the front, in their order."""
        for name in names:
            values = self.values[name]
            values[: len(rows)] = values[rows]

    def copied(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Some samples of a value in memory of their own, aligned."""
        values = self.values[name]
        shape = (len(rows), *values.shape[1:])
        found = aligned(values[0].nbytes * len(rows)).view(values.dtype).reshape(shape)
        return np.take(values, rows, axis=0, out=found, mode="clip")

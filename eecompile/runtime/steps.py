"""Steps that gates leave out, run by native code in one call: see steps.c."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Sequence

import numpy as np

from eecompile.compiled import CompiledStep
from eecompile.diagnostics import InternalError
from eecompile.memory import WayLeftOut, ways_left_out
from eecompile.runtime.lane import WORTH_A_TEAM, Lane, leading
from eecompile.runtime.stopping import StopWord

__all__ = ["Part", "Program"]

_WORD = ctypes.c_int64


class _Step(ctypes.Structure):
    """As in steps.c."""

    _fields_ = (
        ("code", _WORD),
        ("frame", _WORD),
        ("strides", _WORD),
        ("places", _WORD),
        ("gate", _WORD),
        ("keep", _WORD),
        ("output", _WORD),
        ("otherwise", _WORD),
        ("bytes", _WORD),
        ("channels", _WORD),
        ("groups", _WORD),
        ("macs", _WORD),
        ("group_macs", _WORD),
        ("block", _WORD),
        ("cost", ctypes.c_double),
        ("group_cost", ctypes.c_double),
        ("need", ctypes.c_double),
    )


class _Tally(ctypes.Structure):
    """As in steps.c."""

    _fields_ = (
        ("macs", _WORD),
        ("blocks", _WORD),
        ("spent", ctypes.c_double),
        ("stopped", _WORD),
    )


class _Program(ctypes.Structure):
    """As in steps.c."""

    _fields_ = (
        ("steps", _WORD),
        ("count", _WORD),
        ("tallies", _WORD),
        ("kept", _WORD),
        ("gates", _WORD),
        ("stop", _WORD),
        ("limit", _WORD),
        ("budget", ctypes.c_double),
        ("start_ns", _WORD),
        ("next", _WORD),
    )


_UNLIMITED, _COUNTED, _TIMED = range(3)


class Program:
    """Steps bound to a lane's memory, and what samples took on their way through them.

    Attributes:
        steps: in execution order.
        blocks: blocks that gates may leave out, each with a score of its own.
        table: fields ``cost`` and ``group_cost``, what a step adds to a sample's `spent` and each
            of its groups that is left out takes off; and ``need``, what must be left of the budget
            before it runs. float64, one entry a step; 0, 0 and minus infinity (no budget ends the
            way there) where nobody has set them.
        tallies: what each sample took since `begin`: fields ``macs`` and ``blocks``, int64,
            ``spent``, float64, and ``stopped``, int64: 1 + the step before which it stopped, 0
            where it did not.
        kept: int32 (capacity, steps) once `record` was called: the groups of channels that ran, 0
            where a step has none, -1 where it did not run.
    """

    def __init__(
        self, lane: Lane, steps: Sequence[CompiledStep], wanted: Collection[str] = ()
    ) -> None:
        """Calls allocate nothing.

        Args:
            lane: has all of the steps, and perhaps others.
            steps: in execution order.
            wanted: values that are read by others than these steps.

        Raises:
            CompileErrors: the library has no code for this.
        """
        self.lane, self.steps = lane, tuple(steps)
        self._code = lane.library.steps()
        self._table = (_Step * len(steps))()
        self._tallies = (_Tally * lane.capacity)()
        self.table = np.asarray(self._table)
        self.tallies = np.asarray(self._tallies)
        self.kept: np.ndarray | None = None
        ways = ways_left_out(self.steps, wanted)
        for index, (step, way) in enumerate(zip(self.steps, ways, strict=True)):
            self._table[index] = self._bound(step, way)
        self.blocks = sum(way.is_block for way in ways)
        self._header = _Program(
            ctypes.addressof(self._table), len(steps), ctypes.addressof(self._tallies)
        )
        self._shift, self._decided = 0.0, False
        self._word: StopWord | None = None

    def _bound(self, step: CompiledStep, way: WayLeftOut) -> _Step:
        call, values = self.lane.calls[step.function.symbol], self.lane.values

        def address(name: str) -> int:
            return values[name].ctypes.data if name else 0

        output = way.output
        nbytes = dict(step.function.outputs)[output].nbytes if output else 0
        if step.otherwise and output and values[step.otherwise][0].nbytes != nbytes:
            raise InternalError(f"{step.otherwise} cannot stand for {output}: other sizes")
        return _Step(
            *(*call.places, *call.strides),
            *(step.gate, address(step.keep)),
            *(address(output), address(step.otherwise), nbytes),
            *(address(step.channels), step.groups),
            *(step.function.macs, step.group_macs, way.is_block),
            *(0.0, 0.0, -np.inf),
        )

    def part(self, first: int, end: int) -> Part:
        """The steps from `first` to before `end`, to be called."""
        return Part(self, first, end)

    def begin(self, count: int = 1, *, gates: bool, shift: float = 0.0) -> None:
        """Samples start anew: nothing spent, nothing stopped.

        Args:
            count: how many.
            gates: whether gates run. If not, nothing is left out, unless `given` says what.
            shift: what gates subtract from their scores.
        """
        header = self._header
        if not gates and self._decided:
            self.lane.keep_everything()
        header.gates = self._decided = gates
        if gates and shift != self._shift:
            self.lane.set_shift(shift)
            self._shift = shift
        ctypes.memset(header.tallies, 0, count * ctypes.sizeof(_Tally))
        if self.kept is not None:
            self.kept[:count] = -1

    def given(self, scores: dict[str, np.ndarray]) -> None:
        """Decisions in the place of those of gates, after ``begin(gates=False)``.

        Args:
            scores: by name, (n, 1) or (n, groups); nothing is left out by those not named.
        """
        self.lane.keep_everything()
        self._decided = True
        for name, given in scores.items():
            self.lane.values[name][: len(given)] = given

    def record(self) -> None:
        """Fill in `kept` from now on."""
        self.kept = np.full((self.lane.capacity, len(self.steps)), -1, np.int32)
        self._header.kept = self.kept.ctypes.data

    def stop_by(self, word: StopWord | None) -> None:
        """No step begins from now on while `word` is true. Any thread may set it."""
        self._word = word
        self._header.stop = 0 if word is None else word.address.value or 0

    def limit(self, budget: float | None, start_ns: int | None = None) -> None:
        """A step only begins where what was spent, with its ``need``, is at most `budget`.

        Args:
            budget: of the table's costs, or in seconds; None: without limit.
            start_ns: of ``time.monotonic_ns()`` (CLOCK_MONOTONIC): what was spent is the time
                since then. None: it is the costs, of each sample its own.
        """
        header = self._header
        header.limit = _UNLIMITED if budget is None else _COUNTED if start_ns is None else _TIMED
        header.budget, header.start_ns = budget or 0.0, start_ns or 0

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the first sample, gates included."""
        return int(self._tallies[0].macs)

    @property
    def blocks_run(self) -> int:
        """Blocks that ran for the first sample, of `blocks`."""
        return int(self._tallies[0].blocks)

    @property
    def stopped(self) -> int | None:
        """The step before which the first sample stopped, None where it did not."""
        stopped: int = self._tallies[0].stopped
        return stopped - 1 if stopped else None

    @property
    def address(self) -> int:
        """Of the structure that steps.c reads."""
        return ctypes.addressof(self._header)


class Part:
    """Some of a program's steps, for the samples that lie at the front of its lane.

    What a step before which a sample stopped would have computed is not there; later calls do
    nothing for it, until `Program.begin`.
    """

    __slots__ = ("_arguments", "_frame", "_program", "_run", "_shared", "_symbols")

    def __init__(self, program: Program, first: int, end: int) -> None:
        """See `Program.part`."""
        self._program = program
        self._frame = (_WORD * 4)(1, program.address, first, end)
        place = ctypes.c_void_p(ctypes.addressof(self._frame))
        functions = [step.function for step in program.steps[first:end]]
        threads = max((function.threads for function in functions), default=1)
        team, code = program.lane.team, program._code
        self._run, self._arguments = leading(code, place, team, threads)
        self._symbols = [function.symbol for function in functions]
        #: Samples from which on all of a team's threads share them, and how they are called.
        self._shared = None
        if team is not None:
            macs = max(1, sum(function.macs for function in functions))
            enough = 1 if threads > 1 else -(-WORTH_A_TEAM // macs)
            self._shared = max(team.threads, enough), leading(code, place, team, team.threads)

    def one(self) -> None:
        """Run them for the first sample."""
        self._frame[0] = 1
        if status := self._run(*self._arguments):
            self._fail(status)

    def many(self, count: int) -> None:
        """Run them for the first `count` samples, each with decisions of its own."""
        self._frame[0] = count
        run, arguments = self._run, self._arguments
        if self._shared is not None and count >= self._shared[0]:
            run, arguments = self._shared[1]
        if status := run(*arguments):
            self._fail(status)

    def _fail(self, status: int) -> None:
        raise InternalError(f"compiled function {' or '.join(self._symbols)} returned {status}")

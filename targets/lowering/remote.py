"""A board that is measured over a wire, by TVM's own RPC server running there.

The board runs ``python -m tvm.exec.rpc_server`` and nothing of ours: remote.c is compiled here for
the board and handed to it, and so are the artifact's code, weights and test vectors. The board
itself takes the times and reads the meters, so that the wire does not count. What is written to
its kernel's files is put back when the session ends, however it ends.

NOTE: TVM's RPC has neither passwords nor encryption: whoever reaches the port runs code on the
board. Only for networks in which everybody may.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

import numpy as np
import tvm_ffi.libinfo

from eecompile.artifact import Artifact
from eecompile.artifact_files import bad_artifact
from eecompile.compiled import Function
from eecompile.deviation import Deviation
from eecompile.diagnostics import CompileErrors, Diagnostic, InternalError, ToolError
from eecompile.hardware import Machine, parse_cpu_features
from eecompile.manifest import TargetInfo
from eecompile.memory import plan_network
from eecompile.packing import aligned
from eecompile.segments import SHIFT
from eecompile.targets.lowering.link import link_source
from eecompile.targets.lowering.remote_connection import Address, Connection, read_address
from eecompile.targets.lowering.remote_files import RemoteFiles, board_model

__all__ = ["Reading", "RemoteDevice", "RemoteFiles", "Repeated", "read_address"]

_SOURCES = tuple(Path(__file__).parent / name for name in ("remote.c", "remote_files.c"))
_FUNCTIONS = (
    *("read", "write", "remember", "names"),  # remote_files.c
    *("begin", "open", "add", "put", "get", "place", "round", "repeat"),  # remote.c
)
#: Bytes of weights and samples that travel together: some seconds of a slow wire.
_PART = 4 << 20


@dataclass(frozen=True, slots=True)
class Reading:
    """What some files held at a time.

    Attributes:
        time_s: when the first of them was read, since the readings began.
        texts: of each file, in the order asked for; None where it could not be read.
    """

    time_s: float
    texts: tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class Repeated:
    """A function run again and again, alone.

    Attributes:
        calls: how often.
        seconds: that they took together.
        readings: taken on the board: one right before the first call, one right after the last,
            and those in between.
    """

    calls: int
    seconds: float
    readings: tuple[Reading, ...]


class RemoteDevice:
    """A board that runs an artifact's functions as a session there would: same code, same memory.

    A time is that of a call of the compiled code, taken on the board's own clock. Opening one
    compares what the board computes with the artifact's test vectors, and refuses wrong numbers.

    A context manager: leaving it ends the session.

    Attributes:
        name: the processor, as the board names it.
        files: of the board's kernel.
        threads: that share the work of each function.
        max_abs_error: largest deviation of the board's results from the artifact's test vectors.
    """

    def __init__(
        self,
        artifact: Artifact,
        address: Address,
        *,
        threads: int | None = None,
        connect_s: float = 20.0,
        answer_s: float = 60.0,
        root: str = "",
    ) -> None:
        """Connects, hands over what is needed and checks the results.

        Args:
            artifact: read with ``must_run=False``.
            address: of the board's server, or of a tracker that knows it.
            threads: None: those the artifact was built for.
            connect_s: seconds to wait for a session.
            answer_s: seconds to wait for each answer, beside what was asked to take time.
            root: folder on the board under which /sys and /proc are taken to lie, for tests.

        Raises:
            ToolError: no session, or it was lost; or no linker for the board.
            CompileErrors: the artifact does not run there, or computes something else there.
        """
        self.threads = artifact.manifest.target.cores if threads is None else threads
        self._artifact, self._rounds = artifact, 0
        self._functions = artifact.manifest.network.functions()
        library = _board_library(artifact.manifest.target)
        self._connection = Connection(address, connect_s=connect_s, answer_s=answer_s)
        try:
            self._hand_over(library, root)
            self.files = RemoteFiles(self._connection)
            self._check_features()
            self.name = board_model(self.files) or artifact.manifest.target.architecture
            self._open_network()
            self._check_results()
        except BaseException:
            self.close()
            raise

    def round(self) -> list[float]:
        """Every function once, in execution order, on the next sample: seconds of each call.

        Before it the same is done untimed: a board that waited for the wire is not warm.
        """
        row = self._rounds % self._count
        self._rounds += 1
        return self._run(self._copies(row), 0, len(self._functions), turns=2)

    def repeat(self, function: int, seconds: float) -> float:
        """Run one function, by its place in execution order, for at least so long; how long."""
        return self.repeated(function, seconds).seconds

    def repeated(
        self, function: int, seconds: float, paths: Sequence[str] = (), interval_s: float = 0.0
    ) -> Repeated:
        """Run one function for at least so long, while the board reads files of its kernel.

        Args:
            function: by its place in execution order.
            seconds: at least.
            paths: read right before the first call and right after the last: energy counters.
            interval_s: read every so often in between too: power that has to be averaged. The
                reading takes its time on one of the board's cores.
        """
        self._run(self._copies(0), 0, function + 1)
        found = self._connection.call(
            "eecompile_repeat",
            function,
            float(seconds),
            b"".join(path.encode() + b"\0" for path in paths),
            float(interval_s),
            wait_s=seconds + interval_s,
        )
        return _parse_repeated(self._content(found, function), len(paths))

    def place(self, cpus: Sequence[int]) -> None:
        """All threads of the session run on these CPUs of the board from now on.

        Raises:
            OSError: the board does not allow it.
        """
        status = self._connection.call("eecompile_place", np.array(cpus, np.int32).tobytes())
        if isinstance(status, int) and status < 0:
            raise OSError(-status, os.strerror(-status))

    def close(self) -> None:
        """End the session: the board puts its settings back and forgets the files."""
        self._connection.close()

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes."""
        self.close()

    def _hand_over(self, library: bytes, root: str) -> None:
        target = self._artifact.manifest.target
        self._connection.upload("eecompile.so", library)
        try:
            self._connection.load("eecompile.so")
        except OSError as error:
            there = self._connection.architecture()
            if there is not None and there != target.architecture:
                raise self._wrong_machine(
                    f"Artifact was built for {target.triple} (target `{target.name}`),"
                    f" the board at {self._connection.address} is {there}",
                    "build it for a target of the board's architecture",
                ) from error
            raise ToolError(
                f"The board at {self._connection.address} cannot load code for {target.triple}"
                f" ({error})",
                "see that it runs 64-bit Linux with glibc, and the same TVM as this machine",
            ) from error
        status = self._connection.call("eecompile_begin", root.encode())
        if status != 0:
            raise ToolError(
                f"The board at {self._connection.address} starts no process that would put its"
                f" settings back ({_strerror(status)})",
                "see that it has memory and processes left",
            )

    def _check_features(self) -> None:
        target = self._artifact.manifest.target
        try:
            text = self.files.read("/proc/cpuinfo")
        except OSError:
            text = ""
        there = parse_cpu_features(text, target.architecture)
        if not there:  # It does not tell: loading will show.
            return
        if missing := sorted(set(target.features) - there):
            raise self._wrong_machine(
                f"The board's CPU lacks what the artifact needs: {', '.join(missing)}",
                "build it for a target without these CPU features",
            )

    def _wrong_machine(self, message: str, help_: str) -> CompileErrors:
        path = str(self._artifact.path)
        return CompileErrors([Diagnostic("wrong-machine", message, path=path, help=help_)])

    def _open_network(self) -> None:
        """Code, weights and samples in the board's memory, and every function bound to it."""
        network, weights = self._artifact.manifest.network, self._artifact.weights
        plan = plan_network(network.inputs, network.steps(), 1, self.threads)
        values = aligned(weights.nbytes)
        self._inputs = self._samples()
        self._count = len(next(iter(self._inputs.values())))
        self._places = {name: values + at for name, at in plan.values.items()}
        self._sources: dict[str, int] = {}
        end = values + aligned(plan.nbytes)
        for name, array in self._inputs.items():
            self._sources[name] = end
            end += aligned(array.nbytes)
        self._connection.upload("kernels.so", self._artifact.library)
        path = self._connection.path("kernels.so").encode()
        found = self._connection.call("eecompile_open", path, end, self.threads)
        if found != 0:
            said = found.decode(errors="replace") if isinstance(found, bytes) else _strerror(found)
            raise self._wrong_machine(
                f"The artifact's code does not run on the board: {said}",
                "build it for the board; the board's memory must hold the network",
            )
        self._put(0, np.asarray(weights).tobytes())
        for name, array in self._inputs.items():
            self._put(self._sources[name], array.tobytes())
        if SHIFT[0] in self._places:  # Gates are run; what they decide about is all kept.
            self._put(self._places[SHIFT[0]], np.float32(-np.inf).tobytes())
        for function in self._functions:
            self._add(function, values + plan.workspaces[function.symbol])

    def _samples(self) -> dict[str, np.ndarray]:
        vectors, network = self._artifact.vectors(), self._artifact.manifest.network
        found = {}
        for name, type_ in network.inputs:
            array = vectors.get(f"input.{name}")
            if array is None or not len(array) or array.nbytes != len(array) * type_.nbytes:
                raise bad_artifact(
                    self._artifact.path, f"`vectors.npz` has no fitting `input.{name}`"
                )
            found[name] = np.ascontiguousarray(array, type_.dtype)
        return found

    def _add(self, function: Function, workspace: int) -> None:
        values = (*function.inputs, *function.outputs)
        frame = [1, 0, workspace, *(self._places[name] for name, _ in values)]
        status = self._connection.call(
            "eecompile_add",
            function.symbol.encode(),
            function.threads,
            np.array(frame, np.int64).tobytes(),
        )
        if status == -errno.ENOENT:
            raise bad_artifact(
                self._artifact.path, f"`kernels.so` has no function `{function.symbol}`"
            )
        if status != 0:
            raise InternalError(f"the board does not take {function.symbol}: {_strerror(status)}")

    def _put(self, offset: int, content: bytes) -> None:
        for start in range(0, len(content), _PART):
            part = content[start : start + _PART]
            if self._connection.call("eecompile_put", offset + start, part) != 0:
                raise InternalError("the board's memory does not end where it was asked to")

    def _copies(self, row: int) -> bytes:
        """What puts a sample where the network reads it."""
        copies = [
            (self._places[name], self._sources[name] + row * type_.nbytes, type_.nbytes)
            for name, type_ in self._artifact.manifest.network.inputs
        ]
        return np.array(copies, np.int64).tobytes()

    def _run(self, copies: bytes, first: int, count: int, turns: int = 1) -> list[float]:
        """Seconds of each of some functions in a row, in the last of some turns."""
        found = self._connection.call("eecompile_round", copies, first, count, turns)
        return [float(x) for x in np.frombuffer(self._content(found), np.float64)]

    def _content(self, found: int | bytes, function: int | None = None) -> bytes:
        if isinstance(found, bytes):
            return found
        what = "a function" if function is None else self._functions[function].symbol
        raise InternalError(f"compiled code ({what}) returned {found} on the board")

    def _check_results(self) -> None:
        """Raises `CompileErrors` where the board's numbers are not the artifact's."""
        vectors = self._artifact.vectors()
        seen = {function.symbol: Deviation() for function in self._functions}
        for row in range(self._count):
            copies = self._copies(row)
            # Later functions may write over what an earlier one gave: one at a time.
            for step, function in enumerate(self._functions):
                self._run(copies if step == 0 else b"", step, 1)
                for name, type_ in function.outputs:
                    if (expected := vectors.get(f"value.{name}")) is None:
                        continue
                    found = self._connection.call("eecompile_get", self._places[name], type_.nbytes)
                    values = np.frombuffer(self._content(found), type_.dtype)
                    seen[function.symbol].add(values, expected[row])
        self.max_abs_error = max(own.largest for own in seen.values())
        if wrong := [f"`{symbol}`" for symbol, own in seen.items() if not own.within]:
            raise CompileErrors(
                [
                    Diagnostic(
                        "wrong-results",
                        "The board computes other numbers than the artifact's test vectors, up to"
                        f" {self.max_abs_error:.3g} away: {', '.join(wrong)}",
                        path=str(self._artifact.path),
                        help="nothing was measured; build it for a target whose CPU is the board's",
                    )
                ]
            )


@cache
def _board_library(target: TargetInfo) -> bytes:
    """remote.c for a target's machine."""
    machine = Machine(target.name, target.triple, features=target.features)
    symbols = [f"__tvm_ffi_eecompile_{name}" for name in _FUNCTIONS]
    includes = (tvm_ffi.libinfo.find_include_path(), tvm_ffi.libinfo.find_dlpack_include_path())
    return link_source(_SOURCES, symbols, machine, tuple(dict.fromkeys(includes)))


def _parse_repeated(data: bytes, files: int) -> Repeated:
    """What remote.c's `repeat` gives.

    >>> one = struct.pack("<di2s", 0.5, 2, b"12") + struct.pack("<di", 1.5, -2)
    >>> found = _parse_repeated(struct.pack("<qd", 7, 1.25) + one, 1)
    >>> found.calls, found.seconds, [(r.time_s, *r.texts) for r in found.readings]
    (7, 1.25, [(0.5, '12'), (1.5, None)])
    """
    calls, seconds = struct.unpack_from("<qd", data)
    at, readings = 16, []
    while at < len(data):
        (time_s,) = struct.unpack_from("<d", data, at)
        at += 8
        texts: list[str | None] = []
        for _ in range(files):
            (size,) = struct.unpack_from("<i", data, at)
            at += 4
            texts.append(None if size < 0 else data[at : at + size].decode(errors="replace"))
            at += max(size, 0)
        readings.append(Reading(time_s, tuple(texts)))
    return Repeated(calls, seconds, tuple(readings))


def _strerror(status: int | bytes) -> str:
    return os.strerror(-status) if isinstance(status, int) else status.decode(errors="replace")

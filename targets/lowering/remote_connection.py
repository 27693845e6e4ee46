"""A session with TVM's own RPC server on a board: every call ends, and every failure has words.

TVM waits for an answer as long as it takes. Here a thread of its own waits, so that a board that
has lost power, is busy with somebody else or computes for ever ends in an error that says what to
do. What fails once fails always: a session is not taken up again.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

import tvm
from tvm import rpc
from tvm.rpc import base

from eecompile.diagnostics import CompileErrors, Diagnostic, ToolError

__all__ = ["Address", "Connection", "read_address"]

T = TypeVar("T")

#: Seconds a server has to accept a session, and to answer a call that computes nothing.
_CONNECT_S, _ANSWER_S = 20.0, 60.0
#: e_machine of ELF files. Source: System V ABI.
_ELF_MACHINES = {62: "x86_64", 183: "aarch64", 40: "arm", 243: "riscv64", 3: "i386"}


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is.

    Attributes:
        host, port: of the server, or of the tracker that knows one.
        key: what the server was started with.
        tracker: whether it is a tracker.
    """

    host: str
    port: int
    key: str = ""
    tracker: bool = False

    def __str__(self) -> str:
        """As a user writes it, without the key."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'tracker://' * self.tracker}{host}:{self.port}"


def read_address(text: str, key: str = "") -> Address:
    """An address from ``HOST:PORT`` or ``tracker://HOST:PORT``; IPv6 in brackets.

    >>> read_address("board.local:9090")
    Address(host='board.local', port=9090, key='', tracker=False)
    >>> print(read_address("tracker://[::1]:9190", key="pi4"))
    tracker://[::1]:9190

    Raises:
        CompileErrors: it is none, or a tracker is to be asked for no key.
    """
    found = re.fullmatch(r"(tracker://)?(?:\[([^\]\s]+)\]|([^:\[\]\s/]+)):(\d{1,5})", text)
    if found is None or not 0 < int(found[4]) < 1 << 16:
        raise _bad_address(
            f"`{text}` is no address of an RPC server",
            "expected HOST:PORT, for instance board.local:9090",
        )
    if found[1] and not key:
        raise _bad_address(
            "A tracker has to know which board is wanted",
            "give the key that the board's server was started with (`--rpc-key`)",
        )
    return Address(found[2] or found[3], int(found[4]), key, bool(found[1]))


def _bad_address(message: str, help_: str) -> CompileErrors:
    return CompileErrors([Diagnostic("bad-argument", message, path="--rpc", help=help_)])


class Connection:
    """An open session.

    Attributes:
        address: of the server.
        lost: why there is no session any more; None while there is one.
    """

    def __init__(
        self,
        address: Address,
        *,
        connect_s: float = _CONNECT_S,
        answer_s: float = _ANSWER_S,
    ) -> None:
        """Connects.

        Args:
            address: of a server or tracker.
            connect_s: seconds to wait for a session.
            answer_s: seconds to wait for each answer, beside what a call itself may take.

        Raises:
            ToolError: nobody answers there, or no server of this key and version of TVM.
        """
        self.address, self._answer_s = address, answer_s
        self.lost: ToolError | None = None
        self._closed = False
        self._worker = _Worker()
        self._functions: dict[str, Any] = {}
        self._server = address
        self._session: Any = None
        self._module: Any = None

        def connect() -> None:
            self._server = _server(address, connect_s)
            server = self._server
            self._session = rpc.connect(server.host, server.port, server.key)

        try:
            self._worker.call(connect, connect_s)
        except TimeoutError:
            _hang_up(self._server)
            self._worker.end()
            raise self._lose(
                ToolError(
                    f"No answer from {address} within {connect_s:g} s",
                    "see that the board is on and that nobody else measures on it (a server has"
                    " one session at a time), and start its server again if a session crashed",
                )
            ) from None
        except Exception as error:
            self._worker.end()
            raise self._lose(_refusal(address, error)) from error

    def path(self, name: str) -> str:
        """Where a file of the session's own folder lies on the board."""
        return str(self._ask(lambda: self._session.get_function("tvm.rpc.server.workpath")(name)))

    def upload(self, name: str, content: bytes) -> None:
        """Put a file into the session's own folder, which goes when the session ends."""
        self._ask(lambda: self._session.upload(bytearray(content), name))

    def load(self, name: str) -> None:
        """Load an uploaded library, whose functions `call` then finds.

        Raises:
            ToolError: the session is lost.
            OSError: the board cannot load it; its words.
        """

        def load() -> Any:
            try:
                return self._session.load_module(name)
            except Exception as error:
                return OSError(_last_line(error))

        found = self._ask(load)
        if isinstance(found, OSError):
            raise found
        self._module = found

    def call(self, name: str, *arguments: int | float | bytes, wait_s: float = 0.0) -> int | bytes:
        """Call a function of the loaded library.

        Args:
            name: without ``__tvm_ffi_``.
            arguments: whole numbers, floats, bytes.
            wait_s: seconds that it may take, beside those of any answer.

        Raises:
            ToolError: the session is lost.
        """
        given = [bytearray(a) if isinstance(a, bytes) else a for a in arguments]

        def call() -> Any:
            if name not in self._functions:
                self._functions[name] = self._module.get_function(name)
            return self._functions[name](*given)

        found = self._ask(call, wait_s)
        return found if isinstance(found, int) else bytes(found)

    def architecture(self) -> str | None:
        """What the board's programs are compiled for: "aarch64"; None where it does not tell."""

        def header() -> bytes:
            with contextlib.suppress(Exception):
                return bytes(self._session.download("/bin/sh")[:20])
            return b""

        found = self._ask(header)
        if found[:6] != b"\x7fELF\x02\x01":
            return None
        return _ELF_MACHINES.get(int.from_bytes(found[18:20], "little"))

    def close(self) -> None:
        """End the session; the board puts back what was set and removes its files."""
        if self._closed:
            return
        self._closed = True
        if self.lost is not None:
            _hang_up(self._server)
        with contextlib.suppress(TimeoutError):
            self._worker.call(self._forget, self._answer_s)
        self.lost = ToolError(f"The session with {self.address} is closed", "open another one")
        self._worker.end()

    def _forget(self) -> None:
        """Ends TVM's session, which lasts as long as anything refers to it."""
        self._functions.clear()
        self._session = self._module = None

    def _ask(self, work: Callable[[], T], wait_s: float = 0.0) -> T:
        if self.lost is not None:
            raise self.lost
        most = self._answer_s + wait_s
        try:
            return self._worker.call(work, most)
        except TimeoutError:
            raise self._lose(
                ToolError(
                    f"{self.address} has not answered for {most:g} s",
                    "see that the board is still on and connected, then measure again;"
                    " it puts its clocks back by itself",
                )
            ) from None
        except Exception as error:
            raise self._lose(
                ToolError(
                    f"The connection to {self.address} was lost ({_last_line(error)})",
                    "see what the RPC server on the board printed, start it again if it has"
                    " ended, then measure again; the board puts its clocks back by itself",
                )
            ) from error

    def _lose(self, error: ToolError) -> ToolError:
        self.lost = error
        return error


class _Worker:
    """A thread that does one thing after the other, for whoever cannot wait for ever."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        # A thread that waits for a dead board must not keep the program from ending.
        self._thread = threading.Thread(target=self._run, name="eecompile-rpc", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            work()

    def call(self, work: Callable[[], T], seconds: float) -> T:
        """What `work` returns or raises.

        Raises:
            TimeoutError: it takes longer, or what was asked for earlier does.
        """
        answer: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

        def run() -> None:
            try:
                answer.put((work(), None))
            except BaseException as error:
                answer.put((None, error))

        self._queue.put(run)
        try:
            found, error = answer.get(timeout=seconds)
        except Empty:
            raise TimeoutError from None
        if error is not None:
            raise error
        return found  # type: ignore[return-value]

    def end(self) -> None:
        """No more work; gives the thread a moment to end."""
        self._queue.put(None)
        self._thread.join(1.0)


def _server(address: Address, seconds: float) -> Address:
    """The address itself, or that of the board a tracker lends."""
    if not address.tracker:
        socket.getaddrinfo(address.host, address.port)  # TVM has no words for an unknown host
        return address
    with socket.create_connection((address.host, address.port), seconds) as wire:
        wire.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
        if base.recvall(wire, 4) != struct.pack("<i", base.RPC_TRACKER_MAGIC):
            raise RuntimeError("it is not RPC tracker")
        base.sendjson(wire, [base.TrackerCode.REQUEST, address.key, "", 1])
        status, *found = base.recvjson(wire)
        if status != base.TrackerCode.SUCCESS:
            raise RuntimeError(f"the tracker says {found}")
        (host, port, key) = found[0]
        return Address(host, port, key)


def _hang_up(server: Address) -> None:
    """End whatever this process has open to a server, so that nobody waits for it any more.

    A thread that still waits inside TVM when the program ends would take it down.
    """
    with contextlib.suppress(OSError):
        known = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
        peers = {info[4][:2] for info in known}
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if not stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                    continue  # `socket` would refuse a copy of it without closing that
                with socket.socket(fileno=os.dup(int(name))) as wire:
                    if wire.getpeername()[:2] in peers:
                        wire.shutdown(socket.SHUT_RDWR)


def _refusal(address: Address, error: Exception) -> ToolError:
    """Why there is no session, from TVM's words."""
    said = str(error)
    if isinstance(error, socket.gaierror):
        return ToolError(f"No host `{address.host}`: {error.strerror}", "check the board's name")
    if "matches key" in said:
        return ToolError(
            f"The RPC server at {address} was started with another key",
            "give the one of its `--key` (`--rpc-key KEY`)",
        )
    if "protocol version" in said or "is not TVM RPC" in said or "is not RPC" in said:
        return ToolError(
            f"What listens at {address} is no RPC server of this version of TVM"
            f" ({_last_line(error)})",
            _same_version(),
        )
    if isinstance(error, OSError) or ("Connect to" in said and "failed" in said):
        return ToolError(
            f"Nothing listens at {address}",
            f"start `python -m tvm.exec.rpc_{'tracker' if address.tracker else 'server'} --host"
            f" 0.0.0.0 --port {address.port}` there, and see that no firewall is between",
        )
    return ToolError(f"No session with {address} ({_last_line(error)})", _same_version())


def _same_version() -> str:
    return f"install the same TVM on the board: `pip install 'apache-tvm[rpc]=={tvm.__version__}'`"


def _last_line(error: BaseException) -> str:
    """The end of what TVM says, where the cause is; without its trace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__

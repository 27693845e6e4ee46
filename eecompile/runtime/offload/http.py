"""HTTP requests that end by a deadline, whatever the other side does.

Time limits of sockets hold for one step each: a server that sends a byte now and then would never
exceed them. Here every step may take what is left until the deadline of the whole request.
"""

from __future__ import annotations

import http.client
import io
import select
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Thread
from typing import Any

from eecompile.runtime.offload.errors import AttemptFailed, Deadline, TooLate

__all__ = ["HttpConnection", "Response"]


@dataclass(frozen=True)
class Response:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class HttpConnection:
    """One connection, kept between requests; made anew after anything went wrong."""

    def __init__(self, host: str, port: int, *, tls: bool) -> None:
        """Nothing is connected yet."""
        self._host, self._port = host, port
        self._tls = ssl.create_default_context() if tls else None
        self._connection: http.client.HTTPConnection | None = None

    def request(
        self,
        method: str,
        path: str,
        deadline: Deadline,
        *,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        most_bytes: int,
    ) -> Response:
        """The server's response, of any status.

        Raises:
            TooLate: there was none by the deadline.
            AttemptFailed: there was none, none of HTTP, or one of more than `most_bytes`.
        """
        try:
            return self._request(method, path, deadline, body, dict(headers or {}), most_bytes)
        except BaseException as error:
            self.close()
            if isinstance(error, AttemptFailed) or not isinstance(error, Exception):
                raise
            if isinstance(error, TimeoutError):
                raise TooLate("there was no answer in time") from error
            if isinstance(error, OSError | http.client.HTTPException | ValueError):
                raise AttemptFailed(f"{type(error).__name__}: {error}") from error
            raise

    def _request(
        self,
        method: str,
        path: str,
        deadline: Deadline,
        body: bytes,
        headers: dict[str, str],
        most_bytes: int,
    ) -> Response:
        if self._connection is not None and _has_ended(self._connection.sock):
            self.close()
        if self._connection is None or self._connection.sock is None:
            self._connection = http.client.HTTPConnection(self._host, self._port)
            self._connection.sock = _Timed(self._connected(deadline))
        timed: Any = self._connection.sock
        timed.deadline = deadline
        self._connection.request(method, path, body, headers)
        answer = self._connection.getresponse()
        content = answer.read(most_bytes + 1)
        if len(content) > most_bytes:
            raise AttemptFailed(f"a response of more than {most_bytes} bytes")
        if answer.length:  # a cut one: read(n) says nothing of what is missing
            raise AttemptFailed("the response ends early")
        answer.read()  # to the end of the last chunk, so that the connection can be used again
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Response(answer.status, found, content)

    def _connected(self, deadline: Deadline) -> socket.socket:
        """A socket connected to the first of the host's addresses that takes it."""
        problem: OSError = OSError(f"`{self._host}` has no address")
        for family, kind, protocol, _, address in _addresses(self._host, self._port, deadline):
            made = socket.socket(family, kind, protocol)
            try:
                made.settimeout(deadline.left_s())
                made.connect(address)
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls is None:
                    return made
                made.settimeout(deadline.left_s())
                return self._tls.wrap_socket(made, server_hostname=self._host)
            except OSError as error:
                problem = error
                made.close()
            except BaseException:
                made.close()
                raise
        raise problem

    def close(self) -> None:
        """Closes the connection: an answer that is still on its way is never read."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _has_ended(timed: Any) -> bool:
    """Whether a connection between requests was closed, or has something that nobody asked for."""
    if timed is None:
        return False
    waiting = select.poll()  # not `select`, which knows the first 1024 descriptors only
    waiting.register(timed.socket, select.POLLIN)
    return bool(waiting.poll(0))


def _addresses(host: str, port: int, deadline: Deadline) -> list[Any]:
    """What `socket.getaddrinfo` finds; the system's resolver has no time limit of its own."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        pass
    found: list[Any] = []

    def look_up() -> None:
        try:
            found.append(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except OSError as error:
            found.append(error)

    asking = Thread(target=look_up, name="eecompile-resolver", daemon=True)
    asking.start()
    asking.join(deadline.left_s())
    if not found:
        raise TooLate(f"the address of `{host}` was not found in time")
    if isinstance(found[0], OSError):
        raise found[0]
    return list(found[0])


class _Timed:
    """A socket as `http.client` uses it, each of whose steps ends by the deadline."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.deadline = Deadline(0)

    def sendall(self, data: Any) -> None:
        """Of sockets: its time limit is for all of the data."""
        self.socket.settimeout(self.deadline.left_s())
        self.socket.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        """For reading; the socket stays open until this is closed as well."""
        assert mode == "rb", "http.client reads bytes"
        return io.BufferedReader(_Reads(self))

    def close(self) -> None:
        """Of sockets."""
        self.socket.close()


class _Reads(io.RawIOBase):
    """What comes in at a socket, each step of which ends by the deadline."""

    def __init__(self, timed: _Timed) -> None:
        self._timed, self._raw = timed, timed.socket.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._timed.socket.settimeout(self._timed.deadline.left_s())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()

"""A proxy between a client and a real server that hurts what passes through it."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

__all__ = ["Hurt", "Proxy", "Raw", "TlsProxy"]

#: What becomes of bytes from the server: those to pass on, or None to close the connection.
Hurt = Callable[[bytes], "bytes | None"]


def unhurt(data: bytes) -> bytes | None:
    """Passes everything on."""
    return data


class Proxy:
    """Listens at a port of its own; a context manager. All its threads end with it.

    Attributes:
        answer: what becomes of what the server says.
        question: what becomes of what the client says.
        connections: accepted so far.
        passed: bytes that came from the server and were passed on.
    """

    def __init__(self, port: int) -> None:
        """Before the server at `port`."""
        self._server_port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.answer: Hurt = unhurt
        self.question: Hurt = unhurt
        self.drip_s = 0.0
        self.connections = self.passed = 0
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()

    def url(self, scheme: str) -> str:
        return f"{scheme}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.drop()
        for thread in self._threads:
            thread.join()

    def drop(self) -> None:
        """Closes every connection."""
        for one in self._sockets:
            _end(one)

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            self.connections += 1
            try:
                server = socket.create_connection(("127.0.0.1", self._server_port))
            except OSError:
                _end(client)
                continue
            self._sockets += [client, server]
            self._start(self._pump, client, server, False)
            self._start(self._pump, server, client, True)

    def _pump(self, source: socket.socket, sink: socket.socket, from_server: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                changed = (self.answer if from_server else self.question)(data)
                if changed is None:
                    break
                self._send(sink, changed, from_server)
        except OSError:
            pass
        _end(source)
        _end(sink)

    def _send(self, sink: socket.socket, data: bytes, from_server: bool) -> None:
        if not (from_server and self.drip_s):
            self.passed += len(data) * from_server
            sink.sendall(data)
            return
        for byte in data:
            if self._closing.wait(self.drip_s):
                return
            self.passed += 1
            sink.sendall(bytes([byte]))


def _end(one: socket.socket) -> None:
    """Closes a socket that another thread may be waiting at."""
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()


class Raw:
    """A server that says the same bytes whatever it is asked; a context manager."""

    def __init__(self, says: bytes, *, listens: bool = True) -> None:
        """Where `says` is empty it never answers; where it does not listen it never accepts."""
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=1)
        self.port: int = self._socket.getsockname()[1]
        self._says, self._listens = says, listens
        self._kept: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        if self._listens:
            self._thread.start()
        else:  # the queue of those who wait is filled, so that nobody else is even queued
            for _ in range(4):
                filler = socket.socket()
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", self.port))
                self._kept.append(filler)
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        _end(self._socket)
        for one in self._kept:
            _end(one)
        if self._listens:
            self._thread.join()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            self._kept.append(client)
            try:
                client.settimeout(5)
                client.recv(1 << 16)
                if self._says:
                    client.sendall(self._says)
                    _end(client)
            except OSError:
                pass


class TlsProxy:
    """Ends TLS before a server that speaks none; a context manager. One connection after another.

    One thread does both directions: a TLS connection is not for two.
    """

    def __init__(self, port: int, certificate: Path, key: Path) -> None:
        """Before the server at `port`."""
        self._server_port = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._context.set_alpn_protocols(["h2", "http/1.1"])
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(0.1)
        self.port: int = self._listening.getsockname()[1]
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()
        self._listening.close()

    def _serve(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(OSError):
                plain, _ = self._listening.accept()
                plain.settimeout(5)
                with (
                    self._context.wrap_socket(plain, server_side=True) as client,
                    socket.create_connection(("127.0.0.1", self._server_port)) as server,
                ):
                    self._pass_on(client, server)

    def _pass_on(self, client: ssl.SSLSocket, server: socket.socket) -> None:
        while not self._closing.is_set():
            ready, _, _ = select.select([client, server], [], [], 0.05)
            for one, other in ((client, server), (server, client)):
                if one in ready or (one is client and client.pending()):
                    data = one.recv(1 << 16)
                    if not data:
                        return
                    other.sendall(data)

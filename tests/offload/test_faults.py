"""A server that is slow, down, cut off or wrong costs its limit of time and no sample.

A device asks for the answers of samples that each have an answer of their own, and takes its own
network's where nobody answers: whatever happens on the way, each sample gets its own, once.
"""

from __future__ import annotations

import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from eecompile.runtime.offload import Breaker, Offloader
from tests.offload.networks import logits, rule, values
from tests.offload.proxy import Hurt, Proxy, Raw
from tests.offload.servers import Server, free_ports

SCHEMES = pytest.mark.parametrize("scheme", ["http", "grpc"])
#: Time for an answer that is to come, and for one that is not.
LONG_S, SHORT_S = 20.0, 0.3


class Device:
    """Takes samples to their end, with a server where it answers, else alone."""

    def __init__(self, offloader: Offloader) -> None:
        self.offloader = offloader
        self.answers: list[np.ndarray] = []
        self.alone: list[int] = []

    def run(self, seed: int) -> bool:
        """Whether the server finished the sample, whose answer is checked."""
        found = self.offloader.answer(seed % 3, values(seed))
        if found is None:
            self.alone.append(seed)
            found = logits(seed)
        self.answers.append(found)
        np.testing.assert_allclose(found, logits(seed), atol=1e-4)
        counts = self.offloader.counts
        done = counts["answered"] + counts["failed"] + counts["refused_by_breaker"]
        assert done == len(self.answers)
        return counts["answered"] + len(self.alone) == len(self.answers) and seed not in self.alone


def never_opens() -> Breaker:
    return Breaker(failures=10**9)


def device(url: str, timeout_s: float = LONG_S, retries: int = 0) -> Device:
    offloader = Offloader(rule(url, timeout_s=timeout_s, retries=retries), breaker=never_opens())
    return Device(offloader)


@pytest.fixture(params=["http", "grpc"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def proxy(server: Server, scheme: str) -> Iterator[Proxy]:
    with Proxy(server.grpc_port if scheme == "grpc" else server.http_port) as found:
        yield found


def connected(proxy: Proxy, scheme: str, timeout_s: float = LONG_S, retries: int = 0) -> Device:
    """A device whose server has been looked at and has answered once."""
    found = device(proxy.url(scheme))
    assert found.offloader.connect()
    assert found.run(0)
    waits(found, timeout_s)
    found.offloader.rule = replace(found.offloader.rule, retries=retries)
    return found


def waits(sender: Device, timeout_s: float) -> None:
    sender.offloader.rule = replace(sender.offloader.rule, timeout_s=timeout_s)


def test_nobody_listens(client: None, scheme: str) -> None:
    (port,) = free_ports(1)
    lonely = device(f"{scheme}://127.0.0.1:{port}", retries=1)
    assert not lonely.offloader.connect()
    assert not lonely.run(0) and not lonely.run(1)
    assert lonely.offloader.counts["sent"] == 0
    assert lonely.offloader.counts["failed"] == 2


def test_a_connection_that_is_never_accepted(client: None, scheme: str) -> None:
    with Raw(b"", listens=False) as raw:
        lonely = device(f"{scheme}://127.0.0.1:{raw.port}", SHORT_S)
        assert not lonely.offloader.connect()
        assert not lonely.run(0)
        assert lonely.offloader.counts["late"] == 1


def test_a_server_that_never_says_anything(client: None, scheme: str) -> None:
    with Raw(b"") as raw:
        lonely = device(f"{scheme}://127.0.0.1:{raw.port}", SHORT_S)
        assert not lonely.offloader.connect()
        assert not lonely.run(0)
        assert lonely.offloader.counts["late"] == 1


@pytest.mark.parametrize(
    "says",
    [
        b"\x00" * 5000,
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[1, 2, 3]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffff\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n" + b"[" * 100_000,
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1000 + b"\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n\r\noops",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
    ],
    ids=lambda says: repr(says[:28]),
)
def test_a_server_of_something_else(client: None, scheme: str, says: bytes) -> None:
    with Raw(says) as raw:
        lonely = device(f"{scheme}://127.0.0.1:{raw.port}", 5.0, retries=1)
        assert not lonely.run(0) and not lonely.run(1)
        assert lonely.offloader.counts["answered"] == 0


def _replaced(old: bytes, new: bytes) -> Hurt:
    return lambda data: data.replace(old, new)


def _first_number(new: bytes) -> Hurt:
    """The first number of the data is another; the length is the same."""

    def hurt(data: bytes) -> bytes:
        return re.sub(rb'(?<="data":\[)[-0-9.e]+', lambda m: new.ljust(len(m[0])), data)

    return hurt


def _flipped(data: bytes) -> bytes:
    return bytes(byte ^ 0xFF for byte in data)


def _cut(data: bytes) -> bytes | None:
    return data[: len(data) // 2]


HURT: dict[str, Callable[[], Hurt]] = {
    "another tensor": lambda: _replaced(b"logits", b"logitz"),
    "another type": lambda: _replaced(b"FP32", b"FP16"),
    "garbage": lambda: _flipped,
    "nothing": lambda: lambda data: None,
}
#: Over HTTP answers are text.
HURT_TEXT: dict[str, Callable[[], Hurt]] = {
    "another shape": lambda: _replaced(b"[1,10]", b"[10,1]"),
    "not numbers": lambda: _first_number(b"x"),
    "no number": lambda: _first_number(b"NaN"),
    "another request's": lambda: lambda data: re.sub(rb'"id":"[^"]', b'"id":"z', data),
    "another model's": lambda: _replaced(b'"model_name":"digits', b'"model_name":"digitz'),
    "another version's": lambda: _replaced(b'"model_version":"1"', b'"model_version":"3"'),
    "an error": lambda: _replaced(b"HTTP/1.1 200 OK", b"HTTP/1.1 500 OK"),
}


@pytest.mark.parametrize("name", HURT)
def test_wrong_answers_are_none(proxy: Proxy, scheme: str, name: str) -> None:
    sender = connected(proxy, scheme, timeout_s=1.0, retries=1)
    proxy.answer = HURT[name]()
    assert not sender.run(1) and not sender.run(2)
    proxy.answer = lambda data: data
    waits(sender, LONG_S)
    assert sender.run(3)


@pytest.mark.parametrize("name", HURT_TEXT)
def test_wrong_texts_are_no_answers(server: Server, name: str) -> None:
    with Proxy(server.http_port) as proxy:
        sender = connected(proxy, "http", timeout_s=1.0, retries=1)
        proxy.answer = HURT_TEXT[name]()
        assert not sender.run(1) and not sender.run(2)
        proxy.answer = lambda data: data
        waits(sender, LONG_S)
        assert sender.run(3)


def test_what_cannot_be_computed_is_not_answered(server: Server, scheme: str) -> None:
    offloader = connected_directly(server, scheme).offloader
    border = offloader.rule.tails[0].inputs[0].value
    broken = np.full_like(values()[border], np.nan)
    assert offloader.answer(0, {border: broken}) is None
    assert offloader.answer(0, values()) is not None


def connected_directly(server: Server, scheme: str) -> Device:
    found = device(server.url(scheme))
    assert found.offloader.connect()
    return found


def test_an_answer_that_is_cut_off(proxy: Proxy, scheme: str) -> None:
    sender = connected(proxy, scheme, timeout_s=1.0)
    left = [40]

    def cut(data: bytes) -> bytes | None:
        left[0] -= len(data)
        return data if left[0] > 0 else None

    proxy.answer = cut
    assert not sender.run(1)
    proxy.answer = lambda data: data
    waits(sender, LONG_S)
    assert sender.run(2)


def test_one_attempt_fails_and_the_next_is_answered(proxy: Proxy, scheme: str) -> None:
    sender = connected(proxy, scheme, retries=2)
    hurt = iter([None, None])

    def twice(data: bytes) -> bytes | None:
        return next(hurt, data)

    proxy.question = twice
    before = dict(sender.offloader.counts)
    assert sender.run(1)
    assert sender.offloader.counts["sent"] - before["sent"] == 3
    assert sender.offloader.counts["answered"] - before["answered"] == 1
    assert sender.offloader.counts["failed"] == 0


def test_an_answer_that_drips_in_is_not_waited_for(proxy: Proxy, scheme: str) -> None:
    sender = connected(proxy, scheme, timeout_s=SHORT_S)
    passed, proxy.drip_s = proxy.passed, SHORT_S / 10
    assert not sender.run(1)
    assert sender.offloader.counts["late"] == 1
    assert proxy.passed - passed < 50
    proxy.drip_s = 0.0
    waits(sender, LONG_S)
    assert sender.run(2)


def test_a_late_answer_is_not_taken_for_a_later_one(proxy: Proxy, scheme: str) -> None:
    sender = connected(proxy, scheme, timeout_s=SHORT_S)

    def slowly(data: bytes) -> bytes:
        time.sleep(2 * SHORT_S)
        return data

    for seed in range(1, 4):
        proxy.answer = slowly
        assert not sender.run(seed)
        proxy.answer = lambda data: data
        waits(sender, LONG_S)
        assert sender.run(seed + 10)
        waits(sender, SHORT_S)
    assert sender.offloader.counts["late"] == 3


def test_an_earlier_answer_that_is_sent_again(server: Server) -> None:
    with Proxy(server.http_port) as proxy:
        sender = connected(proxy, "http", timeout_s=2.0)
        kept: list[bytes] = []

        def keep(data: bytes) -> bytes:
            kept.append(data)
            return data

        proxy.answer = keep
        assert sender.run(1)
        proxy.answer = lambda data: b"".join(kept)
        assert not sender.run(2)
        assert "instead of" in sender.offloader.last_failure


def test_connections_that_end_between_requests_cost_nothing(proxy: Proxy, scheme: str) -> None:
    sender = connected(proxy, scheme)
    for seed in range(1, 4):
        proxy.drop()
        time.sleep(0.1)  # until this side has been told
        assert sender.run(seed)
    assert sender.offloader.counts["failed"] == 0


def test_a_stopped_server(own_server: Server, scheme: str) -> None:
    sender = connected_directly(own_server, scheme)
    assert sender.run(0)
    own_server.signal(signal.SIGSTOP)
    waits(sender, SHORT_S)
    assert not sender.run(1) and not sender.run(2)
    own_server.signal(signal.SIGCONT)
    waits(sender, LONG_S)
    assert sender.run(3) and sender.run(4)
    assert sender.offloader.counts["late"] == 2
    sender.offloader.close()


def test_a_server_killed_in_the_midst_of_a_request_and_started_again(own_server: Server) -> None:
    senders = []
    for scheme in ("http", "grpc"):
        port = own_server.grpc_port if scheme == "grpc" else own_server.http_port
        with Proxy(port) as proxy:
            now = [0.0]
            breaker = Breaker(failures=2, pause_s=1.0, clock=lambda now=now: now[0])  # type: ignore[misc]
            sender = Device(Offloader(rule(proxy.url(scheme), timeout_s=LONG_S), breaker=breaker))
            assert sender.run(0)

            def kill(data: bytes) -> bytes:
                own_server.kill()
                return data

            proxy.question = kill
            assert not sender.run(1) and not sender.run(2)  # the second finds nobody
            assert not sender.run(3)  # is not even sent
            assert sender.offloader.counts["refused_by_breaker"] == 1
            proxy.question = lambda data: data
            own_server.start()
            assert not sender.run(4)
            assert sender.offloader.counts["refused_by_breaker"] == 2
            now[0] = 1.0
            assert sender.run(5) and sender.run(6)
            assert sender.alone == [1, 2, 3, 4]
            assert len(sender.answers) == 7
            sender.offloader.close()
            senders.append(sender)
    assert len(senders) == 2


def test_no_thread_is_left_by_failures(client: None) -> None:
    before = set(threading.enumerate())
    (port,) = free_ports(1)
    for url in (f"http://127.0.0.1:{port}", f"grpc://127.0.0.1:{port}"):
        lonely = device(url, SHORT_S, retries=2)
        assert not lonely.run(0)
        lonely.offloader.close()
    assert set(threading.enumerate()) == before


def test_a_name_that_has_no_address(client: None, monkeypatch: pytest.MonkeyPatch) -> None:
    known, asked = socket.getaddrinfo, threading.Event()

    def resolver(host: str, port: int, type: int = 0, flags: int = 0) -> object:
        if flags & socket.AI_NUMERICHOST:
            return known(host, port, type=type, flags=flags)
        asked.wait(30)  # a name server that nobody answers for
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    lonely = device("http://edge.invalid:8000", SHORT_S)
    assert not lonely.run(0)
    assert lonely.offloader.counts["late"] == 1
    asked.set()

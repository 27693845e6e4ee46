"""What a server answers is what the network answers here; a server of something else is refused."""

from __future__ import annotations

import os
import threading
from dataclasses import replace

import numpy as np
import pytest

from eecompile.diagnostics import CompileErrors
from eecompile.offload_rule import Border, OffloadRule
from eecompile.runtime.offload import Offloader
from tests.offload import networks
from tests.offload.networks import logits, rule, values
from tests.offload.servers import Server

SCHEMES = pytest.mark.parametrize("scheme", ["http", "grpc"])
#: Of logits, what rounding a border may change; measured: 0.002 and 0.09.
FAR = {"float32": 1e-4, "float16": 0.01, "int8": 0.5}


@SCHEMES
@pytest.mark.parametrize("border", ["float32", "float16", "int8"])
def test_answers_are_the_networks(server: Server, scheme: str, border: Border) -> None:
    offloader = Offloader(rule(server.url(scheme), border=border))
    assert offloader.connect()
    for seed in range(2):
        for index in networks.tails(border):
            found = offloader.answer(index, values(seed))
            assert found is not None, offloader.last_failure
            assert (found.dtype, found.shape) == (logits().dtype, logits().shape)
            np.testing.assert_allclose(found, logits(seed), atol=FAR[border])
    sent = 2 * len(networks.tails(border))
    assert (offloader.counts["sent"], offloader.counts["answered"]) == (sent, sent)
    offloader.close()


@SCHEMES
def test_smaller_borders_send_fewer_bytes(server: Server, scheme: str) -> None:
    sent = []
    for border in ("float32", "float16", "int8"):
        offloader = Offloader(rule(server.url(scheme), border=border))
        assert offloader.answer(0, values()) is not None
        sent.append(offloader.counts["bytes_sent"])
        offloader.close()
    assert sent[0] > sent[1] > sent[2]
    if scheme == "grpc":
        size = values()[rule("x").tails[0].inputs[0].value].size
        assert sent == [4 * size, 2 * size, size]


@SCHEMES
def test_a_server_with_another_model_is_refused(server: Server, scheme: str) -> None:
    wanted = rule(server.url(scheme))
    tail = replace(wanted.tails[0], model="digits-early-0123456789ab")
    with pytest.raises(CompileErrors) as raised:
        Offloader(replace(wanted, tails={**wanted.tails, 0: tail})).connect()
    (found,) = raised.value.diagnostics
    assert found.id == "wrong-server"
    assert "`digits-early-0123456789ab`" in found.message and server.url(scheme) in found.message
    assert wanted.tails[0].model in found.notes[0]


@SCHEMES
def test_a_server_with_another_version_is_refused(server: Server, scheme: str) -> None:
    wanted = rule(server.url(scheme))
    tails = {index: replace(tail, version="2") for index, tail in wanted.tails.items()}
    with pytest.raises(CompileErrors) as raised:
        Offloader(replace(wanted, tails=tails)).connect()
    messages = [found.message for found in raised.value.diagnostics]
    assert messages == [
        f"Expected version `2` of model `{tail.model}` of the server `{server.url(scheme)}`,"
        " found `1`"
        for tail in tails.values()
    ]


def _with_other_tensors(wanted: OffloadRule, what: str) -> OffloadRule:
    tail = wanted.tails[0]
    (sent,) = tail.inputs
    changed = {
        "shape": replace(tail, inputs=(replace(sent, shape=(*sent.shape[:-1], 9)),)),
        "type": replace(tail, inputs=(replace(sent, dtype="float16"),)),
        "name": replace(tail, inputs=(replace(sent, name="borders"),)),
        "output": replace(tail, output=replace(tail.output, shape=(1, 11))),
    }
    return replace(wanted, tails={0: changed[what]})


@SCHEMES
@pytest.mark.parametrize("what", ["shape", "type", "name", "output"])
def test_a_server_whose_model_takes_other_tensors_is_refused(
    server: Server, scheme: str, what: str
) -> None:
    with pytest.raises(CompileErrors, match=r"wrong-server.*Expected (in|out)puts .*, found "):
        Offloader(_with_other_tensors(rule(server.url(scheme)), what)).connect()


@SCHEMES
def test_a_wrong_server_answers_nothing_later_either(server: Server, scheme: str) -> None:
    wanted = _with_other_tensors(rule(server.url(scheme)), "output")
    offloader = Offloader(wanted)
    assert offloader.answer(0, values()) is None
    assert "Expected outputs" in offloader.last_failure
    assert (offloader.counts["sent"], offloader.counts["failed"]) == (0, 1)
    offloader.close()


def test_an_endpoint_that_the_file_does_not_name_is_refused(client: None) -> None:
    allowed = rule("http://edge:8000", "grpc://edge:8001")
    with pytest.raises(CompileErrors) as raised:
        Offloader(allowed, "http://elsewhere:8000")
    (found,) = raised.value.diagnostics
    assert found.id == "endpoint-not-allowed"
    assert "`http://elsewhere:8000`" in found.message
    assert found.notes == ("allowed: http://edge:8000, grpc://edge:8001",)


@SCHEMES
def test_another_endpoint_of_the_rule_may_be_asked(server: Server, scheme: str) -> None:
    url = server.url(scheme)
    offloader = Offloader(rule("http://127.0.0.1:1", url), url)
    assert offloader.connect() and offloader.answer(1, values()) is not None
    offloader.close()


@SCHEMES
def test_values_that_are_missing_or_of_another_size_are_the_callers_mistake(
    server: Server, scheme: str
) -> None:
    offloader = Offloader(rule(server.url(scheme)))
    with pytest.raises(KeyError):
        offloader.answer(0, {})
    with pytest.raises(KeyError):
        offloader.answer(17, values())
    with pytest.raises(ValueError, match="reshape"):
        offloader.answer(0, {name: np.zeros((1, 3)) for name in values()})
    assert offloader.counts["sent"] == 0
    offloader.close()


@SCHEMES
def test_no_thread_is_left(server: Server, scheme: str) -> None:
    before = set(threading.enumerate())
    offloader = Offloader(rule(server.url(scheme)))
    for _ in range(3):
        assert offloader.answer(0, values()) is not None
    assert set(threading.enumerate()) == before
    offloader.close()


@SCHEMES
def test_a_closed_one_connects_again(server: Server, scheme: str) -> None:
    offloader = Offloader(rule(server.url(scheme)))
    for _ in range(2):
        assert offloader.answer(0, values()) is not None
        offloader.close()


def test_a_forked_process_has_a_connection_of_its_own(server: Server) -> None:
    offloader = Offloader(rule(server.url("http")))
    assert offloader.answer(0, values()) is not None
    child = os.fork()
    if child == 0:  # pragma: no cover
        right = False
        try:
            answers = [offloader.answer(0, values(seed)) for seed in (0, 1)]
            right = all(
                found is not None and np.allclose(found, logits(seed), atol=1e-4)
                for seed, found in enumerate(answers)
            )
        finally:
            os._exit(0 if right else 1)
    for seed in (1, 0):
        found = offloader.answer(0, values(seed))
        assert found is not None
        np.testing.assert_allclose(found, logits(seed), atol=1e-4)
    assert os.waitpid(child, 0)[1] == 0
    offloader.close()

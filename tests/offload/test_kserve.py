"""Another server of the protocol: no versions, and tensors in binary form over HTTP as Triton's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from eecompile.diagnostics import CompileErrors
from eecompile.offload_rule import Border
from eecompile.runtime.offload import Offloader
from eecompile.server_folder import write_server_folder
from tests.offload import networks
from tests.offload.networks import logits, rule, values
from tests.offload.servers import KServe

SCHEMES = pytest.mark.parametrize("scheme", ["http", "grpc"])


@pytest.fixture(scope="module")
def kserve(client: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KServe]:
    folder = tmp_path_factory.mktemp("kserve") / "models"
    borders: tuple[Border, ...] = get_args(Border)
    models = {
        tail.model: (tail, content)
        for border in borders
        for tail, content in networks.tails(border).values()
    }
    write_server_folder(folder, "digits", models)
    with KServe(folder) as found:
        yield found


@SCHEMES
@pytest.mark.parametrize(("border", "far"), [("float32", 1e-4), ("float16", 0.01), ("int8", 0.5)])
def test_answers_are_the_networks(kserve: KServe, scheme: str, border: Border, far: float) -> None:
    offloader = Offloader(rule(kserve.url(scheme), border=border))
    assert offloader.connect()
    for index in range(3):
        found = offloader.answer(index, values(index))
        assert found is not None, offloader.last_failure
        np.testing.assert_allclose(found, logits(index), atol=far)
    tensors = sum(
        np.dtype(tensor.dtype).itemsize * int(np.prod(tensor.shape))
        for tail in offloader.rule.tails.values()
        for tensor in tail.inputs
    )
    # Over HTTP a few hundred bytes of names and shapes go before the tensors' own.
    assert 0 <= offloader.counts["bytes_sent"] - tensors < (3000 if scheme == "http" else 1)
    offloader.close()


@SCHEMES
def test_another_model_is_refused(kserve: KServe, scheme: str) -> None:
    wanted = rule(kserve.url(scheme))
    tail = replace(wanted.tails[0], model="digits-early-0123456789ab")
    with pytest.raises(CompileErrors, match=r"wrong-server.*`digits-early-0123456789ab`"):
        Offloader(replace(wanted, tails={0: tail})).connect()

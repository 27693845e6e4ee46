"""Servers that several tests ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.offload import networks
from tests.offload.servers import Server, missing

collect_ignore = ["kserve_tail.py"]  # a program for another Python, not a module


@pytest.fixture(scope="session")
def client() -> None:
    """What asks servers is installed."""
    try:
        import tritonclient.grpc
        import tritonclient.http  # noqa: F401
    except ImportError as error:
        missing(f"tritonclient cannot be imported ({error}): `pip install 'eecompile[offload]'`")


@pytest.fixture(scope="session")
def server(client: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """MLServer with the demo network's tails in every form; it is left as it was found."""
    models = {
        tail.model: (tail, content)
        for border in ("float32", "float16", "int8")
        for tail, content in networks.tails(border).values()
    }
    with Server.having(tmp_path_factory.mktemp("mlserver") / "models", models) as found:
        yield found


@pytest.fixture
def own_server(client: None, tmp_path: Path) -> Iterator[Server]:
    """A server that the test may kill."""
    models = {tail.model: (tail, content) for tail, content in networks.tails().values()}
    with Server.having(tmp_path / "models", models) as found:
        yield found

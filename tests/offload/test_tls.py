"""Over TLS a server is asked only if it is who it says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.offload.proxy import TlsProxy
from tests.offload.servers import Server, missing

CODE = """
import sys
import numpy as np
from eecompile.runtime.offload import Offloader
from tests.offload.networks import logits, rule, values
offloader = Offloader(rule(sys.argv[1]))
found = offloader.answer(0, values())
print("nobody" if found is None else float(np.abs(found - logits()).max()) < 1e-4)
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate of this machine by itself, and its key."""
    if shutil.which("openssl") is None:
        missing("no openssl")
    folder = tmp_path_factory.mktemp("tls")
    found = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-out", str(found[0]), "-keyout", str(found[1])),
        ],
        check=True,
        capture_output=True,
    )
    return found


def _asked(url: str, trusted: Path | None) -> str:
    """What a process is told that trusts this certificate beside, or instead of, the system's."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("SSL_", "GRPC_"))}
    if trusted is not None:
        for name in ("SSL_CERT_FILE", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"):
            variables[name] = str(trusted)
    done = subprocess.run(
        [sys.executable, "-c", CODE, url],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_a_trusted_server_answers_and_no_other(
    server: Server, certificate: tuple[Path, Path], scheme: str
) -> None:
    port = server.grpc_port if scheme == "grpcs" else server.http_port
    with TlsProxy(port, *certificate) as proxy:
        url = f"{scheme}://127.0.0.1:{proxy.port}"
        assert _asked(url, certificate[0]) == "True"
        assert _asked(url, None) == "nobody"

"""TVM's own RPC server as a process beside the tests."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.helpers import ROOT

__all__ = ["free_port", "on_arm", "serving"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    program: Sequence[str] = (),
    *options: str,
    environment: Mapping[str, str] | None = None,
    module: str = "rpc_server",
) -> Iterator[int]:
    """The port of a server that runs in this block; all its processes are killed at the end.

    Args:
        program: what starts the server; empty: this Python.
        options: its command line's, beside host and port.
        environment: variables beside this process's.
        module: of `tvm.exec`.
    """
    port = free_port()
    command = [
        *(program or (sys.executable, "-m", f"tvm.exec.{module}")),
        *("--host", "127.0.0.1", "--port", str(port), "--port-end", str(port + 100), *options),
    ]
    # A server needs no compiler.
    variables = os.environ | {"TVM_USE_RUNTIME_LIB": "1"} | dict(environment or {})
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, env=variables, stdout=log, stderr=log, start_new_session=True, cwd=ROOT
        )
        try:
            yield _bound(process, log.fileno())
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _bound(process: subprocess.Popen[bytes], log: int, seconds: int = 300) -> int:
    """The port a server says it listens at; the one it was told may have been taken since."""
    end = time.monotonic() + seconds
    while not (
        found := re.search(rb"bind to 127\.0\.0\.1:(\d+)\n", said := os.pread(log, 1 << 20, 0))
    ):
        assert process.poll() is None and time.monotonic() < end, said.decode()
        time.sleep(0.05)
    return int(found[1])


def on_arm(arm: Path, folder: Path) -> list[str]:
    """A program that starts the server under the aarch64 Python of the fixture `arm_tvm`."""
    again = folder / "python-on-arm"
    env = ROOT / "tests" / "arm" / "env.sh"
    again.write_text(f'#!/bin/bash\nexec bash "{env}" python "{arm}" "$@"\n')
    again.chmod(0o755)
    return [str(again), str(ROOT / "tests" / "remote" / "serve.py"), str(again)]

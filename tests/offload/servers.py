"""Real servers of the Open Inference Protocol, on this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Self

import pytest

from eecompile.offload_rule import Tail
from eecompile.server_folder import write_server_folder

#: That much is waited for a server to start: it imports a lot, on machines with other work to do.
_START_S = 90


def free_ports(count: int) -> list[int]:
    """Ports nobody listens at, none of them twice."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Running:
    """A server that runs as a process; a context manager, which kills it at the end."""

    def __init__(self, log: Path, http_port: int, grpc_port: int) -> None:
        """Not started yet."""
        self.http_port, self.grpc_port = http_port, grpc_port
        self._log = log
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """What starts it."""
        raise NotImplementedError

    def url(self, scheme: str) -> str:
        return f"{scheme}://127.0.0.1:{self.grpc_port if scheme == 'grpc' else self.http_port}"

    def start(self) -> None:
        """Returns when it is ready."""
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command(),
                env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        _wait_until_ready(self.process, self.http_port, self._log)

    def signal(self, number: signal.Signals) -> None:
        """Sent to the server and all that it has started."""
        if self.process is not None:
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """At once, whatever it is at; its clients are told by the system."""
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Server(Running):
    """MLServer with a model repository."""

    def __init__(self, written: Path, ports: Sequence[int] = ()) -> None:
        """Of a copy of a folder that was written for servers, with these ports, or free ones."""
        self.folder = written.with_name(f"{written.name}.mlserver")
        shutil.copytree(written, self.folder)
        log = written.with_name(f"{written.name}.log")
        super().__init__(log, *(ports or free_ports(2)))
        (metrics,) = free_ports(1)
        settings = json.loads((written / "settings.json").read_text())
        settings |= {"http_port": self.http_port, "grpc_port": self.grpc_port}
        settings |= {"metrics_port": metrics, "host": "127.0.0.1"}
        (self.folder / "settings.json").write_text(json.dumps(settings))

    @classmethod
    def having(cls, folder: Path, models: Mapping[str, tuple[Tail, bytes]]) -> Self:
        """Of these models, written to `folder` first."""
        write_server_folder(folder, "digits", models)
        return cls(folder)

    def command(self) -> list[str]:
        program = "from mlserver.cli import main; main()"
        return [_python(), "-c", program, "start", str(self.folder)]


class KServe(Running):
    """KServe with the models of a folder; it takes tensors in binary form over HTTP."""

    def __init__(self, written: Path) -> None:
        """Of a folder that was written for servers."""
        super().__init__(written.with_name(f"{written.name}.log"), *free_ports(2))
        self._folder = written

    def command(self) -> list[str]:
        program = Path(__file__).with_name("kserve_tail.py")
        ports = [str(self.http_port), str(self.grpc_port)]
        return [_kserve_python(), str(program), str(self._folder), *ports]


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end and process.poll() is None:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/v2/health/ready")
            if connection.getresponse().status == 200:
                return
        except (OSError, HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    if process.poll() is None:
        process.kill()
    pytest.fail(f"the server did not start:\n{log.read_text()}")


def _python() -> str:
    """The Python that has MLServer; skips the test where there is none and none is required."""
    given = os.environ.get("EECOMPILE_SERVER_PYTHON")
    if given:
        return given
    if importlib.util.find_spec("mlserver") is None:
        missing("mlserver is not installed: `pip install mlserver`")
    return sys.executable


def _kserve_python() -> str:
    """The Python that has KServe, set up where servers are required."""
    given = os.environ.get("EECOMPILE_KSERVE_ENV")
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = Path(given) if given else base / "eecompile-tests" / "kserve"
    setup = ["bash", str(Path(__file__).with_name("env.sh")), str(folder)]
    if not (folder / "ready").exists():
        if os.environ.get("EECOMPILE_REQUIRE_SERVERS") != "1":
            missing(f"no KServe: run `bash tests/offload/env.sh {folder}`")
        variables = os.environ | {"PYTHON": sys.executable}
        done = subprocess.run(setup, env=variables, capture_output=True, text=True)
        if done.returncode:
            pytest.fail(f"`{' '.join(setup)}` failed:\n{done.stdout}\n{done.stderr}")
    return str(folder / "bin" / "python")


def missing(what: str) -> None:
    """Skips the test, or fails it where servers are required."""
    if os.environ.get("EECOMPILE_REQUIRE_SERVERS") == "1":
        pytest.fail(what)
    pytest.skip(f"{what}, or set EECOMPILE_REQUIRE_SERVERS=1")

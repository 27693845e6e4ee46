"""A board is measured through TVM's own RPC server; here the board is this machine."""

from __future__ import annotations

import errno
import os
import platform
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eecompile.artifact import Artifact, read_artifact, write_artifact
from eecompile.benching.device import Device, LocalDevice, Placing, Repeating
from eecompile.diagnostics import CompileErrors, ToolError
from eecompile.manifest import TargetInfo
from eecompile.runtime.session import Session
from eecompile.runtime.sysfs import SysFiles
from tests.helpers import ROOT
from tests.remote.serving import free_port, serving
from tests.runtime import gated, tiny

pytest.importorskip(
    "cloudpickle", reason="TVM's RPC server needs it: pip install 'apache-tvm[rpc]'"
)
remote = pytest.importorskip("eecompile.targets.lowering.remote")

POLICY = "sys/devices/system/cpu/cpufreq/policy0"
FOUND = {
    f"{POLICY}/related_cpus": "0\n",
    f"{POLICY}/affected_cpus": "0\n",
    f"{POLICY}/cpuinfo_min_freq": "600000\n",
    f"{POLICY}/cpuinfo_max_freq": "1200000\n",
    f"{POLICY}/scaling_available_frequencies": "600000 900000 1200000\n",
    f"{POLICY}/scaling_available_governors": "performance schedutil\n",
    f"{POLICY}/scaling_governor": "schedutil\n",
    f"{POLICY}/scaling_min_freq": "600000\n",
    f"{POLICY}/scaling_max_freq": "1200000\n",
    f"{POLICY}/scaling_cur_freq": "900000\n",
}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving((), "--key", "pi") as found:
        yield found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what a kernel shows, with this process's own /proc."""
    for name, text in FOUND.items():
        path = tmp_path / "board" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "board" / "proc").symlink_to("/proc")
    return tmp_path / "board"


def as_found(tree: Path) -> bool:
    return all((tree / name).read_text() == text for name, text in FOUND.items())


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)


def artifact(folder: Path, **changes: Any) -> Artifact:
    write_artifact(folder / "tiny", tiny.contents(**changes))
    return read_artifact(folder / "tiny", must_run=False)


def open_device(port: int, given: Artifact, root: Path | str = "", **options: Any) -> Any:
    address = remote.read_address(f"127.0.0.1:{port}", options.pop("key", "pi"))
    return remote.RemoteDevice(given, address, root=str(root), **options)


@pytest.mark.parametrize("threads", [1, 2])
def test_every_function_is_run_and_timed(port: int, tmp_path: Path, threads: int) -> None:
    with open_device(port, artifact(tmp_path), threads=threads) as device:
        assert device.max_abs_error == 0.0 and device.threads == threads
        rounds = [device.round() for _ in range(3)]
        assert all(len(times) == len(tiny.NAMES) and min(times) > 0 for times in rounds)
        assert device.repeat(2, 0.01) >= 0.01
        device.place(sorted(os.sched_getaffinity(0))[:1])
        with pytest.raises(OSError, match="Invalid argument"):
            device.place([1 << 20])


def test_gates_are_run_and_everything_is_kept(port: int, tmp_path: Path) -> None:
    write_artifact(tmp_path / "gated", gated.contents())
    given = read_artifact(tmp_path / "gated", must_run=False)
    with open_device(port, given, threads=1) as device:
        assert device.max_abs_error == 0.0
        assert len(device.round()) == len(gated.NAMES)
    here = LocalDevice(Session(given, threads=1), {"x": gated.inputs(2)})
    assert len(here.round()) == len(gated.NAMES)
    assert (here._lane.values["groups"] == np.inf).all()


def test_a_board_is_a_device_like_this_machine(port: int, tmp_path: Path) -> None:
    with open_device(port, artifact(tmp_path)) as found:
        device: Device = found
        files: SysFiles = device.files
        assert isinstance(device, Repeating) and isinstance(device, Placing)
        assert device.name and files.names("/proc/self/task")


def test_wrong_results_are_not_timed(port: int, tmp_path: Path) -> None:
    vectors = dict(tiny.contents().vectors)
    vectors["value.late.logits"] = vectors["value.late.logits"] + np.float32(0.5)
    with pytest.raises(CompileErrors) as caught:
        open_device(port, artifact(tmp_path, vectors=vectors))
    (found,) = caught.value.diagnostics
    assert found.id == "wrong-results"
    assert "up to 0.5 away: `head_1`" in found.message


def test_files_are_read_where_the_kernel_has_them(port: int, tmp_path: Path, tree: Path) -> None:
    (tree / "sys" / "bytes").write_bytes(bytes(range(256)) * 999)
    (tree / "sys" / "empty").touch()
    (tree / "sys" / "nothing").mkdir()
    with open_device(port, artifact(tmp_path), tree) as device:
        files = device.files
        assert files.read(f"/{POLICY}/scaling_governor") == "schedutil\n"
        assert files.read_bytes("/sys/bytes") == bytes(range(256)) * 999
        assert files.read("/sys/empty") == ""
        assert files.names("/sys") == ["bytes", "devices", "empty", "nothing"]
        assert files.names("/sys/nothing") == []
        assert files.names(f"/{POLICY}") == sorted(Path(name).name for name in FOUND)
        for path, number in {
            "/sys/none": errno.ENOENT,
            "/sys": errno.EISDIR,
            "/system": errno.EPERM,
            "/sys/..": errno.EPERM,
            "/etc/passwd": errno.EPERM,
            "/sys/../etc/passwd": errno.EPERM,
            "/sys/" + "x" * 1000: errno.EINVAL,
            "/sys/devices": errno.EISDIR,
        }.items():
            with pytest.raises(OSError) as caught:
                files.read(path)
            assert (caught.value.errno, caught.value.filename) == (number, path)
        with pytest.raises(OSError, match="not permitted"):
            files.write("/proc/self/comm", "x")
        with pytest.raises(NotADirectoryError):
            files.names("/sys/bytes")


def test_settings_are_put_back_when_a_session_ends(port: int, tmp_path: Path, tree: Path) -> None:
    with open_device(port, artifact(tmp_path), tree) as device:
        device.files.write(f"/{POLICY}/scaling_max_freq", "900000")
        device.files.write(f"/{POLICY}/scaling_max_freq", "600000")
        device.files.write(f"/{POLICY}/scaling_governor", "performance")
        device.files.remember(f"/{POLICY}/scaling_min_freq")
        (tree / POLICY / "scaling_min_freq").write_text("1\n")  # as a kernel may
        assert (tree / POLICY / "scaling_max_freq").read_text() == "600000"
    wait_until(lambda: as_found(tree))


def test_settings_are_put_back_when_the_host_is_killed(
    port: int, tmp_path: Path, tree: Path
) -> None:
    given = artifact(tmp_path)
    host = subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.remote.pinning"),
            *(f"127.0.0.1:{port}", "pi", str(given.path), str(tree)),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert host.stdout is not None and host.stdout.readline() == "set\n"
        assert (tree / POLICY / "scaling_min_freq").read_text().strip() == "900000"
        assert (tree / POLICY / "scaling_max_freq").read_text().strip() == "900000"
    finally:
        host.kill()
        host.wait()
    wait_until(lambda: as_found(tree))
    # It was killed in the middle of a measurement; the server serves the next one.
    with open_device(port, given) as device:
        assert len(device.round()) == len(tiny.NAMES)


def test_settings_are_put_back_when_the_session_is_killed_on_the_board(
    tmp_path: Path, tree: Path
) -> None:
    with serving() as own, open_device(own, artifact(tmp_path), tree, key="") as device:
        device.files.write(f"/{POLICY}/scaling_governor", "performance")
        os.kill(int(device.files.read("/proc/self/stat").split()[0]), signal.SIGKILL)
        wait_until(lambda: as_found(tree))
        with pytest.raises(ToolError, match=r"connection to 127.*was lost.*measure again") as lost:
            device.round()
        with pytest.raises(ToolError) as again:
            device.repeat(0, 0.1)
        assert again.value is lost.value
        with pytest.raises(OSError) as caught:
            device.files.read("/proc/cpuinfo")
        assert caught.value.errno == errno.ECONNRESET


def test_a_board_looks_whether_its_host_is_still_there(port: int, tmp_path: Path) -> None:
    with open_device(port, artifact(tmp_path)) as device:
        lines = [line.split() for line in device.files.read("/proc/self/net/tcp").splitlines()]
    # Source: Linux Documentation/networking/proc_net_tcp.rst: 01 is established, timer 2 keepalive.
    timers = [line[5] for line in lines if line[1].endswith(f":{port:04X}") and line[3] == "01"]
    assert len(timers) == 1 and timers[0].startswith("02:")


def test_a_board_that_says_nothing_more_is_given_up(port: int, tmp_path: Path) -> None:
    with open_device(port, artifact(tmp_path), answer_s=0.5) as device:
        session = int(device.files.read("/proc/self/stat").split()[0])
        os.kill(session, signal.SIGSTOP)
        try:
            with pytest.raises(ToolError, match=r"has not answered for 0\.5 s"):
                device.round()
        finally:
            os.kill(session, signal.SIGCONT)


def test_meters_are_read_on_the_board_around_the_calls(
    port: int, tmp_path: Path, tree: Path
) -> None:
    stop = threading.Event()

    def count() -> None:
        while not stop.wait(0.005):
            (tree / "sys" / "energy").write_text(str(time.monotonic_ns()))

    (tree / "sys" / "energy").write_text("0")
    thread = threading.Thread(target=count)
    thread.start()
    try:
        with open_device(port, artifact(tmp_path), tree) as device:
            edges = device.repeated(1, 0.2, ["/sys/energy", "/sys/none"])
            often = device.repeated(1, 0.2, ["/sys/energy"], 0.02)
    finally:
        stop.set()
        thread.join()
    assert len(edges.readings) == 2 and len(often.readings) > 2
    assert edges.calls > 0 and edges.seconds >= 0.2
    first, last = edges.readings
    assert first.texts[1] is None and last.texts[1] is None
    assert last.time_s - first.time_s >= edges.seconds
    times = [reading.time_s for reading in often.readings]
    assert times == sorted(times)


# ---- what goes wrong ----


def test_nothing_listens(tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=r"Nothing listens at .*: start `python -m tvm.exec"):
        open_device(free_port(), artifact(tmp_path))


def test_another_key(port: int, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="was started with another key"):
        open_device(port, artifact(tmp_path), key="rock")


def test_no_such_host(tmp_path: Path) -> None:
    address = remote.read_address("no-such-board.invalid:9090")
    with pytest.raises(ToolError, match=r"No host `no-such-board\.invalid`"):
        remote.RemoteDevice(artifact(tmp_path), address)


@contextmanager
def listening(greeting: bytes) -> Iterator[int]:
    """Something that accepts connections and says one thing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held: list[socket.socket] = []

        def accept() -> None:
            with pytest.raises(OSError):
                while True:
                    connection, _ = server.accept()
                    held.append(connection)
                    connection.sendall(greeting)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in held:
                connection.close()


def test_another_service(tmp_path: Path) -> None:
    with (
        listening(b"SSH-2.0-OpenSSH_9.2\r\n") as there,
        pytest.raises(ToolError, match=r"no RPC server of this version.*apache-tvm\[rpc\]=="),
    ):
        open_device(there, artifact(tmp_path))


def test_a_server_that_is_busy(tmp_path: Path) -> None:
    with (
        listening(b"") as there,
        pytest.raises(ToolError, match=r"No answer from .* within 0.5 s.*nobody else measures"),
    ):
        open_device(there, artifact(tmp_path), connect_s=0.5)


def open_files() -> list[str]:
    """What this process has open beside sockets, which threads may yet close."""
    paths = [Path("/proc/self/fd") / fd for fd in os.listdir("/proc/self/fd")]
    found = [os.readlink(path) for path in paths if path.is_symlink()]
    return sorted(name for name in found if not name.startswith(("socket:", "/proc/")))


def test_giving_up_leaves_no_file_open(tmp_path: Path) -> None:
    given = artifact(tmp_path)
    with listening(b"") as there:
        before = open_files()
        with pytest.raises(ToolError, match="No answer from"):
            open_device(there, given, connect_s=0.2)
        assert before and open_files() == before


@pytest.mark.parametrize(
    "text", ["", "board", "board:", "board:0", "board:65536", "a b:1", "http://board:80", "::1:90"]
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(CompileErrors, match=re.escape(f"`{text}` is no address")):
        remote.read_address(text)


def test_a_tracker_needs_a_key() -> None:
    with pytest.raises(CompileErrors, match="which board is wanted"):
        remote.read_address("tracker://here:9190")


def other_architecture() -> str:
    return "aarch64" if platform.machine() == "x86_64" else "x86_64"


def test_an_artifact_for_another_architecture(port: int, tmp_path: Path) -> None:
    pytest.importorskip("ziglang", reason="compiles for other machines")
    target = TargetInfo("other", f"{other_architecture()}-linux-gnu")
    with pytest.raises(CompileErrors) as caught:
        open_device(port, artifact(tmp_path, target=target))
    (found,) = caught.value.diagnostics
    assert found.id == "wrong-machine"
    assert found.message.endswith(f"127.0.0.1:{port} is {platform.machine()}")


def test_an_artifact_for_a_better_cpu(port: int, tmp_path: Path) -> None:
    pytest.importorskip("ziglang", reason="compiles for CPUs this machine has not")
    target = TargetInfo("other", f"{platform.machine()}-linux-gnu", ("no-such-feature",))
    with pytest.raises(CompileErrors, match=r"wrong-machine.*lacks .*: no-such-feature"):
        open_device(port, artifact(tmp_path, target=target))


def test_code_that_cannot_be_loaded(port: int, tmp_path: Path) -> None:
    with pytest.raises(CompileErrors, match=r"wrong-machine.*does not run on the board: .*kernels"):
        open_device(port, artifact(tmp_path, library=b"\x7fELF" + bytes(100), plan=b"none"))


def test_a_function_the_code_lacks(port: int, tmp_path: Path) -> None:
    graph = tiny.network()
    first = replace(graph.functions()[0], symbol="segment_9")
    changed = replace(graph, segments=(first, *graph.segments[1:]))
    with pytest.raises(CompileErrors, match=r"bad-artifact.*has no function `segment_9`"):
        open_device(port, artifact(tmp_path, network=changed))


def test_a_tracker_finds_the_board(tmp_path: Path) -> None:
    pytest.importorskip("tornado", reason="TVM's tracker needs it: pip install 'apache-tvm[rpc]'")
    with (
        serving(module="rpc_tracker") as tracker,
        serving((), "--key", "pi", "--tracker", f"127.0.0.1:{tracker}"),
    ):
        address = remote.read_address(f"tracker://127.0.0.1:{tracker}", "pi")
        with remote.RemoteDevice(artifact(tmp_path), address) as device:
            assert len(device.round()) == len(tiny.NAMES)
        nobody = remote.read_address(f"tracker://127.0.0.1:{tracker}", "rock")
        with pytest.raises(ToolError, match="No answer from tracker"):
            remote.RemoteDevice(artifact(tmp_path / "b"), nobody, connect_s=1.0)

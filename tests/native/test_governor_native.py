"""The governor in C: on a kernel's simulation as the Python one is tested, and in real processes.

The tests of the Python governor are run once more, with the one in C in its place and the simulated
kernel behind its files. What ends, and is killed, is a program in C on a tree of plain files.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from eecompile.board import Cluster, DvfsState
from eecompile.runtime.governor import ClockWarning, NoGovernor, RestoringContext
from eecompile.runtime.sysfs import LocalFiles, SysFiles
from eecompile.runtime.sysfs_governor import CannotSet, SysfsGovernor
from tests.governor import test_governor as python
from tests.governor.killing import boards, policies
from tests.governor.sysfs_tree import Kernel, KernelKept, make_tree, rpi4, settings
from tests.native import native_costs
from tests.native.conftest import NATIVE, Compile, Objects
from tests.scheduling.tables import table_of

pytestmark = pytest.mark.usefixtures("state_folder")

REPLACED = ("sysfs.c", "watchdog.c")
ACTIONS = st.sampled_from(
    [*range(5), "governor", "limit", "heat", "cool", "deny", "allow", "restore"]
)

#: Files of a kernel in Python, and no process that watches: Python would be in it.
LAYER = (
    """
#include "sysfs.h"
#include <stdio.h>
#include <string.h>
static int (*reads)(const char *, char *);
static int (*writes)(const char *, const char *);
static int (*looks)(const char *);
static const char *(*names)(const char *);
static bool is_root;
void use_files(void *read, void *write, void *look, void *name, bool root) {
    reads = (int (*)(const char *, char *))read;
    writes = (int (*)(const char *, const char *))write;
    looks = (int (*)(const char *))look;
    names = (const char *(*)(const char *))name;
    is_root = root;
}
int sysfs_read(const char *root, const char *path, char text[TEXT_BYTES]) {
    (void)root;
    text[0] = 0;
    return reads(path, text);
}
int sysfs_write(const char *root, const char *path, const char *text) {
    (void)root;
    return writes(path, text);
}
int sysfs_may_write(const char *root, const char *path) {
    (void)root;
    return looks(path);
}
bool sysfs_privileged(void) { return is_root; }
int sysfs_names(
    const char *root, const char *folder, void (*each)(void *context, const char *name),
    void *context) {
    (void)root;
    for (const char *name = names(folder); name && *name; name += strlen(name) + 1)
        each(context, name);
    return 0;
}
bool watchdog_start(watchdog_t *watchdog, bool (*restore)(void *), void *context, int kept) {
    (void)restore, (void)context, (void)kept;
    watchdog->process = 1;
    return true;
}
void watchdog_stop(watchdog_t *watchdog, bool restored) {
    (void)restored;
    watchdog->process = 0;
}
"""
).replace("#include <stdio.h>", "#include <stdio.h>\n#include <string.h>", 1)

READ = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_char))
WRITE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p)
LOOK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p)
NAMES = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)


@pytest.fixture
def state_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("state")
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    return folder


class Layer:
    """What C calls instead of the system."""

    def __init__(self, library: ctypes.CDLL, files: SysFiles) -> None:
        self.files, self.names = files, b""
        self.calls = (READ(self.read), WRITE(self.write), LOOK(self.look), NAMES(self.listed))
        root = bool(getattr(files, "privileged", False))
        library.use_files(*self.calls, ctypes.c_bool(root))

    def read(self, path: bytes, text: Any) -> int:
        try:
            found = self.files.read(path.decode()).strip().encode()
        except OSError as error:
            return -(error.errno or 5)
        ctypes.memmove(text, found + b"\0", len(found) + 1)
        return 0

    def write(self, path: bytes, text: bytes) -> int:
        try:
            self.files.write(path.decode(), text.decode() + "\n")
        except OSError as error:
            return -(error.errno or 5)
        return 0

    def look(self, path: bytes) -> int:
        try:
            getattr(self.files, "opened", self.files.read)(path.decode())
        except OSError as error:
            return -(error.errno or 5)
        return 0

    def listed(self, folder: bytes) -> int | None:
        try:
            names = self.files.names(folder.decode())
        except OSError:
            return None
        self.names = b"".join(name.encode() + b"\0" for name in names) + b"\0"
        return ctypes.cast(ctypes.c_char_p(self.names), ctypes.c_void_p).value


class NativeGovernor(RestoringContext):
    """The governor in C where the tests expect `SysfsGovernor`."""

    library: ctypes.CDLL

    def __init__(self, files: SysFiles, clusters: tuple[Cluster, ...]) -> None:
        self.layer = Layer(self.library, files)
        self.all = tuple(state for cluster in clusters for state in cluster.states)
        clocks = [(state.cluster, state.frequency_hz or 0.0, None) for state in self.all]
        numbers = {cluster.name: cluster.cpus for cluster in clusters}
        table = replace(table_of(clocks, [1.0], []), cpus=numbers)
        self.costs = native_costs.costs_of(table)
        why = ctypes.create_string_buffer(200)
        root = str(getattr(files, "identity", getattr(files, "root", ""))).encode()
        self.handle = self.library.sysfs_governor_open(ctypes.byref(self.costs), root, why)
        self.notes = [why.value.decode()] if why.value else []
        if not self.handle:
            raise CannotSet(*self.notes)
        self.calls = native_costs.Governor.from_address(self.handle)
        self.current: DvfsState | None = None
        self.told = ""

    @property
    def states(self) -> tuple[DvfsState, ...]:
        def offered(one: DvfsState) -> bool:
            cluster = one.cluster.encode()
            return bool(self.calls.offers(self.calls.context, cluster, one.frequency_hz))

        return tuple(one for one in self.all if offered(one))

    @property
    def reason(self) -> str:
        return str(self.library.sysfs_governor_reason(self.handle).decode())

    def set(self, state: DvfsState) -> None:
        if state not in self.states:
            return
        done = self.calls.set(self.calls.context, state.cluster.encode(), state.frequency_hz)
        self.current = None if done else state
        if self.reason != self.told:
            self.told = self.reason
            warnings.warn(self.told, ClockWarning, stacklevel=2)

    def restore(self) -> None:
        self.calls.restore(self.calls.context)
        self.current = None

    def __del__(self) -> None:
        if getattr(self, "handle", None):
            self.library.sysfs_governor_close(self.handle)


def open_native(clusters: Sequence[Cluster], files: SysFiles) -> NativeGovernor | NoGovernor:
    """As `open_governor`."""
    try:
        return NativeGovernor(files, tuple(clusters))
    except CannotSet as error:
        warnings.warn(f"Clocks are left alone: {error}", ClockWarning, stacklevel=2)
        return NoGovernor(str(error))


@pytest.fixture
def native(compiled: Compile, monkeypatch: pytest.MonkeyPatch) -> type[NativeGovernor]:
    """The class, which the Python governor's tests use from now on."""
    sources = [name for name in native_costs.GOVERNOR_SOURCES if name not in REPLACED]
    library = compiled(sources, LAYER)
    library.sysfs_governor_open.restype = ctypes.c_void_p
    library.sysfs_governor_reason.restype = ctypes.c_char_p
    library.sysfs_governor_reason.argtypes = [ctypes.c_void_p]
    library.sysfs_governor_close.argtypes = [ctypes.c_void_p]
    library.sysfs_governor_close.restype = None
    NativeGovernor.library = library
    monkeypatch.setattr(python, "SysfsGovernor", NativeGovernor)
    monkeypatch.setattr(python, "open_governor", open_native)
    return NativeGovernor


# What the Python governor does, this one does.

WAYS = {"speed": lambda policy: policy, "limits": python.limited}
Test = Callable[..., None]


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("modern", [True, False], ids=["modern", "old"])
@pytest.mark.parametrize("kind", [Kernel, KernelKept])
def test_each_clock_is_reached_and_everything_put_back(
    tmp_path: Path, way: str, modern: bool, kind: type[Kernel]
) -> None:
    python.test_each_clock_is_reached_and_everything_put_back(tmp_path, WAYS[way], modern, kind)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "test",
    [
        python.test_asking_for_the_current_clock_writes_nothing,
        python.test_without_permission_nothing_is_set_and_it_is_said_once,
        python.test_a_cpu_that_comes_back_is_set_again,
        python.test_a_clock_that_is_busy_for_a_moment_is_tried_again,
        python.test_one_cluster_s_trouble_is_not_the_other_s,
    ],
)
def test_either_way(tmp_path: Path, test: Test, way: str) -> None:
    test(tmp_path, WAYS[way])


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize(
    "test",
    [
        python.test_a_change_of_clock_is_one_write_with_the_userspace_governor,
        python.test_a_policy_found_under_userspace_gets_its_clock_back,
        python.test_clusters_are_matched_with_their_policies,
        python.test_policies_of_single_cpus_move_together,
        python.test_a_devfreq_device_a_board_names_is_pinned_in_hertz,
        python.test_a_driver_without_a_table_takes_any_clock_between_its_limits,
        python.test_clocks_the_owner_forbids_are_not_offered,
        python.test_no_cpufreq_means_no_governor,
        python.test_another_board_s_clocks_are_not_set_here,
        python.test_another_governor_is_noticed_reported_once_and_left,
        python.test_another_speed_is_noticed_and_left,
        python.test_a_cap_from_outside_leaves_no_lower_limit_of_ours,
        python.test_limits_are_not_taken_from_a_hot_machine,
        python.test_a_board_without_clocks_has_no_governor,
    ],
)
def test_alone(tmp_path: Path, test: Test) -> None:
    test(tmp_path)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("modern", [True, False])
def test_other_limits_are_noticed_and_left(tmp_path: Path, modern: bool) -> None:
    python.test_other_limits_are_noticed_and_left(tmp_path, modern)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("found", [(0, 4), (1, 3), (2, 2)])
def test_limits_go_in_an_order_old_kernels_take(modern: bool, found: tuple[int, int]) -> None:
    order = python.test_limits_go_in_an_order_old_kernels_take.hypothesis.inner_test
    order(modern, asked=[4, 0, 3, 1, 2, 2, 4], found=found)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("kind", [Kernel, KernelKept])
@pytest.mark.parametrize("way", WAYS)
def test_a_policy_that_goes_away(tmp_path: Path, way: str, kind: type[Kernel]) -> None:
    python.test_a_policy_that_goes_away(tmp_path, WAYS[way], kind)


@pytest.mark.usefixtures("native")
@pytest.mark.parametrize("governor", ["schedutil", "performance"])
def test_tunables_that_only_root_can_put_back(tmp_path: Path, governor: str) -> None:
    python.test_a_governor_whose_tunables_only_root_can_put_back_is_not_left(tmp_path, governor)


@pytest.mark.parametrize("modern", [True, False], ids=["modern", "old"])
@pytest.mark.parametrize("way", WAYS)
def test_heat_is_no_other_process(
    tmp_path: Path, native: type[NativeGovernor], way: str, modern: bool
) -> None:
    policy = WAYS[way](rpi4())
    kernel, board = Kernel(tmp_path, policy, modern=modern), python.cluster(policy)
    before = settings(tmp_path)
    governor = native(kernel, (board,))
    governor.set(board.states[4])
    kernel.heat(policy, 1_000_000)
    for index, reached in ((1, True), (3, False), (1, True), (3, False)):
        governor.set(board.states[index])
        assert (governor.current is not None) == reached and governor.reason == ""
    kernel.heat(policy, 1 << 30)
    governor.set(board.states[4])
    assert governor.current == board.states[4]
    governor.set(board.states[3])
    kernel.heat(policy, 900_000)
    governor.restore()
    kernel.heat(policy, 1 << 30)
    after = {name: text for name, text in settings(tmp_path).items() if "thermal" not in name}
    assert after == before


@pytest.mark.parametrize("modern", [True, False], ids=["modern", "old"])
@pytest.mark.parametrize("way", WAYS)
@hypothesis_settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(actions=st.lists(ACTIONS, max_size=12))
def test_whatever_happens_what_is_ours_goes_back(
    native: type[NativeGovernor], way: str, modern: bool, actions: list[int | str]
) -> None:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        policy = WAYS[way](rpi4())
        kernel, board = Kernel(Path(folder), policy, modern=modern), python.cluster(policy)
        found = settings(Path(folder))
        governor = native(kernel, (board,))
        foreign = {"governor", "limit"} & set(actions)
        for action in actions:
            if isinstance(action, int):
                governor.set(board.states[action])
            elif action == "governor":
                kernel.store(f"{policy.folder}/scaling_governor", "performance")
            elif action == "limit":
                policy.high = 1_100_000
                kernel.show()
            elif action in ("heat", "cool"):
                kernel.heat(policy, 1_000_000 if action == "heat" else 1 << 30)
            elif action in ("deny", "allow"):
                kernel.denied = [".*"] if action == "deny" else []
            elif action == "restore":
                governor.restore()
        kernel.denied = []
        kernel.heat(policy, 1 << 30)
        governor.restore()
        if "governor" in foreign:
            assert policy.governor in ("performance", "schedutil")
        if foreign:
            assert policy.governor != "userspace" and policy.low <= policy.table[0]
        else:
            after = settings(Path(folder))
            assert {name: after[name] for name in found} == found


# One at a time.


def test_two_do_not_set_the_same_clocks(tmp_path: Path, native: type[NativeGovernor]) -> None:
    policy = rpi4()
    kernel, board = Kernel(tmp_path, policy), python.cluster(policy)
    early = native(kernel, (board,))
    with native(kernel, (board,)) as governor:
        governor.set(board.states[0])
        for other in (native, SysfsGovernor):
            with pytest.raises(CannotSet, match="another process"):
                other(kernel, (board,))
        with pytest.warns(ClockWarning, match="another process is setting clocks"):
            early.set(board.states[1])
        assert early.states == () and policy.clock == 600_000
    with SysfsGovernor(kernel, (board,)) as governor:
        governor.set(board.states[0])
        with pytest.raises(CannotSet, match="another process is setting clocks"):
            native(kernel, (board,))
    assert native(kernel, (board,)).states == board.states


def test_what_a_killed_run_left_is_not_taken_for_the_owner_s(
    tmp_path: Path, native: type[NativeGovernor], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = rpi4()
    kernel, board = Kernel(tmp_path, policy), python.cluster(policy)
    monkeypatch.setattr(python, "SysfsGovernor", SysfsGovernor)
    python.crashed(kernel, board)
    with pytest.raises(CannotSet, match="what an earlier run changed was not put back"):
        native(kernel, (board,))
    make_tree(tmp_path, boot="boot-2")
    assert native(kernel, (board,)).states == board.states, "a reboot has put it back"


# Real files, real ends.

DRIVER = Path(__file__).with_name("governor_driver.c")
FILES = (*(NATIVE / name for name in native_costs.GOVERNOR_SOURCES), DRIVER)


@pytest.fixture(scope="module")
def driver(objects: Objects, tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("driver") / "driver"
    return objects.linked(output, FILES, "-Dpwrite=counted_pwrite")


def run(driver: str, root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Ends when nobody has its output open any more, which the watchdog does not keep."""
    command = [driver, str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def settled(root: Path, before: dict[str, str]) -> bool:
    """Whether the tree is as before; the watchdog may be at work still."""
    until = time.monotonic() + 20
    while settings(root) != before and time.monotonic() < until:
        time.sleep(0.002)
    return settings(root) == before


@pytest.mark.parametrize("way", ["speed", "limits", "userspace"])
def test_killed_at_any_write_the_watchdog_restores(tmp_path: Path, driver: str, way: str) -> None:
    make_tree(tmp_path, *policies(way))
    before, step, done = settings(tmp_path), 1, ""
    while "alive" not in done:
        done = run(driver, tmp_path, "kills", str(step)).stdout
        assert settings(tmp_path) == before, f"after step {step}"
        assert done in ("", "alive\n")
        step += 1
    assert step > 20


@pytest.mark.parametrize("way", ["speed", "limits"])
@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("return", 0),
        ("exit", 3),
        ("thread", 0),
        ("close", 0),
        ("_exit", 3),
        ("exec", 0),
        ("abort", -signal.SIGABRT),
        ("term", -signal.SIGTERM),
        ("kill", -signal.SIGKILL),
        ("fault", -signal.SIGSEGV),
        ("unseen", 0),
    ],
)
def test_ways_to_end(tmp_path: Path, driver: str, how: str, status: int, way: str) -> None:
    make_tree(tmp_path, *policies(way))
    before = settings(tmp_path)
    done = run(driver, tmp_path, "ends", how)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")
    assert settled(tmp_path, before)


def test_a_clock_is_set_meanwhile(tmp_path: Path, driver: str) -> None:
    make_tree(tmp_path, *policies("speed"))
    command = [driver, str(tmp_path), "ends", "stop"]
    before = settings(tmp_path)
    process = subprocess.Popen(command)
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    policy = tmp_path / "sys/devices/system/cpu/cpufreq/policy0"
    assert (policy / "scaling_governor").read_text() == "userspace\n"
    assert (policy / "scaling_setspeed").read_text().strip() == "1200000"
    with pytest.raises(CannotSet, match="another process is setting clocks"):
        SysfsGovernor(LocalFiles(tmp_path), boards("speed"))
    process.kill()
    process.wait()
    assert settled(tmp_path, before)


def test_forked_processes_neither_set_nor_put_back(tmp_path: Path, driver: str) -> None:
    make_tree(tmp_path, *policies("speed"))
    before = settings(tmp_path)
    command = [driver, str(tmp_path), "ends", "forked"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:  # that one still has the parent's end of the watchdog's connection
            assert process.wait() == -signal.SIGKILL
            assert settled(tmp_path, before)
        finally:
            os.kill(child, signal.SIGKILL)

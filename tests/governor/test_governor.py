"""Clocks are set where that is allowed, put back always, and others' settings left to them."""

from __future__ import annotations

import errno
import gc
import json
import os
import resource
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from eecompile.board import Cluster, DvfsState
from eecompile.runtime.governor import ClockWarning, Governor, NoGovernor
from eecompile.runtime.journal import Busy, Journal
from eecompile.runtime.sysfs import LocalFiles
from eecompile.runtime.sysfs_governor import CannotSet, SysfsGovernor, open_governor
from tests.governor.sysfs_tree import (
    CPUFREQ,
    Device,
    Kernel,
    KernelKept,
    Policy,
    make_tree,
    rk3399,
    rpi4,
    settings,
)

LIMITS_ONLY = ("schedutil", "performance", "powersave")


def cluster(policy: Policy, name: str = "cpu") -> Cluster:
    states = tuple(DvfsState(name, khz * 1e3) for khz in policy.table)
    return Cluster(name, "", policy.cpus, states)


def limited(policy: Policy) -> Policy:
    """The same without the userspace governor."""
    policy.governors = LIMITS_ONLY
    return policy


#: Every way to set a clock x kernels before and since 5.4 x files kept open or not.
WAYS = pytest.mark.parametrize("way", [lambda policy: policy, limited], ids=["speed", "limits"])
KERNELS = pytest.mark.parametrize("modern", [True, False], ids=["modern", "old"])
KINDS = pytest.mark.parametrize("kind", [Kernel, KernelKept], ids=["by-path", "kept-open"])
Way = Callable[[Policy], Policy]


@WAYS
@KERNELS
@KINDS
def test_each_clock_is_reached_and_everything_put_back(
    tmp_path: Path, way: Way, modern: bool, kind: type[Kernel]
) -> None:
    policy = way(rpi4())
    policy.tunables["rate_limit_us"] = "500"
    kernel = kind(tmp_path, policy, modern=modern)
    before, board = settings(tmp_path), cluster(policy)
    with SysfsGovernor(kernel, (board,)) as governor:
        assert settings(tmp_path) == before, "nothing is written before a clock is asked for"
        assert governor.states == board.states
        for index in (4, 0, 2, 1, 3, 0, 4):
            governor.set(board.states[index])
            assert policy.clock * 1e3 == board.states[index].frequency_hz
            assert governor.current == board.states[index]
    assert settings(tmp_path) == before
    assert kernel.refused == [] and governor.reason == "" and governor.current is None


@WAYS
def test_asking_for_the_current_clock_writes_nothing(tmp_path: Path, way: Way) -> None:
    policy = way(rpi4())
    kernel, board = Kernel(tmp_path, policy), cluster(policy)
    with SysfsGovernor(kernel, (board,)) as governor:
        governor.set(board.states[2])
        written = len(kernel.writes)
        governor.set(board.states[2])
        governor.set(DvfsState("cpu", 1e9))
        assert len(kernel.writes) == written


def test_a_change_of_clock_is_one_write_with_the_userspace_governor(tmp_path: Path) -> None:
    policy = rpi4()
    kernel, board = Kernel(tmp_path, policy), cluster(policy)
    with SysfsGovernor(kernel, (board,)) as governor:
        governor.set(board.states[0])
        del kernel.writes[:]
        governor.set(board.states[4])
    assert kernel.writes[0] == (f"{CPUFREQ}/policy0/scaling_setspeed", "1500000")
    assert [path for path, _ in kernel.writes[1:]] == [f"{CPUFREQ}/policy0/scaling_governor"]


@pytest.mark.parametrize("modern", [True, False])
@hypothesis_settings(max_examples=40, deadline=None)
@given(
    asked=st.lists(st.integers(0, 4), max_size=6),
    found=st.tuples(st.integers(0, 4), st.integers(0, 4)),
)
def test_limits_go_in_an_order_old_kernels_take(
    modern: bool, asked: list[int], found: tuple[int, int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        policy = limited(rpi4())
        policy.low, policy.high = (policy.table[one] for one in sorted(found))
        kernel, board = Kernel(Path(folder), policy, modern=modern), cluster(policy)
        before = settings(Path(folder))
        with SysfsGovernor(kernel, (board,)) as governor:
            for index in asked:
                governor.set(board.states[index])
                if min(found) <= index <= max(found):
                    assert governor.current == board.states[index]
                assert policy.low >= policy.table[min(found)]
                assert policy.high <= policy.table[max(found)], "the owner's limits are kept"
        assert settings(Path(folder)) == before
        assert kernel.refused == []


@pytest.mark.parametrize("governor", ["schedutil", "performance"])
def test_a_governor_whose_tunables_only_root_can_put_back_is_not_left(
    tmp_path: Path, governor: str
) -> None:
    policy = rpi4()
    policy.governor = governor
    policy.tunables = {"rate_limit_us": "500"} if governor == "schedutil" else {}
    kernel, board = Kernel(tmp_path, policy), cluster(policy)
    kernel.privileged = False
    with SysfsGovernor(kernel, (board,)) as found:
        found.set(board.states[2])
        assert policy.clock == 1_000_000
        assert policy.governor == ("schedutil" if governor == "schedutil" else "userspace")
    assert policy.governor == governor


def test_tunables_are_told_to_files_that_put_back_by_themselves(tmp_path: Path) -> None:
    policy = rpi4()
    kernel, board = Kernel(tmp_path, policy), cluster(policy)
    told: list[tuple[str, int]] = []
    kernel.remember = lambda path: told.append((path, len(kernel.writes)))  # type: ignore[attr-defined]
    with SysfsGovernor(kernel, (board,)) as governor:
        assert told == []
        governor.set(board.states[2])
        assert told == [(f"{policy.folder}/schedutil/rate_limit_us", 0)], "before any write"


def test_a_policy_found_under_userspace_gets_its_clock_back(tmp_path: Path) -> None:
    policy = rpi4()
    policy.governor, policy.speed, policy.tunables = "userspace", 1_200_000, {}
    kernel, board = Kernel(tmp_path, policy), cluster(policy)
    with SysfsGovernor(kernel, (board,)) as governor:
        governor.set(board.states[0])
        assert policy.clock == 600_000
    assert (policy.governor, policy.speed) == ("userspace", 1_200_000)


def test_clusters_are_matched_with_their_policies(tmp_path: Path) -> None:
    little, big = rk3399()
    kernel = Kernel(tmp_path, little, big)
    boards = (cluster(big, "big"), cluster(little, "little"))
    before = settings(tmp_path)
    with SysfsGovernor(kernel, boards) as governor:
        assert governor.states == boards[0].states + boards[1].states
        governor.set(boards[0].states[-1])
        governor.set(boards[1].states[0])
        assert (big.clock, little.clock) == (1_800_000, 408_000)
    assert settings(tmp_path) == before


def test_policies_of_single_cpus_move_together(tmp_path: Path) -> None:
    policies = [Policy(n, (n,), (800_000, 2_000_000)) for n in range(3)]
    kernel = Kernel(tmp_path, *policies)
    states = (DvfsState("cpu", 8e8), DvfsState("cpu", 2e9))
    with SysfsGovernor(kernel, (Cluster("cpu", "", (0, 1, 2), states),)) as governor:
        governor.set(states[0])
        assert [policy.clock for policy in policies] == [800_000] * 3
    assert {policy.governor for policy in policies} == {"schedutil"}


def test_a_devfreq_device_a_board_names_is_pinned_in_hertz(tmp_path: Path) -> None:
    device = Device("17000000.gpu", (114_750_000, 522_750_000, 1_300_500_000))
    kernel = Kernel(tmp_path, device, modern=False)
    states = tuple(DvfsState(device.name, float(hz)) for hz in device.table)
    before = settings(tmp_path)
    with SysfsGovernor(kernel, (Cluster(device.name, "", (), states),)) as governor:
        for state in (states[1], states[2], states[0]):
            governor.set(state)
            assert device.limits == (state.frequency_hz, state.frequency_hz)
    assert settings(tmp_path) == before


def test_a_driver_without_a_table_takes_any_clock_between_its_limits(tmp_path: Path) -> None:
    policy = rpi4()
    policy.shows_table = False
    kernel, board = Kernel(tmp_path, policy), cluster(policy)
    far = DvfsState("cpu", 9e9)
    with SysfsGovernor(kernel, (Cluster("cpu", "", policy.cpus, (*board.states, far)),)) as found:
        assert found.states == board.states
        found.set(board.states[1])
        assert found.current == board.states[1]


def test_clocks_the_owner_forbids_are_not_offered(tmp_path: Path) -> None:
    policy = rpi4()
    policy.high = 1_000_000
    governor = SysfsGovernor(Kernel(tmp_path, policy), (cluster(policy),))
    assert [state.frequency_hz for state in governor.states] == [6e8, 7.5e8, 1e9]
    assert governor.notes == [
        "cluster cpu: 2 of 5 clocks are not here (limits 600 MHz to 1000 MHz)"
    ]


# Where nothing can be set.


def opened(files: Kernel | LocalFiles, *clusters: Cluster) -> tuple[Governor, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        governor = open_governor(clusters, files)
    assert all(one.category is ClockWarning for one in caught)
    return governor, [str(one.message) for one in caught]


def test_no_cpufreq_means_no_governor(tmp_path: Path) -> None:
    governor, said = opened(LocalFiles(tmp_path), cluster(rpi4()))
    assert isinstance(governor, NoGovernor)
    assert governor.reason == "cluster cpu: no cpufreq policy has its CPUs"
    assert said == [f"Clocks are left alone: {governor.reason}"]
    governor.set(DvfsState("cpu", 6e8))
    governor.restore()


def test_another_board_s_clocks_are_not_set_here(tmp_path: Path) -> None:
    little, big = rk3399()
    wide = Cluster("wide", "", (0, 1), (DvfsState("wide", 6e8),))
    governor, said = opened(Kernel(tmp_path, little, big), wide)
    assert governor.states == () and len(said) == 1
    assert governor.reason == "cluster wide: its CPUs share a clock with others"


def as_nobody(work: Callable[[], object]) -> object:
    """What `work` returns in a process that is not root's, as text."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            os.write(writer, str(work()).encode())
        except BaseException as error:
            os.write(writer, repr(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with open(reader, encoding="utf-8") as file:
        return file.read()


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that everybody may look into, with one for journals."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "tmp").mkdir()
        (folder / "tmp").chmod(0o1777)
        monkeypatch.setattr(tempfile, "tempdir", str(folder / "tmp"))
        monkeypatch.delenv("XDG_STATE_HOME")
        monkeypatch.setenv("HOME", "/nonexistent")
        yield folder


def test_without_permission_on_real_files(public: Path) -> None:
    make_tree(public, rpi4())
    before, board = settings(public), cluster(rpi4())
    for path in public.rglob("scaling_*"):
        path.chmod(0o444)
    found = as_nobody(lambda: opened(LocalFiles(public), board)[0].reason)
    assert found == "cluster cpu: permission denied" and settings(public) == before


def test_with_permission_no_root_is_needed(public: Path) -> None:
    make_tree(public, rpi4())
    before, board = settings(public), cluster(rpi4())
    for limit in public.rglob("scaling_m*_freq"):
        limit.chmod(0o666)

    def work() -> object:
        with SysfsGovernor(LocalFiles(public), (board,)) as governor:
            governor.set(board.states[2])
            assert settings(public) != before
            return governor.current == board.states[2], governor.reason

    assert as_nobody(work) == "(True, '')" and settings(public) == before


@WAYS
def test_without_permission_nothing_is_set_and_it_is_said_once(tmp_path: Path, way: Way) -> None:
    policy = way(rpi4())
    kernel = KernelKept(tmp_path, policy)
    kernel.denied = [".*"]
    governor, said = opened(kernel, cluster(policy))
    assert governor.reason == "cluster cpu: permission denied" and len(said) == 1
    assert kernel.writes == []


# What goes wrong on the way.


def run(governor: Governor, *states: DvfsState) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for state in states:
            governor.set(state)
    assert all(one.category is ClockWarning for one in caught)
    return [str(one.message) for one in caught]


@WAYS
@KERNELS
def test_permission_lost_on_the_way(tmp_path: Path, way: Way, modern: bool) -> None:
    policy = way(rpi4())
    kernel, board = Kernel(tmp_path, policy, modern=modern), cluster(policy)
    before = settings(tmp_path)
    governor = SysfsGovernor(kernel, (board,))
    governor.set(board.states[1])
    kernel.denied = [".*"]
    said = run(governor, *board.states)
    assert said == ["cluster cpu: permission denied; its clock is left alone from now on"]
    assert governor.current is None and governor.reason == said[0]
    assert governor.states == ()
    governor.restore()
    assert settings(tmp_path) != before
    kernel.denied = []  # the journal remembers: the next start puts it back
    SysfsGovernor(kernel, (board,))
    assert settings(tmp_path) == before


@pytest.mark.parametrize("kind", [Kernel, KernelKept])
@WAYS
def test_a_policy_that_goes_away(tmp_path: Path, way: Way, kind: type[Kernel]) -> None:
    policy = way(rpi4())
    kernel, board = kind(tmp_path, policy), cluster(policy)
    governor = SysfsGovernor(kernel, (board,))
    governor.set(board.states[1])
    kernel.unplug(policy)
    said = run(governor, *board.states)
    assert len(said) == 1 and "left alone from now on" in said[0]
    governor.restore()


@WAYS
def test_a_cpu_that_comes_back_is_set_again(tmp_path: Path, way: Way) -> None:
    policy = way(rpi4())
    kernel, board = KernelKept(tmp_path, policy), cluster(policy)
    before = settings(tmp_path)
    governor = SysfsGovernor(kernel, (board,))
    governor.set(board.states[1])
    kernel.unplug(policy)
    kernel.plug(policy)
    assert run(governor, board.states[3]) == []
    assert policy.clock == 1_200_000 and governor.current == board.states[3]
    governor.restore()
    assert settings(tmp_path) == before


@WAYS
def test_a_clock_that_is_busy_for_a_moment_is_tried_again(tmp_path: Path, way: Way) -> None:
    policy = way(rpi4())
    kernel, board = Kernel(tmp_path, policy), cluster(policy)
    governor = SysfsGovernor(kernel, (board,))
    governor.set(board.states[1])
    policy.online = False
    assert run(governor, board.states[2], board.states[3]) == []
    assert governor.current is None and governor.reason == ""
    policy.online = True
    assert run(governor, board.states[3]) == []
    assert governor.current == board.states[3]
    policy.online = False
    said = run(governor, *board.states[:4])
    assert said == ["cluster cpu: device or resource busy; its clock is left alone from now on"]


@WAYS
def test_one_cluster_s_trouble_is_not_the_other_s(tmp_path: Path, way: Way) -> None:
    little, big = map(way, rk3399())
    kernel = Kernel(tmp_path, little, big)
    boards = (cluster(big, "big"), cluster(little, "little"))
    governor = SysfsGovernor(kernel, boards)
    governor.set(boards[0].states[0])
    kernel.denied = [f"{big.folder}/.*"]
    assert len(run(governor, boards[0].states[1], boards[1].states[1])) == 1
    assert governor.current == boards[1].states[1] and little.clock == 600_000
    assert governor.states == boards[1].states


# Other processes.


def test_another_governor_is_noticed_reported_once_and_left(tmp_path: Path) -> None:
    policy = rpi4()
    kernel, board = Kernel(tmp_path, policy), cluster(policy)
    governor = SysfsGovernor(kernel, (board,))
    governor.set(board.states[1])
    kernel.store(f"{policy.folder}/scaling_governor", "performance")
    said = run(governor, *board.states)
    assert said == [
        "cluster cpu: the governor was changed to `performance`; "
        "its clock is left alone from now on"
    ]
    governor.restore()
    assert policy.governor == "performance"


def test_another_speed_is_noticed_and_left(tmp_path: Path) -> None:
    policy = rpi4()
    policy.governor, policy.tunables, policy.speed = "userspace", {}, 1_500_000
    kernel, board = Kernel(tmp_path, policy), cluster(policy)
    governor = SysfsGovernor(kernel, (board,))
    governor.set(board.states[1])
    kernel.store(f"{policy.folder}/scaling_setspeed", "1000000")
    (said,) = run(governor, *board.states)
    assert said.startswith("cluster cpu: `scaling_setspeed` was changed;")


@KERNELS
def test_other_limits_are_noticed_and_left(tmp_path: Path, modern: bool) -> None:
    policy = limited(rpi4())
    kernel, board = Kernel(tmp_path, policy, modern=modern), cluster(policy)
    governor = SysfsGovernor(kernel, (board,))
    governor.set(board.states[4])
    kernel.store(f"{policy.folder}/scaling_min_freq", "1100000")
    kernel.store(f"{policy.folder}/scaling_max_freq", "1300000")
    said = run(governor, *board.states)
    assert said == [
        "cluster cpu: its limits were changed (limits 1100 MHz to 1300 MHz); "
        "its clock is left alone from now on"
    ]
    governor.restore()
    assert (policy.low, policy.high) == (1_100_000, 1_300_000)


def test_a_cap_from_outside_leaves_no_lower_limit_of_ours(tmp_path: Path) -> None:
    policy = limited(rpi4())
    kernel, board = Kernel(tmp_path, policy), cluster(policy)
    governor = SysfsGovernor(kernel, (board,))
    governor.set(board.states[4])
    kernel.store(f"{policy.folder}/scaling_max_freq", "900000")
    run(governor, board.states[0])
    governor.restore()
    assert (policy.low, policy.high) == (600_000, 900_000)


@WAYS
@KERNELS
def test_heat_is_no_other_process(tmp_path: Path, way: Way, modern: bool) -> None:
    policy = way(rpi4())
    kernel, board = Kernel(tmp_path, policy, modern=modern), cluster(policy)
    before = settings(tmp_path)
    governor = SysfsGovernor(kernel, (board,))
    governor.set(board.states[4])
    kernel.heat(policy, 1_000_000)
    assert run(governor, board.states[1]) == [] and policy.clock == 750_000
    said = run(governor, board.states[3], board.states[1], board.states[3])
    assert said == ["cluster cpu: 1200 MHz is not reached (limits 1000 MHz to 1000 MHz)"] or (
        way is not limited
        and said == ["cluster cpu: 1200 MHz is not reached (limits 600 MHz to 1000 MHz)"]
    )
    assert governor.current is None
    kernel.heat(policy, 1 << 30)
    assert run(governor, board.states[4]) == [] and governor.current == board.states[4]
    governor.set(board.states[3])
    kernel.heat(policy, 900_000)
    governor.restore()
    kernel.heat(policy, 1 << 30)
    after = {name: text for name, text in settings(tmp_path).items() if "thermal" not in name}
    assert after == before


def test_limits_are_not_taken_from_a_hot_machine(tmp_path: Path) -> None:
    policy = limited(rpi4())
    kernel, board = Kernel(tmp_path, policy), cluster(policy)
    kernel.heat(policy, 1_000_000)
    governor = SysfsGovernor(kernel, (board,))
    (said,) = run(governor, board.states[0])
    assert "heat holds clocks down" in said
    governor.restore()
    assert kernel.writes == []


ACTIONS = st.sampled_from(
    [*range(5), "governor", "limit", "heat", "cool", "deny", "allow", "sleep", "wake", "restore"]
)


@pytest.mark.parametrize("modern", [True, False])
@pytest.mark.parametrize("way", [lambda policy: policy, limited], ids=["speed", "limits"])
@hypothesis_settings(max_examples=40, deadline=None)
@given(actions=st.lists(ACTIONS, max_size=12))
def test_whatever_happens_nothing_raises_and_what_is_ours_goes_back(
    way: Way, modern: bool, actions: list[int | str]
) -> None:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.environ["XDG_STATE_HOME"] = folder + "/state"
        policy = way(rpi4())
        kernel, board = Kernel(Path(folder), policy, modern=modern), cluster(policy)
        found = settings(Path(folder))
        governor = SysfsGovernor(kernel, (board,))
        foreign = {"governor", "limit"} & set(actions)
        for action in actions:
            if isinstance(action, int):
                governor.set(board.states[action])
            elif action == "governor" and policy.online:
                kernel.store(f"{policy.folder}/scaling_governor", "performance")
            elif action == "limit" and policy.online:
                policy.high = 1_100_000
                kernel.show()
            elif action in ("heat", "cool"):
                kernel.heat(policy, 1_000_000 if action == "heat" else 1 << 30)
            elif action in ("deny", "allow"):
                kernel.denied = [".*"] if action == "deny" else []
            elif action in ("sleep", "wake"):
                policy.online = action == "wake"
            elif action == "restore":
                governor.restore()
        kernel.denied, policy.online = [], True
        kernel.heat(policy, 1 << 30)
        governor.restore()
        open_governor((board,), kernel)  # what could not be put back at its time
        if "governor" in foreign:
            assert policy.governor in ("performance", "schedutil")
        if foreign:
            assert policy.governor != "userspace"
            assert policy.low <= policy.table[0]
        else:
            after = settings(Path(folder))
            assert {name: after[name] for name in found} == found


# The journal.


def crashed(kernel: Kernel, board: Cluster) -> None:
    """A governor that set a clock and was killed together with its watchdog."""
    governor = SysfsGovernor(kernel, (board,))
    governor.set(board.states[0])
    assert governor._journal is not None
    governor._journal.release()
    governor._forget()


@WAYS
def test_the_next_start_restores(tmp_path: Path, way: Way) -> None:
    policy = way(rpi4())
    kernel, board = Kernel(tmp_path, policy), cluster(policy)
    before = settings(tmp_path)
    crashed(kernel, board)
    assert settings(tmp_path) != before
    with SysfsGovernor(kernel, (board,)) as governor:
        assert settings(tmp_path) == before
        governor.set(board.states[1])
    assert settings(tmp_path) == before


def test_after_a_reboot_the_journal_is_void(tmp_path: Path) -> None:
    policy = rpi4()
    kernel, board = Kernel(tmp_path, policy), cluster(policy)
    crashed(kernel, board)
    make_tree(tmp_path, boot="boot-2")
    SysfsGovernor(kernel, (board,))
    assert policy.governor == "userspace"


def journal_of(kernel: Kernel) -> Path:
    found = Journal.find(kernel.identity)
    assert found is not None
    return found.path


def test_the_journal_is_for_its_owner_s_eyes(tmp_path: Path) -> None:
    policy = rpi4()
    kernel, board = Kernel(tmp_path, policy), cluster(policy)
    with SysfsGovernor(kernel, (board,)) as governor:
        governor.set(board.states[0])
        path = journal_of(kernel)
        assert path.stat().st_mode & 0o777 == 0o600
        domains = json.loads(path.read_text())["domains"]
        assert domains[0]["before"] == {"scaling_governor": "schedutil"}
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    "change",
    [
        {"folder": "/etc"},
        {"folder": f"{CPUFREQ}/policy0/../../../../../../etc"},
        {"before": {"passwd": "x"}},
        {"before": {"scaling_governor": "a\nb"}},
        {"before": {"scaling_min_freq": "x", "scaling_max_freq": "1"}},
        {"tunables": {"/etc/passwd": "root"}},
        {"tunables": {f"{CPUFREQ}/../../../etc/passwd": "root"}},
        {"ours": None},
    ],
)
def test_a_journal_that_names_other_files_is_not_followed(
    tmp_path: Path, change: dict[str, object]
) -> None:
    policy = rpi4()
    kernel, board = Kernel(tmp_path, policy), cluster(policy)
    crashed(kernel, board)
    path = journal_of(kernel)
    record = json.loads(path.read_text())
    record["domains"][0].update(change)
    if isinstance(change.get("before"), dict):
        record["domains"][0]["ours"] = {name: [] for name in record["domains"][0]["before"]}
    path.write_text(json.dumps(record))
    del kernel.writes[:]
    SysfsGovernor(kernel, (board,))
    assert kernel.writes == []


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"\xff", b"null", b'{"format": 2}', b"[" * 99999]
)
def test_a_damaged_journal_is_none(tmp_path: Path, text: bytes) -> None:
    policy = rpi4()
    kernel, board = Kernel(tmp_path, policy), cluster(policy)
    journal_of(kernel).write_bytes(text)
    with SysfsGovernor(kernel, (board,)) as governor:
        governor.set(board.states[0])
        assert governor.current == board.states[0]


def test_two_governors_do_not_set_the_same_clocks(tmp_path: Path) -> None:
    policy = rpi4()
    kernel, board = Kernel(tmp_path, policy), cluster(policy)
    with SysfsGovernor(kernel, (board,)) as governor:
        governor.set(board.states[0])
        other, said = opened(kernel, board)
        assert other.reason == f"another process ({os.getpid()}) is setting clocks"
        assert len(said) == 1 and policy.clock == 600_000
    other, said = opened(kernel, board)
    assert said == [] and other.states == board.states


def test_a_folder_others_may_write_to_holds_no_journal(
    tmp_path: Path, state_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (state_folder / "eecompile").mkdir(mode=0o700)
    (state_folder / "eecompile").chmod(0o777)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    found = Journal.find("/")
    assert found is not None
    assert found.path == tmp_path / "home" / ".local" / "state" / "eecompile" / "clocks.json"


def test_a_link_in_the_journal_s_place_is_not_followed(state_folder: Path, tmp_path: Path) -> None:
    (state_folder / "eecompile").mkdir(mode=0o700)
    target = tmp_path / "target"
    target.write_text("precious")
    (state_folder / "eecompile" / "clocks.json").symlink_to(target)
    with pytest.raises(OSError) as caught:
        Journal("/", state_folder / "eecompile").take()
    assert caught.value.errno == errno.ELOOP and target.read_text() == "precious"


def test_a_journal_is_taken_once() -> None:
    first, second = Journal.find("/"), Journal.find("/")
    assert first is not None and second is not None
    first.take()
    with pytest.raises(Busy, match="another process is setting clocks"):
        second.take()
    first.release()
    assert second.take() is None
    second.release()


def test_a_forked_process_leaves_the_clocks_to_its_parent(tmp_path: Path) -> None:
    policy = rpi4()
    make_tree(tmp_path, policy)
    before, board = settings(tmp_path), cluster(policy)
    with SysfsGovernor(LocalFiles(tmp_path), (board,)) as governor:
        governor.set(board.states[0])
        set_ = settings(tmp_path)
        child = os.fork()
        if not child:
            governor.set(board.states[1])
            governor.restore()
            os._exit(0 if "forked" in governor.reason else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert settings(tmp_path) == set_
        governor.set(board.states[2])
        assert governor.current == board.states[2]
    assert settings(tmp_path) == before


def test_nothing_is_set_if_nobody_would_restore_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = rpi4()
    make_tree(tmp_path, policy)
    before, board = settings(tmp_path), cluster(policy)
    monkeypatch.setattr("eecompile.runtime.journal.journal_folders", lambda: [])
    monkeypatch.setattr("sys.executable", "/does/not/exist")
    governor = SysfsGovernor(LocalFiles(tmp_path), (board,))
    (said,) = run(governor, board.states[0])
    assert "nobody would restore clocks if this process were killed" in said
    assert settings(tmp_path) == before


def test_a_board_without_clocks_has_no_governor(tmp_path: Path) -> None:
    with pytest.raises(CannotSet, match="names no clocks"):
        SysfsGovernor(LocalFiles(tmp_path), ())


def test_a_process_with_many_open_files_restores_too(tmp_path: Path) -> None:
    make_tree(tmp_path, rpi4())
    before, board = settings(tmp_path), cluster(rpi4())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip("this system allows few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2000), hard))
    reader, writer = os.pipe()
    held = [reader, writer, *(os.dup(reader) for _ in range(1100))]
    try:
        with SysfsGovernor(LocalFiles(tmp_path), (board,)) as governor:
            governor.set(board.states[0])
            assert governor.current == board.states[0]
        assert settings(tmp_path) == before
    finally:
        for handle in held:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_governor_that_is_dropped_keeps_no_file_open(tmp_path: Path) -> None:
    make_tree(tmp_path, rpi4())

    def open_files() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    for _ in range(3):
        with SysfsGovernor(LocalFiles(tmp_path), (cluster(rpi4()),)) as governor:
            governor.set(governor.states[0])
    del governor
    assert open_files() == before

"""What doctor says of clocks and meters, and how to be allowed to use them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from eecompile.doctor.finding import Finding
from eecompile.doctor.hardware import Access, examine_hardware
from eecompile.hardware import Machine
from eecompile.runtime.sysfs import LocalFiles
from tests.boards.trees import DESKTOP, RK3399, grow, live, policy, rk3399_dts

ARM = Machine("host", "aarch64-linux-gnu")


def everything(path: str, mode: int) -> bool:
    return True


def reading(path: str, mode: int) -> bool:
    return mode == os.R_OK


def nothing(path: str, mode: int) -> bool:
    return False


def found(root: Path, files: Mapping[str, str | bytes], access: Access) -> dict[str, Finding]:
    findings = examine_hardware(LocalFiles(grow(root, files)), ARM, access)
    return {finding.what: finding for finding in findings}


def test_clocks_that_can_be_set(tmp_path: Path) -> None:
    control = found(tmp_path, RK3399, everything)["frequency control"]
    assert control.ok and not control.remedy
    assert control.found == (
        "big: 2 cortex-a72, 408 MHz to 1.8 GHz (8 clocks); "
        "little: 4 cortex-a53, 408 MHz to 1.416 GHz (6 clocks); governor ondemand; "
        "clocks can be set"
    )


def test_without_permission_the_remedy_is_lines_to_copy(tmp_path: Path) -> None:
    control = found(tmp_path, RK3399, reading)["frequency control"]
    assert not control.ok and not control.needed
    assert "clocks can be seen and not set" in control.found
    assert control.remedy.splitlines() == [
        "sudo groupadd -f eecompile && sudo usermod -aG eecompile $USER",
        "sudo tee /etc/udev/rules.d/90-eecompile-clocks.rules <<'END'",
        'SUBSYSTEM=="cpu", ACTION=="add", RUN+="/bin/sh -c \'cd /sys/devices/system/cpu/cpufreq && '
        "chgrp eecompile policy*/scaling_governor policy*/scaling_setspeed "
        "policy*/scaling_min_freq policy*/scaling_max_freq; chmod g+w policy*/scaling_governor "
        "policy*/scaling_setspeed policy*/scaling_min_freq policy*/scaling_max_freq'\"",
        "END",
        "sudo udevadm control --reload && sudo udevadm trigger --action=add --subsystem-match=cpu",
        "then log in again; the program itself never needs root",
    ]


def test_one_policy_that_may_not_be_set_is_enough_to_say_so(tmp_path: Path) -> None:
    def first_only(path: str, mode: int) -> bool:
        return mode == os.R_OK or "policy0" in path

    assert not found(tmp_path, RK3399, first_only)["frequency control"].ok


def test_setting_the_speed_alone_is_enough_where_it_is_offered(tmp_path: Path) -> None:
    def speed_only(path: str, mode: int) -> bool:
        return path.endswith(("scaling_governor", "scaling_setspeed"))

    assert found(tmp_path, RK3399, speed_only)["frequency control"].ok
    assert not found(tmp_path / "pc", DESKTOP, speed_only)["frequency control"].ok


def test_without_cpufreq_nothing_can_be_done(tmp_path: Path) -> None:
    findings = found(tmp_path, {"/proc/cpuinfo": "cpu MHz : 2000.000\n"}, everything)
    control = findings["frequency control"]
    assert not control.ok and not control.remedy
    assert control.found.startswith("cpu: 1 CPU, 2 GHz; no cpufreq here")
    assert "clock scaling" not in findings and "turbo" not in findings


def test_clocks_that_move_are_a_warning(tmp_path: Path) -> None:
    scaling = found(tmp_path, RK3399, everything)["clock scaling"]
    assert scaling.warning and not scaling.ok
    assert "ondemand from 408 MHz to 1.8 GHz" in scaling.found
    assert scaling.remedy.startswith("echo performance | sudo tee ")
    steady = policy(0, "0", "600000 1500000", scaling_governor="performance")
    assert found(tmp_path / "a", steady, everything)["clock scaling"].ok
    pinned = policy(0, "0", "600000 1500000", scaling_min_freq="1500000")
    assert found(tmp_path / "b", pinned, everything)["clock scaling"].ok


def test_turbo_is_a_warning(tmp_path: Path) -> None:
    on = found(tmp_path, DESKTOP, everything)["turbo"]
    assert on.warning and on.remedy == (
        "echo 1 | sudo tee /sys/devices/system/cpu/intel_pstate/no_turbo"
    )
    off = {**DESKTOP, "/sys/devices/system/cpu/intel_pstate/no_turbo": "1"}
    assert found(tmp_path / "off", off, everything)["turbo"].ok
    boost = {**RK3399, "/sys/devices/system/cpu/cpufreq/boost": "1"}
    assert found(tmp_path / "boost", boost, everything)["turbo"].remedy == (
        "echo 0 | sudo tee /sys/devices/system/cpu/cpufreq/boost"
    )


def test_counters_that_may_be_read(tmp_path: Path) -> None:
    meters = found(tmp_path, DESKTOP, reading)["energy counters"]
    assert (meters.ok, meters.found, meters.remedy) == (True, "rapl package-0", "")


def test_counters_that_may_not_be_read(tmp_path: Path) -> None:
    meters = found(tmp_path, DESKTOP, nothing)["energy counters"]
    assert not meters.ok
    assert meters.found == "none may be read; not readable: rapl package-0"
    assert (
        'SUBSYSTEM=="powercap", KERNEL=="intel-rapl:*", ACTION=="add", '
        "RUN+=\"/bin/sh -c 'chgrp eecompile /sys%p/energy_uj; chmod 0440 /sys%p/energy_uj'\""
    ) in meters.remedy.splitlines()


def test_without_counters_energy_is_at_most_modelled(tmp_path: Path) -> None:
    assert found(tmp_path, RK3399, everything)["energy counters"].found == (
        "none found: no energy is measured, at most modelled"
    )


def test_powers_for_models_come_from_the_device_tree(tmp_path: Path) -> None:
    assert not found(tmp_path, RK3399, everything)["powers for models"].ok
    tree = {**RK3399, **live(rk3399_dts())}
    powers = found(tmp_path / "tree", tree, everything)["powers for models"]
    assert (powers.ok, powers.found) == (True, "known for big, little")

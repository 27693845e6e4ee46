"""Clocks and meters of this machine: what is there, what may be used, and how to be allowed to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from eecompile.board import Board
from eecompile.boards.device_tree import live_device_tree
from eecompile.boards.host import board_of
from eecompile.boards.report import cluster_in_words
from eecompile.doctor.finding import Finding
from eecompile.figures import hertz
from eecompile.hardware import Machine
from eecompile.runtime.clock_domains import CPUFREQ
from eecompile.runtime.sysfs import LocalFiles, matching, read_number, read_text

__all__ = ["examine_hardware"]

#: What setting a clock writes to.
_SETTINGS = ("scaling_governor", "scaling_setspeed", "scaling_min_freq", "scaling_max_freq")
#: Governors that leave the clock where it is.
_STEADY = ("performance", "powersave", "userspace")
_GROUP = "sudo groupadd -f eecompile && sudo usermod -aG eecompile $USER"
_AGAIN = "then log in again; the program itself never needs root"

#: (path, os.R_OK or os.W_OK) -> whether this process may.
Access = Callable[[str, int], bool]


def examine_hardware(
    files: LocalFiles, base: Machine, access: Access = os.access
) -> Iterator[Finding]:
    """Frequency control, what moves clocks meanwhile, energy counters, and powers for models.

    Args:
        files: the system's.
        base: its processor.
        access: as `os.access`.
    """
    board = board_of(files, base, live_device_tree(files), [])
    policies = list(matching(files, CPUFREQ, "policy"))
    yield _control(files, board, policies, access)
    if policies:
        yield _scaling(files, policies)
    yield from _turbo(files)
    yield _meters(files, board, access)
    yield _powers(board)


def _control(files: LocalFiles, board: Board, policies: list[str], access: Access) -> Finding:
    what = "frequency control"
    clocks = "; ".join(f"{c.name}: {cluster_in_words(c)}" for c in board.clusters)
    if not policies:
        found = f"{clocks}; no cpufreq here: all is measured at whatever clock runs"
        return Finding(what, False, found)
    governors = ", ".join(sorted({_governor(files, policy) for policy in policies}))
    told = f"{clocks}; governor {governors}"
    if all(_may_set(files, policy, access) for policy in policies):
        return Finding(what, True, f"{told}; clocks can be set")
    found = f"{told}; clocks can be seen and not set: the kernel goes on choosing them"
    settings = " ".join(f"policy*/{name}" for name in _SETTINGS)
    rule = (
        'SUBSYSTEM=="cpu", ACTION=="add", '
        f"RUN+=\"/bin/sh -c 'cd {CPUFREQ} && chgrp eecompile {settings}; chmod g+w {settings}'\""
    )
    return Finding(what, False, found, _by_rule("clocks", rule, "cpu"))


def _by_rule(name: str, rule: str, subsystem: str) -> str:
    """Commands that let the members of a group do what a udev rule says."""
    return "\n".join(
        (
            _GROUP,
            f"sudo tee /etc/udev/rules.d/90-eecompile-{name}.rules <<'END'",
            rule,
            "END",
            "sudo udevadm control --reload && "
            f"sudo udevadm trigger --action=add --subsystem-match={subsystem}",
            _AGAIN,
        )
    )


def _governor(files: LocalFiles, policy: str) -> str:
    return read_text(files, f"{policy}/scaling_governor") or "unknown"


def _may_set(files: LocalFiles, policy: str, access: Access) -> bool:
    """By its limits, or by the userspace governor: as the runtime's governor does."""
    limits = ("scaling_min_freq", "scaling_max_freq")
    speed = ("scaling_governor", "scaling_setspeed")
    offered = (read_text(files, f"{policy}/scaling_available_governors") or "").split()
    ways = (limits, speed) if "userspace" in offered else (limits,)
    return any(all(access(files.path(f"{policy}/{name}"), os.W_OK) for name in way) for way in ways)


def _scaling(files: LocalFiles, policies: list[str]) -> Finding:
    """Whether clocks move while something is measured, as other benchmarks warn."""
    moving = []
    for policy in policies:
        low, high = (read_number(files, f"{policy}/scaling_{end}_freq") for end in ("min", "max"))
        governor = _governor(files, policy)
        if governor not in _STEADY and low is not None and high is not None and low < high:
            moving.append(f"{governor} from {hertz(low * 1e3)} to {hertz(high * 1e3)}")
    if not moving:
        return Finding("clock scaling", True, "clocks stand still")
    found = f"clocks move ({'; '.join(dict.fromkeys(moving))}): times at the current clock vary"
    remedy = f"echo performance | sudo tee {CPUFREQ}/policy*/scaling_governor"
    return Finding("clock scaling", False, found, remedy, warning=True)


def _turbo(files: LocalFiles) -> Iterator[Finding]:
    for path, on in (
        ("/sys/devices/system/cpu/intel_pstate/no_turbo", 0),
        (f"{CPUFREQ}/boost", 1),
    ):
        value = read_number(files, path)
        if value is None:
            continue
        if value != on:
            yield Finding("turbo", True, f"off ({path})")
        else:
            found = f"on ({path}): the highest clock depends on load and heat"
            remedy = f"echo {1 - on} | sudo tee {path}"
            yield Finding("turbo", False, found, remedy, warning=True)


def _meters(files: LocalFiles, board: Board, access: Access) -> Finding:
    what = "energy counters"
    if not board.sensors:
        return Finding(what, False, "none found: no energy is measured, at most modelled")
    usable: list[str] = []
    refused: list[str] = []
    for sensor in board.sensors:
        name = f"{sensor.kind} {sensor.name} {sensor.label}".rstrip()
        path = board.sources[sensor.key]
        (usable if access(files.path(path), os.R_OK) else refused).append(name)
    told = ", ".join(usable) or "none may be read"
    if not refused:
        return Finding(what, True, told)
    rule = (
        'SUBSYSTEM=="powercap", KERNEL=="intel-rapl:*", ACTION=="add", '
        "RUN+=\"/bin/sh -c 'chgrp eecompile /sys%p/energy_uj; chmod 0440 /sys%p/energy_uj'\""
    )
    remedy = _by_rule("energy", rule, "powercap") if "rapl" in " ".join(refused) else ""
    return Finding(what, bool(usable), f"{told}; not readable: {', '.join(refused)}", remedy)


def _powers(board: Board) -> Finding:
    """Whether energies can be modelled for this machine."""
    known = [c.name for c in board.clusters if c.core_power_w(c.states[-1]) is not None]
    if len(known) == len(board.clusters):
        return Finding("powers for models", True, f"known for {', '.join(known)}")
    found = "nothing tells what this machine's cores draw: their energy is not modelled"
    remedy = (
        "eecompile targets import -o mine.toml\n"
        "fill in dynamic_power_coefficient and voltages, or core_power_w, and name the file: "
        'target host { board "mine.toml" }'
    )
    return Finding("powers for models", False, found, remedy)

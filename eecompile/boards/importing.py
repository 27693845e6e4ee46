"""`eecompile targets import`: a board file from a running system, or from a device tree.

Every number names the file or node it was read from; what nothing tells is left out, and said with
what to do about it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eecompile.board import Board, Cluster
from eecompile.boards.clusters import CLUSTER_NUMBERS
from eecompile.boards.core_kinds import kind_named
from eecompile.boards.device_tree import DeviceTree, read_device_tree
from eecompile.boards.entries import Quantity
from eecompile.boards.file import MACHINE_NUMBERS, parse_board
from eecompile.boards.host import (
    board_of,
    cpus_in_words,
    device_tree_of,
    filled,
    named,
)
from eecompile.boards.host_processor import machine_of
from eecompile.boards.text import board_text
from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.hardware import Machine, processor_name
from eecompile.runtime.sysfs import LocalFiles, SysFiles, read_text

__all__ = ["Imported", "import_device_tree", "import_system", "read_dtb"]

#: CPU nodes' names for 64-bit ARM cores of no kind that is known here.
_ARMV8 = re.compile(r"arm,armv8|arm,neoverse-|qcom,kryo|nvidia,tegra\d+-denver|apple,")
_LATENCY = "transition_latency_s"
_NEON = "AArch64 Advanced SIMD: 128-bit registers"


@dataclass(frozen=True)
class Imported:
    """A board file that was made.

    Attributes:
        board: what it describes.
        text: its text; `board` is what `parse_board` reads from it.
        missing: what could not be found out, one line each, with what to do; comments of the text.
    """

    board: Board
    text: str
    missing: tuple[str, ...]


def read_dtb(path: Path) -> bytes:
    """A device tree's file.

    Raises:
        CompileErrors: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(64 << 20)
    except OSError as error:
        message = f"Cannot read `{path}`: {error.strerror or error}"
        raise CompileErrors([Diagnostic("bad-board", message, path=str(path))]) from error


def import_system(files: SysFiles | None = None, name: str = "imported") -> Imported:
    """The board of a running system.

    Args:
        files: its kernel's files; None for this machine's.
        name: of the board.

    Raises:
        CompileErrors: nothing tells what processor it has.
    """
    files = LocalFiles() if files is None else files
    notes: list[str] = []
    tree = device_tree_of(files, notes)
    base = machine_of(files, name)
    if base is None and tree is not None:
        base = _machine_of_tree(tree, tree.clusters([]), name)
    if base is None:
        message = "Nothing tells what processor this is: no /proc/cpuinfo, and no device tree"
        help = "run it on the board itself, or give its device tree with --dtb"
        raise CompileErrors([Diagnostic("bad-board", message, help=help)])
    board = board_of(files, base, tree, notes)
    base = _known_core(base, board.clusters)
    cpuinfo = read_text(files, "/proc/cpuinfo") or ""
    product = read_text(files, "/sys/devices/virtual/dmi/id/product_name") or ""
    about = (tree.model if tree else "") or processor_name(cpuinfo) or product
    board = replace(board, machine=base, description=about)
    return _imported(board, notes)


def import_device_tree(blob: bytes, path: str, name: str = "imported") -> Imported:
    """The board a device tree describes; `path` is the file's, for sources.

    Raises:
        CompileErrors: the blob is no device tree, or its processors are none of 64-bit ARM.
        ToolError: the library that reads device trees is not installed.
    """
    tree = read_device_tree(blob, path)
    notes: list[str] = []
    clusters = tree.clusters(notes)
    machine = _machine_of_tree(tree, clusters, name)
    notes.append(
        "CPUs are numbered in the order of their nodes; Linux calls the one it boots on 0: compare "
        "with /sys/devices/system/cpu/cpufreq/policy*/related_cpus on the board"
    )
    ready = named([filled(cluster, machine) for cluster in clusters if cluster.states])
    board = Board(name, machine, tuple(ready), description=tree.model)
    return _imported(board, notes, [cluster for cluster in clusters if not cluster.states])


def _machine_of_tree(tree: DeviceTree, clusters: Sequence[Cluster], name: str) -> Machine:
    """What code is generated for: the core of the fastest cluster.

    Raises:
        CompileErrors: none of the tree's CPUs is of 64-bit ARM.
    """

    def peak(cluster: Cluster) -> float:
        clock = cluster.states[-1].frequency_hz if cluster.states else None
        return cluster.fma_per_cycle * (clock or 1.0)

    known = [c for c in clusters if c.core or _ARMV8.match(tree.cpus[c.cpus[0]].compatible)]
    if not known:
        names = ", ".join(f"`{cpu.compatible}`" for cpu in tree.cpus[:1]) or "none"
        message = f"No 64-bit ARM processor in the device tree `{tree.name}`; found {names}"
        help = "code is built for 64-bit ARM and x86; give the device tree of such a board"
        raise CompileErrors([Diagnostic("bad-board", message, path=tree.name, help=help)])
    main = max(known, key=peak)
    cpu = tree.cpus[main.cpus[0]]
    sources = {"lanes": _NEON, "registers": "AArch64 has V0 to V31"}
    sources["cores"] = f"{tree.name}: CPU nodes of /cpus"
    base = Machine(
        name, "aarch64-linux-gnu", "generic", ("fp-armv8", "neon"), registers=32,
        cores=len(tree.cpus),
    )  # fmt: skip
    for key, size in (("l1_bytes", cpu.l1_bytes), ("l2_bytes", cpu.l2_bytes)):
        if size:
            base = replace(base, **{key: size})  # type: ignore[arg-type]
            sources[key] = f"{tree.name}: caches of {cpu.path}"
    return _known_core(replace(base, sources=sources), [main])


def _known_core(base: Machine, clusters: Sequence[Cluster]) -> Machine:
    """A machine with what is known of the kind of its fastest cluster."""
    kind = kind_named(clusters[0].core) if clusters else None
    if kind is None:
        return base
    sources = dict(base.sources)
    each = base.fma_per_cycle
    if kind.fma_per_cycle:
        each = max(1, int(kind.fma_per_cycle))
        up = "" if each == kind.fma_per_cycle else "; 1 is the least there is for choosing kernels"
        sources["fma_per_cycle"] = kind.source + up
    latency = kind.fma_latency or base.fma_latency
    if kind.fma_latency:
        sources["fma_latency"] = kind.latency_source
    return replace(base, mcpu=kind.mcpu, fma_per_cycle=each, fma_latency=latency, sources=sources)


def _imported(board: Board, notes: list[str], without: Sequence[Cluster] = ()) -> Imported:
    """The file of a board; clusters without clocks are commented out in it."""
    board = replace(
        board,
        machine=replace(
            board.machine,
            description=board.description,
            sources=_in_range(board.machine, "[machine]", MACHINE_NUMBERS, notes),
        ),
        clusters=tuple(
            _sensible(cluster, notes)
            for cluster in board.clusters
            if all(state.frequency_hz for state in cluster.states)
        ),
    )
    if board.clusters:
        cpus = sum(len(cluster.cpus) for cluster in board.clusters)
        board = replace(board, machine=_with_cores(board.machine, cpus, not without))
    missing = (*notes, *_missing(board))
    comments = ["Made by `eecompile targets import`. What is missing, and what was left out:"]
    comments += [f"- {line}" for line in missing]
    text = board_text(board, comments)
    for cluster in without:
        text += "\n" + "".join(f"# {line}\n" for line in _template(cluster))
    return Imported(parse_board(text, board.name, f"{board.name}.toml"), text, missing)


def _with_cores(machine: Machine, cpus: int, all_there: bool) -> Machine:
    """A machine whose cores are those of its clusters, or not told where some are not there."""
    sources = dict(machine.sources)
    if not all_there:
        sources.pop("cores", None)
        return replace(machine, sources=sources)
    sources.setdefault("cores", "CPUs of the clusters")
    return replace(machine, cores=cpus, sources=sources)


def _sensible(cluster: Cluster, notes: list[str]) -> Cluster:
    """A cluster whose powers and latency are in range, or None."""
    sources = _in_range(cluster, cluster.name, CLUSTER_NUMBERS, notes)
    powered, timed = (key in sources for key in ("dynamic_power_coefficient", _LATENCY))
    return replace(
        cluster,
        sources=sources,
        capacitance_f=cluster.capacitance_f if powered else None,
        transition_latency_s=cluster.transition_latency_s if timed else None,
    )


def _in_range(
    of: Machine | Cluster, what: str, ranges: dict[str, Quantity], notes: list[str]
) -> dict[str, str]:
    """Sources of what makes sense: without a source a number is not written."""
    sources = dict(of.sources)
    for key, quantity in ranges.items():
        value = getattr(of, key, None)
        if key == "dynamic_power_coefficient" and isinstance(of, Cluster):
            value = None if of.capacitance_f is None else of.capacitance_f * 1e12
        if key in sources and value is not None and value not in quantity:
            notes.append(f"{what}: {key} {value:g} left out, expected {quantity.allowed}")
            del sources[key]
    return sources


def _missing(board: Board) -> list[str]:
    """What a model would need and the board does not have, and what to do."""
    found = []
    machine = board.machine
    if not machine.mcpu:
        found.append("mcpu: found where code is built; name LLVM's CPU to build elsewhere")
    elif machine.mcpu == "generic":
        found.append("mcpu: a core of a kind that is not known here; give LLVM's name of it")
    for key in ("fma_per_cycle", "fma_latency", "l1_bytes", "l2_bytes"):
        if key not in machine.sources:
            value = getattr(Machine("", machine.triple), key)
            found.append(f"[machine] {key}: nothing tells it; {value} is taken where it is absent")
    if not board.clusters:
        found.append(
            "[[cluster]]: no clocks, so nothing can be modelled; run `eecompile targets import` "
            "on the board itself, or write them from its documentation"
        )
    for cluster in board.clusters:
        found += _missing_of(cluster)
    for key, why in (
        ("memory_bandwidth", "bytes per second one core reads; no kernel tells it, measure it"),
        ("idle_power_w", "idle power until a deadline is not counted without it; measure it"),
    ):
        found.append(f"[board] {key}: {why}")
    if len(board.clusters) > 1:
        found.append("[board] migration_latency_s: without it a sample stays on its cluster")
    return found


def _missing_of(cluster: Cluster) -> list[str]:
    found = []
    top = cluster.states[-1]
    if cluster.core_power_w(top) is None:
        voltage = "" if top.voltage_v is not None else " and voltages"
        found.append(
            f"{cluster.name}: no power of its cores, so no energy can be modelled; give "
            f"dynamic_power_coefficient{voltage}, or core_power_w, from a device tree or a meter"
        )
    if _LATENCY not in cluster.sources:
        found.append(f"{cluster.name}: transition_latency_s is not known; measure it")
    if len(cluster.states) == 1:
        found.append(f"{cluster.name}: one clock only, so there is nothing to choose")
    return found


def _template(cluster: Cluster) -> list[str]:
    return [
        f"CPUs {cpus_in_words(cluster.cpus)} have no clocks in the device tree. Fill in:",
        "[[cluster]]",
        'name = "cpu"',
        f'core = "{cluster.core}"',
        f'cpus = {{ value = {list(cluster.cpus)}, source = "{cluster.sources["cpus"]}" }}',
        'states = { value = [[HERTZ, VOLT]], source = "" }',
    ]

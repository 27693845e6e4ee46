"""Device trees: which CPUs a board has, at which clocks and voltages they run.

Read from a blob (a `.dtb` file, or ``/sys/firmware/fdt``), or from the folders in which a running
system shows its own. Names follow the bindings of Linux's Documentation/devicetree/bindings:
cpus.yaml, opp/opp-v2.yaml, cpu-capacity.txt.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from eecompile.board import Cluster, DvfsState
from eecompile.boards.core_kinds import CoreKind, kind_of_compatible
from eecompile.diagnostics import CompileErrors, Diagnostic, missing_package
from eecompile.runtime.sysfs import SysFiles

__all__ = ["CpuNode", "DeviceTree", "Opp", "live_device_tree", "read_device_tree"]

#: Where Linux shows the device tree it runs on, for everybody to read.
_LIVE = "/sys/firmware/devicetree/base"
_DEEPEST = 8

#: Source: Linux Documentation/arch/arm64/booting.rst: a device tree "must not exceed 2 megabytes".
_MOST_BYTES = 2 << 20


@dataclass(frozen=True)
class Opp:
    """One row of an operating-point table.

    Attributes:
        frequency_hz: the clock.
        voltage_v: None where the row gives none.
        variants: names of the alternatives `voltage_v` is the highest of (speed bins); empty
            where there is one voltage.
        latency_s: of changing to it; None where the row gives none.
        turbo: whether the row is for short boosts only.
        special: whether only some chips of the kind can run at it (``opp-supported-hw``).
    """

    frequency_hz: float
    voltage_v: float | None = None
    variants: tuple[str, ...] = ()
    latency_s: float | None = None
    turbo: bool = False
    special: bool = False


@dataclass(frozen=True)
class CpuNode:
    """One CPU of a device tree.

    Attributes:
        path: its node.
        kind: of its core; None where it is not known here.
        domain: what CPUs that share a clock have in common.
        table: path of its operating points; empty where there is none.
        opps: its operating points, by rising frequency.
        coefficient: ``dynamic-power-coefficient``, uW/MHz/V^2.
        capacity: ``capacity-dmips-mhz``.
        l1_bytes, l2_bytes, last_bytes: first and second data cache, and the last before memory.
    """

    path: str
    compatible: str
    kind: CoreKind | None
    domain: tuple[Any, ...]
    table: str = ""
    opps: tuple[Opp, ...] = ()
    coefficient: int | None = None
    capacity: int | None = None
    l1_bytes: int | None = None
    l2_bytes: int | None = None
    last_bytes: int | None = None


@dataclass(frozen=True)
class _Node:
    path: str
    properties: dict[str, bytes]
    children: dict[str, _Node] = field(default_factory=dict)

    def words(self, name: str) -> tuple[int, ...]:
        """A property's 32-bit numbers; empty where it is absent or no list of them."""
        data = self.properties.get(name, b"")
        return struct.unpack(f">{len(data) // 4}I", data) if len(data) % 4 == 0 else ()

    def word(self, name: str) -> int | None:
        """The first number of a property."""
        return next(iter(self.words(name)), None)

    def strings(self, name: str) -> tuple[str, ...]:
        """A property's texts; empty where it is absent."""
        text = self.properties.get(name, b"").decode("ascii", errors="replace")
        return tuple(part for part in text.split("\0") if part)


class DeviceTree:
    """The part of a device tree that tells of CPUs.

    Attributes:
        name: of the file it is from, for sources.
        model: what the board calls itself.
        compatible: the board's names, the most special first.
        cpus: CPUs in the order of their nodes. Linux numbers them so, except that the one it
            boots on, mostly the first, is number 0.
    """

    def __init__(self, root: _Node, name: str) -> None:
        self.name = name
        self.model = next(iter(root.strings("model")), "")
        self.compatible = root.strings("compatible")
        self._by_phandle = {
            phandle: node
            for node in _all(root)
            for phandle in node.words("phandle") or node.words("linux,phandle")
        }
        cpus = root.children.get("cpus", _Node("/cpus", {}))
        self._groups = _cpu_map(cpus.children.get("cpu-map"))
        self.cpus = tuple(self._cpu(node) for node in cpus.children.values() if _is_cpu(node))

    def _cpu(self, node: _Node) -> CpuNode:
        compatible = next(iter(node.strings("compatible")), "")
        kinds = (kind_of_compatible(text) for text in node.strings("compatible"))
        reference = node.word("operating-points-v2")
        table = None if reference is None else self._by_phandle.get(reference)
        caches = list(self._caches(node))
        return CpuNode(
            node.path,
            compatible,
            next((kind for kind in kinds if kind), None),
            self._domain(node, compatible),
            table.path if table else f"{node.path}/operating-points",
            _opps(table) if table else _legacy_opps(node),
            node.word("dynamic-power-coefficient"),
            node.word("capacity-dmips-mhz"),
            node.word("d-cache-size"),
            caches[0] if caches else None,
            caches[-1] if caches else None,
        )

    def _domain(self, node: _Node, compatible: str) -> tuple[Any, ...]:
        """What CPUs on one clock have in common; their place in ``cpu-map`` where nothing says."""
        told = tuple(
            node.words(name)
            for name in ("operating-points-v2", "qcom,freq-domain", "performance-domains")
        )
        group = () if any(told) else self._groups.get(node.word("phandle") or -1, ())
        return (compatible, told, group)

    def _caches(self, node: _Node) -> Iterator[int]:
        """Sizes of the caches after the first, nearest first."""
        seen = set()
        while (phandle := node.word("next-level-cache")) in self._by_phandle:
            if phandle in seen:  # a cache that is its own next one
                return
            seen.add(phandle)
            node = self._by_phandle[phandle]
            if size := node.word("cache-size"):
                yield size

    def clusters(self, notes: list[str]) -> list[Cluster]:
        """CPUs by clock, without names; what is missing or left out is appended to `notes`."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for number, cpu in enumerate(self.cpus):
            groups.setdefault(cpu.domain, []).append(number)
        return [self._cluster(tuple(numbers), notes) for numbers in groups.values()]

    def _cluster(self, numbers: tuple[int, ...], notes: list[str]) -> Cluster:
        cpu = self.cpus[numbers[0]]
        states, source = self._states(cpu, numbers, notes)
        sources = {"cpus": f"{self.name}: {cpu.path} and its siblings, in the order of the nodes"}
        if states:
            sources["states"] = source
        given: dict[str, Any] = {}
        if cpu.coefficient:
            given["capacitance_f"] = cpu.coefficient / 1e12
            sources["dynamic_power_coefficient"] = (
                f"{self.name}: {cpu.path}/dynamic-power-coefficient"
            )
        if latency := max((opp.latency_s or 0.0 for opp in cpu.opps), default=0.0):
            given["transition_latency_s"] = latency
            sources["transition_latency_s"] = f"{self.name}: {cpu.table}, clock-latency-ns"
        if cpu.last_bytes:
            given["l2_bytes"] = cpu.last_bytes
            sources["l2_bytes"] = f"{self.name}: cache-size of the last cache of {cpu.path}"
        if cpu.kind and cpu.kind.fma_per_cycle:
            given["fma_per_cycle"] = cpu.kind.fma_per_cycle
            sources["fma_per_cycle"] = cpu.kind.source
            sources["lanes"] = "AArch64 Advanced SIMD: 128-bit registers"
        core = cpu.kind.name if cpu.kind else ""
        return Cluster("", core, numbers, states, sources=sources, **given)

    def _states(
        self, cpu: CpuNode, numbers: tuple[int, ...], notes: list[str]
    ) -> tuple[tuple[DvfsState, ...], str]:
        """Clocks by rising frequency with their voltages if those make sense, and their source."""
        where = f"CPUs {', '.join(map(str, numbers))}"
        kept = [opp for opp in cpu.opps if not opp.turbo and 1e7 <= opp.frequency_hz <= 1e10]
        if not cpu.opps:
            notes.append(f"{where}: the device tree lists no clocks")
        if turbo := [opp for opp in cpu.opps if opp.turbo]:
            clocks = ", ".join(f"{opp.frequency_hz / 1e6:g}" for opp in turbo)
            notes.append(f"{where}: {clocks} MHz left out, for short boosts only (turbo-mode)")
        if len(kept) + len(turbo) < len(cpu.opps):
            notes.append(f"{where}: clocks below 10 MHz or above 10 GHz left out")
        if any(opp.special for opp in kept):
            notes.append(f"{where}: some clocks are for certain chips only (opp-supported-hw)")
        voltages = [opp.voltage_v for opp in kept]
        variants = sorted({name for opp in kept for name in opp.variants})
        if kept and None in voltages:
            notes.append(f"{where}: the device tree gives no voltages for them")
        elif not _plausible([voltage or 0.0 for voltage in voltages]):
            notes.append(f"{where}: voltages left out, they fall or are not from 0.3 to 3 V")
        else:
            states = (DvfsState("", opp.frequency_hz, opp.voltage_v) for opp in kept)
            best = f", the highest of {', '.join(variants)}" if variants else ""
            return tuple(states), f"{self.name}: {cpu.table}, opp-hz and opp-microvolt{best}"
        bare = (DvfsState("", opp.frequency_hz) for opp in kept)
        return tuple(bare), f"{self.name}: {cpu.table}, opp-hz"


def _plausible(voltages: list[float]) -> bool:
    return voltages == sorted(voltages) and all(0.3 <= voltage <= 3 for voltage in voltages)


def _all(node: _Node) -> Iterator[_Node]:
    nodes = [node]
    while nodes:
        node = nodes.pop()
        yield node
        nodes += node.children.values()


def _is_cpu(node: _Node) -> bool:
    """Whether a node is a CPU that can be used."""
    is_cpu = node.strings("device_type") == ("cpu",) or node.path.startswith("/cpus/cpu@")
    return is_cpu and not {"disabled", "fail"} & set(node.strings("status"))


def _cpu_map(node: _Node | None) -> dict[int, tuple[str, ...]]:
    """The node of ``cpu-map`` that a CPU is in, by its phandle."""
    if node is None:
        return {}
    return {
        phandle: (leaf.path.rpartition("/")[0],)
        for leaf in _all(node)
        for phandle in leaf.words("cpu")[:1]
    }


def _opps(table: _Node) -> tuple[Opp, ...]:
    """Rows of an ``operating-points-v2`` table; each clock once, with the highest voltage told."""
    found: dict[float, Opp] = {}
    for node in table.children.values():
        hertz = node.words("opp-hz")
        if len(hertz) < 2 or "disabled" in node.strings("status"):
            continue
        frequency = float((hertz[0] << 32) + hertz[1])
        voltage, variants = _voltage(node)
        latency = node.word("clock-latency-ns")
        before = found.get(frequency)
        if before and before.voltage_v is not None:
            voltage = max(voltage or 0.0, before.voltage_v)
        found[frequency] = Opp(
            frequency,
            voltage,
            variants,
            latency / 1e9 if latency else None,
            "turbo-mode" in node.properties,
            "opp-supported-hw" in node.properties,
        )
    return tuple(found[frequency] for frequency in sorted(found))


def _voltage(node: _Node) -> tuple[float | None, tuple[str, ...]]:
    """The target of the first supply; of alternatives only, the highest and their names."""
    if microvolts := node.words("opp-microvolt"):
        return microvolts[0] / 1e6, ()
    named = {
        name: words[0] / 1e6
        for name in node.properties
        if name.startswith("opp-microvolt-") and (words := node.words(name))
    }
    return (max(named.values()), tuple(sorted(named))) if named else (None, ())


def _legacy_opps(node: _Node) -> tuple[Opp, ...]:
    """``operating-points``: pairs of kHz and uV on the CPU itself."""
    words = node.words("operating-points")
    latency = node.word("clock-latency")
    seconds = latency / 1e9 if latency else None
    pairs = zip(words[::2], words[1::2], strict=False)
    rows = {khz * 1e3: Opp(khz * 1e3, uv / 1e6, latency_s=seconds) for khz, uv in pairs}
    return tuple(rows[frequency] for frequency in sorted(rows))


def read_device_tree(blob: bytes, path: str) -> DeviceTree:
    """The device tree of a blob; `path` is its file's.

    Raises:
        CompileErrors: it is no device tree.
        ToolError: the library that reads device trees is not installed.
    """
    try:
        from fdt import parse_dtb
    except ModuleNotFoundError as error:
        raise missing_package(error) or error from error
    problem = ""
    if len(blob) > _MOST_BYTES:
        problem = f"it has {len(blob)} bytes, device trees at most {_MOST_BYTES}"
    elif blob[:4] != b"\xd0\x0d\xfe\xed":
        problem = "it does not start with 0xd00dfeed"
    if not problem:
        try:
            root = parse_dtb(blob).root
            if root is not None:
                return DeviceTree(
                    _copied(root), PurePath(path).name if "/sys/" not in path else path
                )
            problem = "it has no nodes"
        except Exception as error:  # the library raises whatever a damaged blob runs into
            problem = f"it is damaged ({type(error).__name__}: {error})"
    message = f"`{path}` is no device tree: {problem}"
    help = "give a flattened device tree: /sys/firmware/fdt, or a .dtb file"
    raise CompileErrors([Diagnostic("bad-board", message, path=path, help=help)])


def live_device_tree(files: SysFiles) -> DeviceTree | None:
    """The device tree of a running system, of which only CPUs, caches and clocks are read.

    None where it shows none, as on x86.
    """
    try:
        names = files.names(_LIVE)
    except OSError:
        return None
    root = _Node("/", {})
    for name in names:
        if name in ("model", "compatible"):
            root.properties[name] = _content(files, f"{_LIVE}/{name}") or b""
        elif name == "cpus" or "opp" in name or "cache" in name:
            root.children[name] = _walked(files, f"/{name}", _DEEPEST)
    return DeviceTree(root, _LIVE)


def _walked(files: SysFiles, path: str, depth: int) -> _Node:
    """A node with its properties and what is below it; what cannot be read is left out."""
    node = _Node(path, {})
    try:
        names = files.names(_LIVE + path) if depth else []
    except OSError:
        names = []
    for name in names:
        data = _content(files, f"{_LIVE}{path}/{name}")
        if data is None:
            node.children[name] = _walked(files, f"{path}/{name}", depth - 1)
        else:
            node.properties[name] = data
    return node


def _content(files: SysFiles, path: str) -> bytes | None:
    """A property; None for a folder, which is a node."""
    try:
        return files.read_bytes(path)
    except IsADirectoryError:
        return None
    except OSError:
        return b""


def _copied(root: Any) -> _Node:
    """Our own nodes with raw values: the library guesses which numbers are texts."""
    top = _Node("/", _properties(root))
    nodes = [(root, top, "")]
    while nodes:
        node, copy, path = nodes.pop()
        for child in node.nodes:
            inner = _Node(f"{path}/{child.name}", _properties(child))
            copy.children[child.name] = inner
            nodes.append((child, inner, inner.path))
    return top


def _properties(node: Any) -> dict[str, bytes]:
    return {item.name: _raw(getattr(item, "data", b"")) for item in node.props}


def _raw(data: Any) -> bytes:
    """The bytes a value was read from: texts, 32-bit numbers, or bytes already."""
    if isinstance(data, bytes | bytearray):
        return bytes(data)
    if data and isinstance(data[0], str):
        return b"".join(text.encode("ascii") + b"\0" for text in data)
    return struct.pack(f">{len(data)}I", *data)

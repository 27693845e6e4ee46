"""Files of running systems as their kernels show them, and device tree blobs, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fdt

CPU = "/sys/devices/system/cpu"
LIVE = "/sys/firmware/devicetree/base"


def grow(root: Path, files: Mapping[str, str | bytes]) -> Path:
    """Write files below `root`; each text gets the newline a kernel ends it with."""
    for path, content in files.items():
        at = root / path.lstrip("/")
        at.parent.mkdir(parents=True, exist_ok=True)
        at.write_bytes(content if isinstance(content, bytes) else f"{content}\n".encode())
    return root


def policy(number: int, cpus: str, clocks_khz: str, **more: str) -> dict[str, str]:
    """One cpufreq policy with a table of clocks; other files by name, None-like ones left out."""
    clocks = clocks_khz.split()
    files = {
        "affected_cpus": cpus,
        "cpuinfo_cur_freq": clocks[-1],
        "cpuinfo_max_freq": clocks[-1],
        "cpuinfo_min_freq": clocks[0],
        "cpuinfo_transition_latency": "40000",
        "related_cpus": cpus,
        # Drivers list clocks with a blank behind each.
        "scaling_available_frequencies": clocks_khz + " ",
        "scaling_available_governors": "conservative ondemand userspace powersave performance ",
        "scaling_cur_freq": clocks[-1],
        "scaling_driver": "cpufreq-dt",
        "scaling_governor": "ondemand",
        "scaling_max_freq": clocks[-1],
        "scaling_min_freq": clocks[0],
        "scaling_setspeed": "<unsupported>",
        **more,
    }
    return {f"{CPU}/cpufreq/policy{number}/{name}": text for name, text in files.items()}


def caches(*sizes: str) -> dict[str, str]:
    """Level 1 data and instruction caches, then a unified one a level, of CPU 0."""
    rows = [("1", "Data", sizes[0]), ("1", "Instruction", sizes[0])]
    rows += [(str(level), "Unified", size) for level, size in enumerate(sizes[1:], 2)]
    return {
        f"{CPU}/cpu0/cache/index{i}/{name}": text
        for i, row in enumerate(rows)
        for name, text in zip(("level", "type", "size"), row, strict=True)
    }


def arm_cpuinfo(parts: list[str]) -> str:
    """/proc/cpuinfo of 64-bit ARM, a part number for each CPU."""
    block = (
        "processor\t: {}\nBogoMIPS\t: 48.00\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 "
        "crc32 cpuid\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\n"
        "CPU part\t: {}\nCPU revision\t: 4\n"
    )
    return "\n".join(block.format(i, part) for i, part in enumerate(parts))


LITTLE_KHZ = "408000 600000 816000 1008000 1200000 1416000"
BIG_KHZ = "408000 600000 816000 1008000 1200000 1416000 1608000 1800000"
LITTLE_UV = (825, 825, 850, 925, 1000, 1125)
BIG_UV = (825, 825, 825, 875, 950, 1025, 1100, 1200)

#: A system like an RK3399's: four Cortex-A53 and two Cortex-A72.
RK3399: dict[str, str | bytes] = {
    "/proc/cpuinfo": arm_cpuinfo(["0xd03"] * 4 + ["0xd08"] * 2),
    f"{CPU}/online": "0-5",
    **policy(0, "0 1 2 3", LITTLE_KHZ),
    **policy(4, "4 5", BIG_KHZ),
    **caches("32K", "512K"),
}

#: A desktop like Intel's: a policy for each CPU, no table of clocks, RAPL.
DESKTOP: dict[str, str | bytes] = {
    "/proc/cpuinfo": "\n".join(
        f"processor\t: {i}\nmodel name\t: Some Processor @ 3.50GHz\ncpu MHz\t\t: 3491.920\n"
        "flags\t\t: fpu sse2 pni ssse3 sse4_1 sse4_2 popcnt avx avx2 fma f16c movbe bmi1 bmi2 abm\n"
        for i in range(2)
    ),
    f"{CPU}/online": "0-1",
    f"{CPU}/intel_pstate/no_turbo": "0",
    **{
        path: text
        for i in range(2)
        for path, text in policy(
            i,
            str(i),
            "800000 4900000",
            cpuinfo_transition_latency="0",
            scaling_governor="powersave",
            scaling_available_governors="performance powersave",
        ).items()
        if not path.endswith("available_frequencies")
    },
    **caches("48K", "1280K", "24M"),
    "/sys/class/powercap/intel-rapl:0/name": "package-0",
    "/sys/class/powercap/intel-rapl:0/energy_uj": "123456789",
    "/sys/class/powercap/intel-rapl:0:0/name": "core",
}


def opp_table(name: str, phandle: int, khz: str, millivolts: tuple[int, ...]) -> str:
    """An ``operating-points-v2`` table."""
    rows = "\n".join(
        f"opp{i:02d} {{ opp-hz = <0x0 {int(clock) * 1000:#x}>; "
        f"opp-microvolt = <{mv * 1000} {mv * 1000} 1250000>; clock-latency-ns = <40000>; }};"
        for i, (clock, mv) in enumerate(zip(khz.split(), millivolts, strict=True))
    )
    head = f'compatible = "operating-points-v2"; opp-shared; phandle = <{phandle:#x}>;'
    return f"{name} {{ {head}\n{rows} }};"


def cpu_node(number: int, core: str, table: int, more: str = "") -> str:
    """A CPU with its operating points and its second cache, phandle 9."""
    return (
        f'cpu@{number} {{ device_type = "cpu"; compatible = "arm,{core}"; reg = <{number:#x}>; '
        f'enable-method = "psci"; operating-points-v2 = <{table:#x}>; d-cache-size = <0x8000>; '
        f"next-level-cache = <0x9>; phandle = <{0x10 + number:#x}>; {more} }};"
    )


def rk3399_dts(extra: str = "") -> str:
    """A device tree like an RK3399 board's."""
    cpus = [
        cpu_node(
            i, "cortex-a53", 1, "dynamic-power-coefficient = <100>; capacity-dmips-mhz = <485>;"
        )
        for i in range(4)
    ] + [
        cpu_node(
            i, "cortex-a72", 2, "dynamic-power-coefficient = <436>; capacity-dmips-mhz = <1024>;"
        )
        for i in (4, 5)
    ]
    body = "\n".join(cpus)
    return f"""/dts-v1/;
/ {{
model = "Some RK3399 Board";
compatible = "some,board", "rockchip,rk3399";
cpus {{
#address-cells = <2>;
{body}
}};
l2-cache {{ compatible = "cache"; cache-size = <0x100000>; phandle = <0x9>; }};
{opp_table("opp-table-0", 1, LITTLE_KHZ, LITTLE_UV)}
{opp_table("opp-table-1", 2, BIG_KHZ, BIG_UV)}
{extra}
}};
"""


def blob(dts: str) -> bytes:
    """A device tree source as a blob."""
    # The library's reader takes one statement a line.
    lines = dts.replace("{", "{\n").replace(";", ";\n")
    found: bytes = fdt.parse_dts(lines).to_dtb(version=17)
    return found


def live(dts: str) -> dict[str, str | bytes]:
    """A device tree source as the folders of a running system."""
    root = fdt.parse_dts(dts.replace("{", "{\n").replace(";", ";\n")).root
    files: dict[str, str | bytes] = {}

    def walk(node: Any, path: str) -> None:
        for item in node.props:
            files[f"{path}/{item.name}"] = raw(item)
        for child in node.nodes:
            walk(child, f"{path}/{child.name}")

    walk(root, LIVE)
    return files


def raw(item: Any) -> bytes:
    data = getattr(item, "data", [])
    if data and isinstance(data[0], str):
        return b"".join(text.encode() + b"\0" for text in data)
    return b"".join(int(word).to_bytes(4, "big") for word in data)

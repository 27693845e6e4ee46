"""Kinds of ARM cores: how device trees and /proc/cpuinfo name them, and what they compute with.

Only what a source gives stands here; a kind that is not listed, or a number that is None, has to
be written into the board file by whoever knows it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["CoreKind", "kind_named", "kind_of_compatible", "kind_of_part"]

_CPUFP = "measured: github.com/pigirons/cpufp 93e165ea,"
_MCA = "llvm-mca 14.0.6"
_N1 = "LLVM commit 02cec0a4, AArch64SchedNeoverseN1.td"


@dataclass(frozen=True)
class CoreKind:
    """One kind of core.

    Attributes:
        name: LLVM's name of it.
        mcpu: what code for it is scheduled for; not `name` where LLVM's model of an in-order core
            keeps too much in registers (see targets/boards/cortex-a55.toml).
        fma_per_cycle: 128-bit multiply-accumulates of float32 it starts in a cycle; None where no
            source was found.
        source: where `fma_per_cycle` comes from.
        fma_latency: of one, through the accumulator; None where no source was found.
        latency_source: where `fma_latency` comes from.
    """

    name: str
    mcpu: str
    fma_per_cycle: float | None = None
    source: str = ""
    fma_latency: int | None = None
    latency_source: str = ""


_A57 = (1, f"{_MCA} -mcpu=cortex-a57: fmla.4s takes both FP pipes for a cycle; not measured")
_A57_CHAIN = (4, f"{_MCA} -mcpu=cortex-a57: a chain of fmla.4s through the accumulator")
_A77 = (2, "software optimization guide of the Cortex-A77, as quoted in LLVM commit 38c92c1e")
_N1_CHAIN = (4, f"{_N1}: N1Write_4c_1V; for this core assumed or not measured")
_A55_CHAIN = (4, "LLVM commit 1d7cce3f, AArch64SchedA55.td: CortexA55WriteFMAC; not measured")
_KINDS = {
    kind.name: kind
    for kind in (
        CoreKind("cortex-a35", "cortex-a72"),
        CoreKind("cortex-a53", "cortex-a72", 1, f"{_CPUFP} RockChip_RK3399.md: 8 flops a cycle"),
        CoreKind(
            *("cortex-a55", "cortex-a72"),
            *(1, f"{_CPUFP} RockChip_RK3588.md: 8 flops a cycle"),
            *_A55_CHAIN,
        ),
        CoreKind("cortex-a57", "cortex-a57", *_A57, *_A57_CHAIN),
        CoreKind(
            *("cortex-a72", "cortex-a72"),
            *(1, f"{_CPUFP} Broadcom_BCM2711.md: 8 flops a cycle"),
            *(3, "gem5 commit 6c72c355 (Cortex-A72 model): FMADD accumulate-to-accumulate"),
        ),
        # LLVM takes the Cortex-A57's model for these two.
        CoreKind("cortex-a73", "cortex-a73", *_A57, *_A57_CHAIN),
        CoreKind("cortex-a75", "cortex-a75", None, "", *_A57_CHAIN),
        CoreKind(
            *("cortex-a76", "cortex-a76"),
            *(2, f"{_CPUFP} Broadcom_BCM2712.md: 16 flops a cycle"),
            *_N1_CHAIN,
        ),
        CoreKind("cortex-a77", "cortex-a77", *_A77, *_N1_CHAIN),
        CoreKind("cortex-a78", "cortex-a78", 2, f"assumed as Cortex-A77: {_A77[1]}", *_N1_CHAIN),
        CoreKind("cortex-a78ae", "cortex-a78", 2, f"assumed as Cortex-A77: {_A77[1]}", *_N1_CHAIN),
        CoreKind("cortex-x1", "cortex-x1"),
        CoreKind("cortex-a510", "cortex-a510"),
        CoreKind("cortex-a710", "cortex-a710"),
        CoreKind("cortex-x2", "cortex-x2"),
        CoreKind("cortex-a715", "cortex-a715"),
        CoreKind("cortex-x3", "cortex-x3"),
        CoreKind(
            "neoverse-n1",
            "neoverse-n1",
            2,
            f"{_N1}: N1UnitV0 and N1UnitV1; not measured",
            *_N1_CHAIN,
        ),
        CoreKind("neoverse-n2", "neoverse-n2"),
        CoreKind("carmel", "carmel"),
    )
}

#: (implementer, part) of the main ID register. Source: Linux arch/arm64/include/asm/cputype.h.
_PARTS = {
    (0x41, 0xD03): "cortex-a53", (0x41, 0xD04): "cortex-a35", (0x41, 0xD05): "cortex-a55",
    (0x41, 0xD07): "cortex-a57", (0x41, 0xD08): "cortex-a72", (0x41, 0xD09): "cortex-a73",
    (0x41, 0xD0A): "cortex-a75", (0x41, 0xD0B): "cortex-a76", (0x41, 0xD0C): "neoverse-n1",
    (0x41, 0xD0D): "cortex-a77", (0x41, 0xD41): "cortex-a78", (0x41, 0xD42): "cortex-a78ae",
    (0x41, 0xD44): "cortex-x1", (0x41, 0xD46): "cortex-a510", (0x41, 0xD47): "cortex-a710",
    (0x41, 0xD48): "cortex-x2", (0x41, 0xD49): "neoverse-n2", (0x41, 0xD4D): "cortex-a715",
    (0x41, 0xD4E): "cortex-x3", (0x4E, 0x004): "carmel",
}  # fmt: skip


def kind_named(name: str) -> CoreKind | None:
    """The kind of LLVM's name."""
    return _KINDS.get(name)


def kind_of_compatible(compatible: str) -> CoreKind | None:
    """The kind a CPU node's ``compatible`` names.

    >>> kind_of_compatible("arm,cortex-a72").name, kind_of_compatible("nvidia,tegra194-carmel").name
    ('cortex-a72', 'carmel')
    >>> kind_of_compatible("arm,armv8")
    """
    name = compatible.partition(",")[2]
    name = re.sub(r"^tegra\d+-", "", name)
    return _KINDS.get(name)


def kind_of_part(implementer: int, part: int) -> CoreKind | None:
    """The kind with these numbers in its main ID register, as /proc/cpuinfo tells them.

    >>> kind_of_part(0x41, 0xd08).name
    'cortex-a72'
    """
    return _KINDS.get(_PARTS.get((implementer, part), ""))

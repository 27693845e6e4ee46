"""Kinds of ARM cores: how device trees and /proc/cpuinfo name them, and what they compute with.

Only what a source gives stands here; a kind that is not listed, or a number that is None, has to
be written into the board file by whoever knows it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["CoreKind", "kind_named", "kind_of_compatible", "kind_of_part"]

_WIKICHIP = "WikiChip, FLOPS, ARM microarchitectures"


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
    """

    name: str
    mcpu: str
    fma_per_cycle: float | None = None
    source: str = ""


_KINDS = {
    kind.name: kind
    for kind in (
        CoreKind("cortex-a35", "cortex-a72"),
        CoreKind(
            "cortex-a53",
            "cortex-a72",
            0.5,
            "LLVM commit 02b3d4f4, AArch64SchedA53.td: A53WriteFMACQ takes the only FP multiply "
            "pipe for two cycles",
        ),
        CoreKind(
            "cortex-a55",
            "cortex-a72",
            1,
            "LLVM commit 1d7cce3f, AArch64SchedA55.td: both FP pipes are taken by a 128-bit "
            "operation",
        ),
        CoreKind("cortex-a57", "cortex-a57", 1, f"{_WIKICHIP}: Cortex-A57, 1 x 128-bit FMA"),
        CoreKind("cortex-a72", "cortex-a72", 1, "assumed: as the Cortex-A57 it follows"),
        CoreKind("cortex-a73", "cortex-a73"),
        CoreKind("cortex-a75", "cortex-a75"),
        CoreKind("cortex-a76", "cortex-a76", 2, f"{_WIKICHIP}: Cortex-A76, 2 x 128-bit FMA"),
        CoreKind("cortex-a77", "cortex-a77", 2, f"{_WIKICHIP}: Cortex-A77, 2 x 128-bit FMA"),
        CoreKind("cortex-a78", "cortex-a78", 2, f"{_WIKICHIP}: Cortex-A78, 2 x 128-bit FMA"),
        CoreKind("cortex-a78ae", "cortex-a78ae", 2, f"{_WIKICHIP}: Cortex-A78, 2 x 128-bit FMA"),
        CoreKind("cortex-x1", "cortex-x1"),
        CoreKind("cortex-a510", "cortex-a510"),
        CoreKind("cortex-a710", "cortex-a710"),
        CoreKind("cortex-x2", "cortex-x2"),
        CoreKind("cortex-a715", "cortex-a715"),
        CoreKind("cortex-x3", "cortex-x3"),
        CoreKind("neoverse-n1", "neoverse-n1", 2, f"{_WIKICHIP}: Neoverse N1, 2 x 128-bit FMA"),
        CoreKind("neoverse-n2", "neoverse-n2", 2, f"{_WIKICHIP}: Neoverse N2, 2 x 128-bit FMA"),
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

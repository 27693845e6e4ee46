"""The named sequences of passes, each with the reason for its order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eecompile.ir import Graph
from eecompile.passes.base import Pass
from eecompile.passes.cut_segments import CutSegments
from eecompile.passes.insert_comparators import InsertComparators
from eecompile.passes.insert_exits import InsertExits
from eecompile.passes.resolve_points import ResolvePoints
from eecompile.passes.split_at_gates import PlacedGate, SplitAtGates

__all__ = ["backbone_pipeline", "exits_pipeline", "segments_pipeline"]


def backbone_pipeline(gates: Sequence[PlacedGate] = ()) -> tuple[Pass, ...]:
    """Finds the exits and cuts there, with no heads inserted: the backbone in segments.

    Args:
        gates: where segments are cut into steps.
    """
    return (ResolvePoints(), CutSegments(), *_at_gates(gates))


def exits_pipeline(
    heads: Mapping[str, Graph], comparators: Mapping[str, Graph] | None = None
) -> tuple[Pass, ...]:
    """The source network with every exit as an output, to train or to look at.

    Args:
        heads: exit -> graph with one input; what it yields is shown as ``<exit>.<output>``.
        comparators: likewise, shown as ``<exit>.class_means``.
    """
    # Points are looked up before anything is inserted: what is inserted has names of its own,
    # which a glob must not match.
    return (ResolvePoints(), InsertExits(heads), InsertComparators(comparators or {}))


def segments_pipeline(
    heads: Mapping[str, Graph],
    comparators: Mapping[str, Graph] | None = None,
    gates: Sequence[PlacedGate] = (),
) -> tuple[Pass, ...]:
    """From the source network to segments, heads, comparators and gates, ready to compile."""
    # Cutting is last: it sorts operators into segments by what they lead to, so everything that
    # belongs to an exit has to be there. Gates decide inside segments.
    return (*exits_pipeline(heads, comparators), CutSegments(), *_at_gates(gates))


def _at_gates(gates: Sequence[PlacedGate]) -> tuple[Pass, ...]:
    return (SplitAtGates(gates),) if gates else ()

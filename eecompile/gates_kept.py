"""What gates keep of held-out samples, told with each policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from eecompile.artifact import PolicyEntry
from eecompile.compiled import CompiledGraph
from eecompile.gate_counts import decided_by_gates, kept_in_record
from eecompile.policies import ExitPolicy, replay
from eecompile.record import Record
from eecompile.shift_fitting import Shifts
from eecompile.spec import Policy

__all__ = ["with_gates_told"]


def with_gates_told(
    written: Sequence[Policy],
    policies: Mapping[str, ExitPolicy],
    entries: Mapping[str, PolicyEntry],
    network: CompiledGraph,
    records: Mapping[str, Record],
    shifts: Shifts | None,
) -> dict[str, PolicyEntry]:
    """The entries, their reports with ``gates``: see `eecompile.gate_counts.counts_json`.

    Nothing is told of policies that share the work with a server, or halt: how far their samples
    come is not what a replay of exits says.

    Args:
        written: as in the file.
        policies: as they decide, by name.
        entries: of the artifact, by name.
        network: compiled.
        records: by split.
        shifts: the network at other shifts of its gates.
    """
    found = dict(entries)
    test = records.get("test")
    if test is None or not network.gated:
        return found
    about = decided_by_gates(network)
    for one in written:
        if one.halt is not None or one.offload is not None or one.split is not None:
            continue
        policy, record = policies[one.name], test
        if policy.gate_shift and shifts is not None:
            record = shifts.run(policy.gate_shift, ("test",))["test"]
        left = replay(policy, record.outputs(), record.final).exit
        counts = kept_in_record(about, record.shares, left)
        entry = found[one.name]
        found[one.name] = replace(entry, report={**entry.report, "gates": counts})
    return found

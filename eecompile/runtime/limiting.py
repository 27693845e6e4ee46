"""Budgets for samples that are given where they run: for a session, or with a call."""

from __future__ import annotations

from dataclasses import replace

from eecompile.artifact import Artifact
from eecompile.halt_rule import HaltRule
from eecompile.policies.never import NeverPolicy
from eecompile.runtime.budgets import given_halt
from eecompile.runtime.deciding import Deciding
from eecompile.runtime.halting import Halting
from eecompile.runtime.inputs import bad_argument
from eecompile.runtime.piece_costs import PieceCosts

__all__ = ["Limiter"]


class Limiter:
    """Makes rules for a session's samples of budgets, with what pieces of its network cost.

    Where decisions are off, exits answer to keep a budget, and for nothing else; gates stay off.
    """

    def __init__(self, artifact: Artifact) -> None:
        """Looks nothing up yet."""
        self._artifact = artifact
        self._pieces: dict[bool, PieceCosts] = {}
        #: Budgets of the latest call that had any, and what they came to.
        self._latest: tuple[tuple[object, ...], Deciding] | None = None

    def pieces(self, *, gates: bool) -> PieceCosts:
        """What pieces cost, and how fast they are by now, where gates run or do not."""
        found = self._pieces.get(gates)
        if found is None:
            network, table = self._artifact.manifest.network, self._artifact.costs
            found = self._pieces[gates] = PieceCosts(network, table, gates=gates)
        return found

    def halted(self, how: Deciding | None, rule: HaltRule) -> Deciding:
        """Decisions as they were (None: off), with this limit for each sample and no other.

        Raises:
            CompileErrors: they do not go with a limit, no answer keeps it, or a cost is not known.
        """
        how = how or Deciding(NeverPolicy(len(self._artifact.manifest.network.exits)), gates=False)
        with_what = {
            "chooses clocks or has a deadline": how.clock is not None,
            "asks a server": how.server is not None,
            "is guarded": how.guard is not None,
            "learns": how.policy.online,
        }
        for what, does in with_what.items():
            if does:
                message = f"No budget for each sample goes with a policy that {what}"
                raise bad_argument(message, "set another policy, or None")
        return replace(how, halt=Halting(rule, self.pieces(gates=how.gates)))

    def limited(
        self,
        how: Deciding | None,
        macs: float | None,
        time_s: float | None,
        energy_j: float | None,
    ) -> Deciding:
        """Decisions as they were (None: off), with budgets of one call beside their own.

        Raises:
            CompileErrors: as `halted`, or these are no limits.
        """
        given = how, macs, time_s, energy_j
        latest = self._latest  # read once: another thread may ask before it is told to wait
        if latest is None or latest[0] != given:  # Most often they are the same again.
            budgets = {"macs": macs, "latency": time_s, "energy": energy_j}
            rule = given_halt({name: limit for name, limit in budgets.items() if limit is not None})
            if how is not None and how.halt is not None:
                rule = rule.and_also(how.halt.rule)
            self._latest = latest = given, self.halted(how, rule)
        return latest[1]

"""Which clocks of a board can be set here: its clusters and the kernel's clocks, matched."""

from __future__ import annotations

import errno
from collections.abc import Collection

from eecompile.board import Cluster, DvfsState
from eecompile.runtime.clock_domains import (
    DEVFREQ,
    ByLimits,
    BySpeed,
    ClockDomain,
    Devfreq,
    cpu_policies,
)
from eecompile.runtime.sysfs import SysFiles

__all__ = ["Lever"]


class Lever:
    """One cluster's clock: its domains, moved together.

    A cluster is matched with the policies that have its CPUs; one without CPUs with the devfreq
    device of its name.

    Attributes:
        name: the cluster's.
        domains: whose clocks are its; open until `close`.
        values: the states that can be set -> the kernel's number, the same for all domains.
        missing: in words, which states cannot be set; empty where all can.
        claimed: whether what comes before the first clock was written.
        refused: changes in a row that the kernel did not take.
    """

    def __init__(self, files: SysFiles, cluster: Cluster, stuck: Collection[str] = ()) -> None:
        """Finds the domains and opens what is to be written.

        Args:
            files: of the machine.
            cluster: of the board.
            stuck: folders of domains that are left alone, as they could not be put back.

        Raises:
            OSError: none of its clocks can be set; in its words why.
        """
        self.name, self.missing = cluster.name, ""
        self.domains: list[ClockDomain] = []
        self.claimed = False
        self.refused = 0
        try:
            for kind, folder in _matched(files, cluster):
                self.domains.append(kind(files, folder))
                if folder in stuck:
                    message = "what an earlier run changed could not be put back"
                    raise OSError(errno.EBUSY, message)
            self.values = {
                state: value
                for state in cluster.states
                if (value := self._value_of(state)) is not None
            }
            if missing := len(cluster.states) - len(self.values):
                told = self.domains[0].describe()
                self.missing = f"{missing} of {len(cluster.states)} clocks are not here ({told})"
            if not self.values:
                raise OSError(errno.ENODEV, self.missing)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close its files."""
        for domain in self.domains:
            domain.close()

    def _value_of(self, state: DvfsState) -> int | None:
        """The kernel's number for a clock; None where the domains do not agree on one."""
        values = {domain.value_of(state.frequency_hz) for domain in self.domains}
        return values.pop() if len(values) == 1 else None


def _matched(files: SysFiles, cluster: Cluster) -> list[tuple[type[ClockDomain], str]]:
    """How each clock of a cluster is set, and its folder."""
    if not cluster.cpus:
        return [(Devfreq, f"{DEVFREQ}/{cluster.name}")]
    wanted = set(cluster.cpus)
    policies = cpu_policies(files)
    folders = [folder for folder, cpus in policies.items() if set(cpus) & wanted]
    if not folders:
        raise OSError(errno.ENOENT, "no cpufreq policy has its CPUs")
    if any(set(policies[folder]) - wanted for folder in folders):
        raise OSError(errno.ENODEV, "its CPUs share a clock with others")
    return [(BySpeed if BySpeed.offered(files, one) else ByLimits, one) for one in folders]

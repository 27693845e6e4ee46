"""What a session is opened with: its threads, and the artifact's policies and clocks, checked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eecompile.artifact import Artifact, PolicyEntry
from eecompile.artifact_files import bad_artifact
from eecompile.clock_rule import ClockRule
from eecompile.diagnostics import CompileErrors, did_you_mean_help
from eecompile.hardware import usable_cores
from eecompile.policies import from_json
from eecompile.policies.base import EXIT, ExitOutputs, ExitPolicy
from eecompile.runtime.clock import Clock
from eecompile.runtime.governor import Governor, NoGovernor
from eecompile.runtime.inputs import bad_argument
from eecompile.runtime.sysfs_governor import open_governor

__all__ = ["policy_entry", "stored_clock", "stored_policy", "threads_for", "unusable"]


def threads_for(given: int | None, cores: int) -> int:
    """Threads that are started where `given` are asked for, or the artifact's cores.

    Raises:
        CompileErrors: it is no whole number above 0.
    """
    if given is None:
        given = cores
    if isinstance(given, bool) or not isinstance(given, int | np.integer):
        raise bad_argument(f"Expected a whole number of threads, found {given!r}")
    if given < 1:
        raise bad_argument(f"Expected 1 or more threads, found {given}")
    return min(int(given), usable_cores())


def policy_entry(artifact: Artifact, name: str) -> PolicyEntry:
    """What the artifact holds of a policy.

    Raises:
        CompileErrors: it has none of this name.
    """
    entry = artifact.policies.get(name)
    if entry is None:
        policies = artifact.manifest.policies
        known = ", ".join(policies) or "none"
        raise bad_argument(
            f"The artifact has no policy `{name}`",
            did_you_mean_help(name, policies) or f"policies: {known}",
        )
    return entry


def unusable(artifact: Artifact, name: str, error: Exception) -> CompileErrors:
    """The exception for a stored policy that cannot be used, and why."""
    return bad_artifact(artifact.path, f"The policy `{name}` cannot be used: {error}")


def stored_policy(
    artifact: Artifact, name: str, entry: PolicyEntry, stops: Sequence[ExitOutputs]
) -> ExitPolicy:
    """The policy of an entry, tried on every exit so that it cannot fail while running.

    Args:
        artifact: it is in.
        name: of the policy.
        entry: see above.
        stops: what each exit computes: only the shapes are looked at.

    Raises:
        CompileErrors: the policy cannot be used with these exits.
    """
    try:
        policy = from_json(entry.rule)
        first, last = policy.first(), len(stops)
        if not 0 <= first <= last:
            raise ValueError(f"it starts at exit {first} of {last}")
        for index, outputs in enumerate(stops):
            zeros = np.zeros_like(outputs.logits)
            means = None if outputs.class_means is None else np.zeros_like(zeros)
            after = int(policy.decide(index, ExitOutputs(zeros, means), policy.start(1))[0])
            if after != EXIT and not index < after <= last:
                raise ValueError(f"it goes from exit {index} to exit {after} of {last}")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise unusable(artifact, name, error) from error
    return policy


def stored_clock(
    artifact: Artifact,
    name: str,
    entry: PolicyEntry,
    governor: Governor | None,
    workers: Sequence[int],
) -> tuple[Clock | None, Governor | None]:
    """What chooses clocks by the rule of an entry, None where it has none; and what sets them.

    Args:
        artifact: it is in.
        name: of the policy.
        entry: see above.
        governor: sets the clocks; None: this machine's, opened where it is needed.
        workers: numbers of threads that compute together with the caller's.

    Raises:
        CompileErrors: the rule does not fit the artifact's costs, or there are none.
    """
    if entry.clock is None:
        return None, governor
    costs = artifact.costs
    try:
        if costs is None:
            raise ValueError("the artifact has no costs to choose its clocks by")
        rule = ClockRule.from_json(entry.clock)
        if not rule.sets_clocks:
            return Clock(costs, rule, NoGovernor()), governor
        if governor is None:
            governor = open_governor(costs.clusters)
        return Clock(costs, rule, governor, workers), governor
    except ValueError as error:
        raise unusable(artifact, name, error) from error

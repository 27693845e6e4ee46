"""What a session is opened with: threads, and an artifact's policies with all theirs, checked."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import numpy as np

from eecompile.artifact import Artifact, PolicyEntry
from eecompile.artifact_files import bad_artifact
from eecompile.clock_rule import ClockRule
from eecompile.compiled import CompiledGraph
from eecompile.diagnostics import CompileErrors, did_you_mean_help
from eecompile.guard_rule import GuardRule
from eecompile.halt_rule import HaltRule
from eecompile.hardware import usable_cores
from eecompile.offload_rule import OffloadRule
from eecompile.policies import from_json
from eecompile.policies.base import EXIT, OFFLOAD, ExitOutputs, ExitPolicy
from eecompile.runtime.clock import Clock
from eecompile.runtime.deciding import Server
from eecompile.runtime.governor import Governor, NoGovernor
from eecompile.runtime.guard import Guard
from eecompile.runtime.halting import Halting
from eecompile.runtime.inputs import bad_argument
from eecompile.runtime.limiting import Limiter
from eecompile.runtime.sysfs_governor import open_governor

__all__ = [
    "exit_shapes",
    "policy_entry",
    "stored_clock",
    "stored_guard",
    "stored_halt",
    "stored_policy",
    "stored_server",
    "threads_for",
]


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


def _unusable(artifact: Artifact, name: str, error: Exception) -> CompileErrors:
    """The exception for a stored policy that cannot be used, and why."""
    return bad_artifact(artifact.path, f"The policy `{name}` cannot be used: {error}")


def exit_shapes(network: CompiledGraph) -> list[ExitOutputs]:
    """What each exit computes for one sample, all zeros."""
    zeros = np.zeros((1, network.classes or 0), np.float32)
    means = (None if exit_.comparator is None else zeros for exit_ in network.exits)
    return [ExitOutputs(zeros, found) for found in means]


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
        _try(from_json(entry.rule), stops, entry.offload is not None)
        return from_json(entry.rule)  # The one that was tried may have learned from it.
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise _unusable(artifact, name, error) from error


def _try(policy: ExitPolicy, stops: Sequence[ExitOutputs], offloads: bool) -> None:
    """Every decision it may be asked for, and what it learns from.

    Raises:
        ValueError: it goes where nothing is.
    """
    first, last = policy.first(), len(stops)
    if not 0 <= first <= last:
        raise ValueError(f"it starts at exit {first} of {last}")
    for index, outputs in enumerate(stops):
        zeros = np.zeros_like(outputs.logits)
        means = None if outputs.class_means is None else np.zeros_like(zeros)
        state = policy.start(1)
        after = int(policy.decide(index, ExitOutputs(zeros, means), state)[0])
        if after == OFFLOAD and not offloads:
            raise ValueError("it offloads, and the artifact names no server")
        if after not in (EXIT, OFFLOAD) and not index < after <= last:
            raise ValueError(f"it goes from exit {index} to exit {after} of {last}")
        if policy.online:
            policy.learn(state, zeros)
            policy.remember(policy.memory())


def stored_guard(
    artifact: Artifact, name: str, entry: PolicyEntry, seed: int | None = None
) -> Guard | None:
    """What watches the answers of an entry's policy, None where nothing does.

    Args:
        artifact: it is in.
        name: of the policy.
        entry: see above.
        seed: of which samples are audited; the system's where None.

    Raises:
        CompileErrors: it cannot watch this network's exits, or the seed is no whole number.
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer | None):
        raise bad_argument(f"Expected a whole number as `audit_seed`, found {seed!r}")
    if entry.guard is None:
        return None
    network = artifact.manifest.network
    try:
        if entry.clock is not None or entry.offload is not None:
            raise ValueError("a guard watches neither clocks nor servers")
        if network.classes is None:
            raise ValueError("a guard compares classes")
        return Guard(GuardRule.from_json(entry.guard), network.exit_names, Random(seed))
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise _unusable(artifact, name, error) from error


def stored_server(
    artifact: Artifact, name: str, entry: PolicyEntry, endpoint: str | None, given: Server | None
) -> Server | None:
    """What answers samples that an entry's policy offloads, None where it offloads none.

    Args:
        artifact: it is in.
        name: of the policy.
        entry: see above.
        endpoint: one of the policy's; its first where None.
        given: is asked instead of the policy's server.

    Raises:
        CompileErrors: the policy does not allow the endpoint, or its rule is damaged.
        ToolError: the library that speaks to servers is not installed.
    """
    if entry.offload is None:
        if endpoint is not None or given is not None:
            message = f"The policy `{name}` offloads nothing, it needs no server"
            raise bad_argument(message, "choose a policy with `offload`, or leave the server out")
        return None
    if given is not None:
        return given
    # Heavy, and most policies speak to nobody.
    from eecompile.runtime.offload import Offloader, check_fit

    try:
        rule = OffloadRule.from_json(entry.offload)
        check_fit(rule, artifact.manifest.network)
    except ValueError as error:
        raise _unusable(artifact, name, error) from error
    return Offloader(rule, endpoint)


def stored_halt(
    artifact: Artifact, name: str, entry: PolicyEntry, limits: Limiter
) -> Halting | None:
    """What limits each sample by an entry's rule, None where it has none.

    Args:
        artifact: it is in.
        name: of the policy.
        entry: see above.
        limits: of the session.

    Raises:
        CompileErrors: the rule does not go with the rest of the policy, cannot be kept, or is
            damaged.
    """
    if entry.halt is None:
        return None
    try:
        if entry.clock is not None or entry.offload is not None or entry.guard is not None:
            raise ValueError("it halts, which goes with no clock, server or guard")
        return Halting(HaltRule.from_json(entry.halt), limits.pieces(gates=True))
    except ValueError as error:
        raise _unusable(artifact, name, error) from error


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
    costs, network = artifact.costs, artifact.manifest.network
    try:
        if entry.offload is not None:
            raise ValueError("it chooses clocks and offloads, which do not go together")
        if costs is None:
            raise ValueError("the artifact has no costs to choose its clocks by")
        rule = ClockRule.from_json(entry.clock)
        if not rule.sets_clocks:
            return Clock(costs, rule, NoGovernor(), network=network), governor
        if governor is None:
            governor = open_governor(costs.clusters)
        return Clock(costs, rule, governor, workers, network), governor
    except ValueError as error:
        raise _unusable(artifact, name, error) from error

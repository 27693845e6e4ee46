"""Whether a policy leaves anything of what a network knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eecompile.diagnostics import Diagnostic
from eecompile.figures import percent
from eecompile.outcomes import commonest_share
from eecompile.spec import Policy

__all__ = ["collapse_warnings"]


def collapse_warnings(
    written: Sequence[Policy],
    reports: Mapping[str, Mapping[str, Any]],
    labels: np.ndarray[Any, Any],
) -> list[Diagnostic]:
    """Warns of policies that keep a budget by answers that are worth nothing.

    To answer the commonest class always costs nothing. A policy has collapsed where its held-out
    accuracy is not above that, with 95 % confidence, and the whole network's is.

    Args:
        written: as in the file.
        reports: of the policies built, by name.
        labels: held-out ones, integers of shape (n,).
    """
    commonest = commonest_share(labels)
    found = []
    for policy in written:
        test = reports[policy.name]["test"] if policy.name in reports else None
        if test is None or test["full_depth_accuracy"]["low"] <= commonest:
            continue
        if test["accuracy"]["low"] <= commonest:
            found.append(_warning(policy, test, commonest))
    return found


def _warning(policy: Policy, test: Mapping[str, Any], commonest: float) -> Diagnostic:
    accuracy, full = test["accuracy"]["value"], test["full_depth_accuracy"]["value"]
    return Diagnostic(
        "collapsed-accuracy",
        f"Policy `{policy.name}` answers {percent(accuracy)} of the held-out samples rightly, "
        f"no more than naming the commonest class always would ({percent(commonest)})",
        policy.at("budget"),
        f"the whole network answers {percent(full)} rightly",
        severity="warning",
        help="allow more, or limit accuracy: `budget accuracy drop <= 1 %`",
    )

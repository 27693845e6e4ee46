"""Policies as JSON: an object with the policy's kind and its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eecompile.policies.base import ExitPolicy

__all__ = ["from_json", "to_json"]


def to_json(policy: ExitPolicy) -> dict[str, Any]:
    """JSON value from which `from_json` makes an equal policy."""
    return {"kind": policy.kind, **policy.parameters()}


def from_json(value: Mapping[str, Any]) -> ExitPolicy:
    """The policy a JSON value describes.

    Raises:
        ValueError: no such kind of policy, or its parameters are missing or of the wrong type.
    """
    kind = value.get("kind")
    policy = ExitPolicy.kinds.get(str(kind))
    if policy is None:
        known = ", ".join(sorted(ExitPolicy.kinds))
        raise ValueError(f"no policy of kind {kind!r} (there are {known})")
    try:
        return policy.from_parameters(value)
    except (KeyError, TypeError) as error:
        raise ValueError(f"parameters of policy {kind!r}: {error!r}") from error

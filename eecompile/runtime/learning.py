"""What a policy has learned and a guard knows: kept in a file, gone on from, forgotten."""

from __future__ import annotations

from pathlib import Path

from eecompile.artifact import content_digest
from eecompile.manifest import Manifest
from eecompile.policies import from_json, to_json
from eecompile.runtime.deciding import Deciding
from eecompile.runtime.state_file import LearnedState, bad_state, read_state, write_state

__all__ = ["forget", "recall", "store"]


def store(how: Deciding, manifest: Manifest, path: str | Path) -> None:
    """Write what is known to a file, in the place of an earlier one or not at all.

    Raises:
        CompileErrors: the file cannot be written.
    """
    with how.lock:
        memory, guard = how.policy.memory(), None if how.guard is None else how.guard.memory()
    write_state(path, LearnedState(content_digest(manifest), how.name, memory, guard))


def recall(how: Deciding, manifest: Manifest, path: str | Path) -> None:
    """Go on from what `store` wrote for this policy of this artifact.

    Raises:
        CompileErrors: it is another policy's or artifact's, or damaged; nothing has changed then.
    """
    found = read_state(path)
    if found.artifact != content_digest(manifest):
        raise bad_state(path, f"`{path}` was learned with another artifact")
    if found.policy != how.name:
        theirs, ours = (
            f"`{name}`" if name else "one of the caller's" for name in (found.policy, how.name)
        )
        raise bad_state(path, f"`{path}` was learned by another policy: {theirs}, not {ours}")
    with how.lock:
        before = how.policy.memory()
        try:
            if (found.guard is None) != (how.guard is None):
                raise ValueError("the policy and the file must both have a guard, or neither")
            how.policy.remember(found.memory)
            if how.guard is not None and found.guard is not None:
                how.guard.remember(found.guard)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            how.policy.remember(before)
            raise bad_state(path, f"Cannot go on from `{path}`: {error}") from error


def forget(how: Deciding) -> None:
    """As if nothing had been answered yet."""
    fresh = from_json(to_json(how.policy)).memory()
    with how.lock:
        how.policy.remember(fresh)
        if how.guard is not None:
            how.guard.reset()

"""Whatever a manifest holds, it is accepted or refused with its own error; nothing else happens."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eecompile.checked_json import JsonError, canonical_json, parse_json
from eecompile.manifest import Manifest, Member
from tests.runtime import tiny

ATOMS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers(min_value=2**31)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(["", "x", "float32", "early", "../x", "final"])
    | st.text(max_size=5)
)
VALUES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


def manifest_json() -> dict[str, Any]:
    contents = tiny.contents()
    return Manifest(
        contents.version,
        contents.target,
        contents.network,
        contents.normalizations,
        contents.labels,
        tuple(contents.policies),
        contents.default_policy,
        contents.fitted,
        contents.data,
        {"model.ee": Member("0" * 64, 3)},
    ).to_json()


GOOD = manifest_json()


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Places of everything in a JSON value but its root."""
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, part in entries:
        found.append((*at, key))
        if isinstance(part, dict | list):
            found += paths(part, (*at, key))
    return found


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(paths(GOOD)), st.sampled_from(["set", "delete", "copy"]), VALUES, st.data())
def test_a_changed_manifest_is_refused_or_consistent(
    path: tuple[Any, ...], how: str, value: Any, data: st.DataObject
) -> None:
    changed = copy.deepcopy(GOOD)
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    if how == "delete":
        del parent[path[-1]]
    elif how == "set":
        parent[path[-1]] = value
    else:
        other: Any = GOOD
        for key in data.draw(st.sampled_from(paths(GOOD))):
            other = other[key]
        parent[path[-1]] = other
    try:
        read = Manifest.from_json(parse_json(json.dumps(changed).encode()))
    except JsonError:
        return
    # Accepted: then what was read says the same again.
    again = Manifest.from_json(parse_json(canonical_json(read.to_json())))
    assert again.to_json() == read.to_json()
    assert len(read.network.exits) == len(read.network.segments) - 1


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=60)
    | st.text(alphabet='[]{}:,"\\u0123456789.eE+-ntfaIN ', max_size=60).map(str.encode)
)
def test_any_bytes_are_json_or_refused(data: bytes) -> None:
    try:
        value = parse_json(data)
    except JsonError:
        return
    assert parse_json(canonical_json(value)) == value


def test_the_unchanged_manifest_is_accepted() -> None:
    assert Manifest.from_json(copy.deepcopy(GOOD)).to_json() == GOOD


@pytest.mark.parametrize("value", [[], {}, None, 1, "x", [[]]])
def test_other_json_values_are_refused(value: Any) -> None:
    with pytest.raises(JsonError):
        Manifest.from_json(value)

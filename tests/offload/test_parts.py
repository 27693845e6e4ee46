"""Rules, border tensors and breakers, each alone; and Python without the client."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from eecompile.border_scales import int8_steps
from eecompile.checked_json import JsonError, canonical_json, parse_json
from eecompile.offload_rule import OffloadRule, WireTensor
from eecompile.runtime.offload.breaker import Breaker
from eecompile.runtime.offload.errors import AttemptFailed
from eecompile.runtime.offload.wire import Reply, as_sent, as_taken, checked
from tests.helpers import ROOT
from tests.offload.networks import logits, rule


@pytest.mark.parametrize("border", ["float32", "float16", "int8"])
def test_rules_survive_json(border: Any) -> None:
    made = rule("http://edge:8000", "grpc://edge:8001", border=border, timeout_s=0.2, retries=3)
    assert OffloadRule.from_json(parse_json(canonical_json(made.to_json()))) == made


def _changed(path: str, value: Any) -> dict[str, Any]:
    found: Any = rule("http://edge:8000").to_json()
    place, *keys = [found, *path.split(".")]
    for key in keys[:-1]:
        place = place[int(key) if key.isdigit() else key]
    last = keys[-1]
    place[int(last) if last.isdigit() else last] = value
    return dict(found)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("urls", []),
        ("urls", [1]),
        ("border", "float8"),
        ("timeout_s", 0),
        ("timeout_s", True),
        ("retries", -1),
        ("retries", 101),
        ("tails", []),
        ("tails.1.index", 0),
        ("tails.0.index", -1),
        ("tails.0.model", "../../etc"),
        ("tails.0.version", "latest"),
        ("tails.0.inputs.0.shape", [1, "x"]),
        ("tails.0.inputs.0.shape", [0]),
        ("tails.0.inputs.0.dtype", "object"),
        ("tails.0.inputs.0.scale", -1.0),
        ("tails.0.inputs.0.scale", 1.0),
        ("tails.0.inputs.0.zero", 128),
        ("tails.0.inputs.0.zero", 0.5),
        ("tails.0.output", None),
        ("more", 1),
    ],
)
def test_what_is_no_rule_is_refused(path: str, value: Any) -> None:
    with pytest.raises(JsonError, match="offload"):
        OffloadRule.from_json(_changed(path, value))


FLOATS = arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e4, 1e4, width=32))


@given(FLOATS)
@example(np.array([1.5868e-41], np.float32))
def test_int8_is_half_a_step_away_at_most(values: np.ndarray) -> None:
    scale, zero = int8_steps(values)
    tensor = WireTensor("x", "x", values.shape, "int8", scale, zero)
    sent = as_sent(tensor, values)
    assert sent.dtype == np.int8
    # A whole step at the ends, as that is where 0 is shifted to lie on a step.
    assert np.abs(as_taken(tensor, sent) - values).max() <= scale * 1.001
    assert (as_taken(tensor, as_sent(tensor, np.zeros_like(values))) == 0).all()


@given(FLOATS)
def test_float16_saturates(values: np.ndarray) -> None:
    tensor = WireTensor("x", "x", values.shape, "float16")
    taken = as_taken(tensor, as_sent(tensor, values * np.float32(100)))
    assert np.isfinite(taken).all()
    kept = np.abs(values) < 600
    np.testing.assert_allclose(taken[kept], values[kept] * 100, rtol=1e-3, atol=1e-4)


def _reply(**changes: Any) -> Reply:
    tail = rule("http://edge:8000").tails[0]
    return replace(Reply("7", tail.model, tail.version, logits()), **changes)


def test_the_right_answer_is_taken() -> None:
    tail = rule("http://edge:8000").tails[0]
    for version in ("1", ""):
        np.testing.assert_array_equal(checked(tail, "7", _reply(version=version)), logits())


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"request": "6"}, "request `6` instead of `7`"),
        ({"model": "digits-other-0"}, "model `digits-other-0`"),
        ({"version": "2"}, "version `2`"),
        ({"output": None}, "without `logits`"),
        ({"output": np.zeros((10, 1), np.float32)}, r"float32\[10, 1\] instead of"),
        ({"output": np.zeros((1, 10))}, r"float64\[1, 10\] instead of"),
        ({"output": np.full((1, 10), np.nan, np.float32)}, "not finite"),
        ({"output": np.full((1, 10), np.inf, np.float32)}, "not finite"),
    ],
)
def test_any_other_answer_is_not(changes: Any, why: str) -> None:
    with pytest.raises(AttemptFailed, match=why):
        checked(rule("http://edge:8000").tails[0], "7", _reply(**changes))


def test_a_breakers_pauses_double_up_to_the_longest() -> None:
    now = [0.0]
    breaker = Breaker(failures=1, pause_s=1.0, longest_s=5.0, clock=lambda: now[0])
    pauses = []
    for _ in range(100):
        breaker.failed()
        start = now[0]
        while not breaker.lets_through:
            now[0] += 0.5
        pauses.append(now[0] - start)
    assert pauses[:5] == [1.0, 2.0, 4.0, 5.0, 5.0] and pauses[-1] == 5.0
    breaker.succeeded()
    breaker.failed()
    assert breaker.is_open
    now[0] += 1.0
    assert breaker.lets_through


def test_failures_with_successes_between_do_not_open_a_breaker() -> None:
    breaker = Breaker(failures=2)
    for _ in range(10):
        breaker.failed()
        breaker.succeeded()
    assert breaker.lets_through


@pytest.mark.parametrize("url", ["http://edge:8000", "grpc://edge:8001"])
def test_without_the_client_it_is_told_what_to_install(url: str) -> None:
    code = f"""
import sys
sys.modules["tritonclient"] = None
from eecompile.diagnostics import ToolError
from eecompile.runtime.offload import Offloader
from tests.offload.networks import rule
try:
    Offloader(rule({url!r}))
except ToolError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "pip install 'eecompile[offload]'" in done.stdout

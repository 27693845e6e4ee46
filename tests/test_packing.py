"""Buffers in one block: never two at one place at the same time, and little room in between."""

from __future__ import annotations

import random
from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from eecompile.packing import ALIGNMENT, Buffer, aligned, busiest, pack

LIVES = st.tuples(st.integers(0, 1000), st.integers(0, 20), st.integers(0, 8))


def drawn_buffers(drawn: list[tuple[int, int, int]]) -> list[Buffer]:
    return [Buffer(str(i), n, at, at + life) for i, (n, at, life) in enumerate(drawn)]


@given(st.lists(LIVES, max_size=30))
def test_live_buffers_never_overlap(drawn: list[tuple[int, int, int]]) -> None:
    buffers = drawn_buffers(drawn)
    plan = pack(buffers)
    for buffer in buffers:
        assert plan.offsets[buffer.name] % ALIGNMENT == 0
        assert 0 <= plan.offsets[buffer.name] <= plan.nbytes - aligned(buffer.nbytes)
    for one, other in combinations(buffers, 2):
        low, high = plan.offsets[one.name], plan.offsets[other.name]
        apart = low + one.nbytes <= high or high + other.nbytes <= low
        assert apart or not one.meets(other)


@given(st.lists(LIVES, max_size=30))
def test_a_plan_lies_between_the_busiest_step_and_no_sharing(
    drawn: list[tuple[int, int, int]],
) -> None:
    buffers = drawn_buffers(drawn)
    by_hand = max(
        (sum(aligned(b.nbytes) for b in buffers if b.first <= t <= b.last) for t in range(30)),
        default=0,
    )
    assert busiest(buffers) == by_hand
    assert by_hand <= pack(buffers).nbytes <= sum(aligned(b.nbytes) for b in buffers)


@given(st.lists(LIVES, max_size=12))
def test_equal_buffers_give_equal_plans(drawn: list[tuple[int, int, int]]) -> None:
    buffers = drawn_buffers(drawn)
    assert pack(buffers) == pack(buffers)


def test_a_plan_that_large_buffers_first_misses_is_found() -> None:
    # With `c` at 0 and `a` above it `b`, which meets `a`, ends up over `d`: 512 bytes.
    buffers = [
        Buffer("a", 192, 3, 4),
        Buffer("b", 128, 3, 5),
        Buffer("c", 256, 1, 2),
        Buffer("d", 128, 2, 4),
    ]
    assert pack(buffers).nbytes == busiest(buffers) == 448


def test_chains_of_a_deep_network_need_no_more_than_their_busiest_step() -> None:
    rng = random.Random(0)
    buffers = [
        Buffer(str(i), rng.choice([1024, 4096, 65536]), i, i + rng.choice([1, 1, 2]))
        for i in range(1500)
    ]
    assert pack(buffers).nbytes <= 1.02 * busiest(buffers)

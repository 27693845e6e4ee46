"""Measuring: which clocks are set in which order, what is repeated, what is kept."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest

from eecompile.benching.blocks import AtClock, Block, Settings, measure_clocks
from eecompile.benching.power import Drawn
from eecompile.board import DvfsState
from eecompile.runtime.governor import NoGovernor, RecordingGovernor
from eecompile.runtime.meter import Energy
from tests.bench.parts import FAST, MIDDLE, SLOW, CountingDevice, ToldWatch

STATES = (SLOW, MIDDLE, FAST)
#: Three sweeps of 4 rounds; two medians over 2 rounds have to agree, so that 4 warm up.
SETTINGS = Settings(seconds=float("inf"), rounds=12, sweeps=3, window=2)


def quiet(done: int, total: int, what: str = "") -> None:
    """Nobody is told."""


def measure(
    states: tuple[DvfsState, ...] = STATES, watch: ToldWatch | None = None
) -> tuple[list[AtClock], RecordingGovernor, CountingDevice]:
    governor = RecordingGovernor(STATES)
    device = CountingDevice(governor)
    watch = watch or ToldWatch()
    found = measure_clocks(device, governor, states, watch, None, SETTINGS, quiet)
    return found, governor, device


def test_each_sweep_has_every_clock_once_in_an_order_of_its_own() -> None:
    _, governor, device = measure()
    order = np.random.default_rng(SETTINGS.seed)
    wanted = [STATES[i] for _ in range(3) for i in order.permutation(3)]
    assert governor.asked == [state for state, _ in groupby(wanted)]
    rounds = [f"round {(s.frequency_hz or 0) / 1e6:.0f}" for s in wanted for _ in range(4 + 4)]
    assert device.log == rounds
    assert len({tuple(wanted[i : i + 3]) for i in (0, 3, 6)}) > 1


def test_rounds_are_kept_by_clock_and_warming_up_is_not() -> None:
    found, _, _ = measure()
    assert [at.state for at in found] == list(STATES)
    for at, clock in zip(found, (600e6, 1e9, 1.5e9), strict=True):
        assert at.times_s.tolist() == [[3e3 / clock, 1e3 / clock]] * 12
        assert [block.warm_rounds for block in at.blocks] == [4, 4, 4]
        assert all(block.settled for block in at.blocks)


def test_a_clock_that_is_not_set_is_watched_as_such() -> None:
    watch = ToldWatch()
    governor = RecordingGovernor(())
    device = CountingDevice(governor)
    measure_clocks(device, NoGovernor(), (SLOW,), watch, None, SETTINGS, quiet)
    assert watch.states == [None, None, None]
    assert governor.asked == []


def test_a_disturbed_block_is_measured_again() -> None:
    watch = ToldWatch([("heat",), ("heat",)])
    found, _, _ = measure((FAST,), watch)
    (at,) = found
    assert watch.states == [FAST] * 5
    assert (at.repeated, len(at.blocks), at.disturbances) == (2, 3, ())


def test_one_that_stays_disturbed_is_left_out_where_others_are_good() -> None:
    found, _, _ = measure((FAST,), ToldWatch([("heat",)] * 3))
    (at,) = found
    assert (at.repeated, len(at.blocks), len(at.kept)) == (2, 3, 2)
    assert len(at.times_s) == 8
    assert at.disturbances == ()


def test_where_none_is_good_all_are_kept_and_say_so() -> None:
    found, _, _ = measure((FAST,), ToldWatch([("heat",)] * 9))
    (at,) = found
    assert (at.repeated, len(at.kept), at.disturbances) == (6, 3, ("heat",))


class Stubborn(RecordingGovernor):
    """Does not reach its fastest clock."""

    reason = "heat"

    def set(self, state: DvfsState) -> None:
        super().set(state)
        if state == FAST:
            self.current = None


def test_a_clock_that_is_not_reached_has_no_rounds_and_a_reason() -> None:
    governor = Stubborn(STATES)
    device = CountingDevice(governor)
    found = measure_clocks(device, governor, STATES, ToldWatch(), None, SETTINGS, quiet)
    assert [at.unreachable for at in found] == ["", "", "heat"]
    assert [len(at.blocks) for at in found] == [3, 3, 0]
    assert governor.asked.count(FAST) == 1


class Meter:
    """Tells 5 J over 2 s, every time; its third reading is lost."""

    covers = "everything"
    problems: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.log: list[str] = []

    def start(self) -> None:
        self.log.append("start")

    def stop(self) -> Energy | None:
        self.log.append("stop")
        if self.log.count("stop") == 3:
            self.problems = ("lost",)
            return None
        return Energy(5.0, 2.0, self.covers, overhead_s=0.5)


def test_power_is_that_of_each_function_alone() -> None:
    governor, meter = RecordingGovernor(STATES), Meter()
    device = CountingDevice(governor)
    (at,) = measure_clocks(device, governor, (FAST,), ToldWatch(), meter, SETTINGS, quiet)
    assert [line for line in device.log if line.startswith("repeat")] == [
        "repeat 0",
        "repeat 1",
    ] * 3
    assert meter.log == ["start", "stop"] * 6
    assert at.blocks[0].drawn == (Drawn(2.5, 2.0, 0.5), Drawn(2.5, 2.0, 0.5))
    assert at.blocks[1].drawn[0].problems == ("lost",)


def test_where_power_was_lost_once_the_other_blocks_tell_it() -> None:
    governor = RecordingGovernor(STATES)
    device = CountingDevice(governor)
    (at,) = measure_clocks(device, governor, (FAST,), ToldWatch(), Meter(), SETTINGS, quiet)
    assert at.powers_w is not None
    assert at.powers_w.tolist() == [2.5, 2.5]


def test_warming_up_goes_on_until_the_median_settles() -> None:
    class Warming(CountingDevice):
        times = (64.0, 32.0, 16.0, 8.0)

        def round(self) -> list[float]:
            super().round()
            done = len(self.log) - 1
            return [self.times[done] if done < 4 else 4.0, 0.0]

    governor = RecordingGovernor(STATES)
    device = Warming(governor)
    (at,) = measure_clocks(device, governor, (FAST,), ToldWatch(), None, SETTINGS, quiet)
    assert [block.warm_rounds for block in at.blocks] == [8, 4, 4]
    assert at.times_s.tolist() == [[4.0, 0.0]] * 12


def test_one_that_never_settles_is_told() -> None:
    class Growing(CountingDevice):
        turn = 1.0

        def round(self) -> list[float]:
            self.turn *= 1.1
            return [self.turn, self.turn]

    governor = RecordingGovernor(STATES)
    settings = Settings(seconds=float("inf"), rounds=3, sweeps=1, window=2, warm_seconds=0.0)
    device = Growing(governor)
    (at,) = measure_clocks(device, governor, (FAST,), ToldWatch(), None, settings, quiet)
    assert [block.settled for block in at.blocks] == [False]


@pytest.mark.parametrize("disturbances", [(), ("heat", "load")])
def test_an_interrupt_reaches_the_governor(disturbances: tuple[str, ...]) -> None:
    class Interrupted(CountingDevice):
        def round(self) -> list[float]:
            if len(self.log) == 5:
                raise KeyboardInterrupt
            return super().round()

    governor = RecordingGovernor(STATES)
    device = Interrupted(governor)
    watch = ToldWatch([disturbances])
    with pytest.raises(KeyboardInterrupt), governor:
        measure_clocks(device, governor, STATES, watch, None, SETTINGS, quiet)
    assert governor.restored == 1


def test_medians_and_disturbances_come_from_the_blocks_that_are_kept() -> None:
    good = Block(np.ones((3, 2)), 4, True)
    bad = Block(np.full((3, 2), 9.0), 4, True, ("load",))
    at = AtClock(FAST, [bad, good])
    assert at.times_s.max() == 1.0
    assert AtClock(FAST, [bad, bad]).disturbances == ("load",)

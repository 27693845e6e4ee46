"""This machine as a device: what it runs, and which CPUs its threads may use afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from eecompile.artifact import read_artifact
from eecompile.benching.device import LocalDevice, Placing, Repeating
from eecompile.diagnostics import CompileErrors
from eecompile.runtime.session import Session
from tests.runtime.tiny import NAMES, CountingLibrary, inputs, reference


def opened(artifact: Path, count: int = 3) -> tuple[LocalDevice, CountingLibrary]:
    library = CountingLibrary()
    session = Session(read_artifact(artifact), library=library)
    return LocalDevice(session, {"x": inputs(count)}), library


def test_a_round_runs_every_function_once_in_order_on_one_sample(artifact: Path) -> None:
    device, library = opened(artifact)
    times = device.round()
    assert library.calls == [(name, 1) for name in NAMES]
    assert len(times) == len(NAMES)
    assert all(seconds > 0 for seconds in times)


def test_samples_take_turns(artifact: Path) -> None:
    device, _ = opened(artifact, 2)
    seen = []
    for _ in range(3):
        device.round()
        seen.append(device._lane.values["logits"][0].copy())
    logits = reference(inputs(2))["logits"]
    assert np.allclose(seen, logits[[0, 1, 0]])
    assert not np.allclose(logits[0], logits[1])


def test_one_function_is_repeated_alone(artifact: Path) -> None:
    device, library = opened(artifact)
    device.round()
    library.calls.clear()
    assert device.repeat(3, 0.0) > 0
    assert library.calls == [("head_1", 1)] * 8


def test_threads_get_back_the_cpus_they_had(artifact: Path) -> None:
    before = os.sched_getaffinity(0)
    device, _ = opened(artifact)
    one = min(before)
    with device:
        device.place([one])
        assert os.sched_getaffinity(0) == {one}
    assert os.sched_getaffinity(0) == before


def test_a_cluster_this_process_may_not_use_is_refused(artifact: Path) -> None:
    before = os.sched_getaffinity(0)
    device, _ = opened(artifact)
    with device, pytest.raises(OSError, match="may not use"):
        device.place([4000])
    assert os.sched_getaffinity(0) == before


def test_it_is_what_bench_asks_for(artifact: Path) -> None:
    device, _ = opened(artifact)
    assert isinstance(device, Repeating)
    assert isinstance(device, Placing)


def test_inputs_that_do_not_fit_are_refused(artifact: Path) -> None:
    session = Session(read_artifact(artifact))
    with pytest.raises(CompileErrors, match="Expected float32"):
        LocalDevice(session, {"x": inputs(2).astype(np.float64)})

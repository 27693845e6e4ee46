"""What the documentation shows: cancelling by a timer's thread and by a signal's handler."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from eecompile.artifact import read_artifact, write_artifact
from eecompile.policies import NeverPolicy
from eecompile.runtime.session import Session
from tests.halting.test_session import Slow
from tests.runtime import tiny


def opened(folder: Path, what: Any) -> Session:
    write_artifact(folder / "out", tiny.contents())
    library = Slow("segment_0", what)
    return Session(read_artifact(folder / "out"), NeverPolicy(2), library=library)


def test_a_timer_cancels_the_call(tmp_path: Path) -> None:
    done = threading.Event()
    net = opened(tmp_path, lambda: done.wait(60))

    def cancel() -> None:
        while not net.cancel():  # Until the call has begun.
            time.sleep(0.001)
        done.set()

    timer = threading.Timer(0.001, cancel)
    timer.start()
    answer = net.run(tiny.inputs(1))
    timer.join()
    assert (answer.exit, answer.cancelled) == ("early", True)


def test_a_signal_cancels_the_call(tmp_path: Path) -> None:
    net = opened(tmp_path, lambda: signal.raise_signal(signal.SIGUSR1))
    heard: list[bool] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: heard.append(net.cancel()))
    try:
        answer = net.run(tiny.inputs(1))
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [True]
    assert (answer.exit, answer.cancelled) == ("early", True)
    expected = tiny.reference(tiny.inputs(1))["early.logits"][0]
    np.testing.assert_array_equal(answer.logits, expected)

"""Kills builds with SIGKILL at random moments: an artifact that loads is there each time.

    python -m benchmarks.kills --moments 100

An artifact stands where the build writes, as a folder and packed in turn. Half of the moments are
random ones of the whole build, half are in the milliseconds in which it writes and replaces the
artifact. After each, what is there is loaded and run, and must be the earlier one or the new one,
to the byte. At the end nothing else is left over after one more build. Ends with status 1 if not.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np

import eecompile as ee
from eecompile import demo
from eecompile.artifact import read_artifact

__all__ = ["Kills", "kill_builds", "main"]

#: Two budgets, so that each build gives another artifact than the one before.
_BUDGETS = ("accuracy drop <= 0.5 %", "accuracy drop <= 2 %")
#: How long an artifact is written at most, longer than it takes.
_WRITING_S = 0.06


@dataclass
class Kills:
    """What came of it.

    Attributes:
        during: "building" or "writing" -> builds that were killed then.
        ended: builds that were through before they could be killed.
        found: "the earlier one" or "the new one" -> times it was there after a kill.
        wrong: what should not be, in words.
    """

    during: Counter[str] = field(default_factory=Counter)
    ended: int = 0
    found: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


def kill_builds(source: Path, moments: int, cache: Path, seed: int = 0) -> Kills:
    """Kill builds of the demo's `.ee` file at so many moments, in its folder."""
    random, kills = Random(seed), Kills()
    outputs = [source.parent / "killed", source.parent / "killed.eec"]
    for output in outputs:
        begun = time.monotonic()
        _wait(_build(source, output, 0, cache))
    usual_s = time.monotonic() - begun  # The second one, which finds most of it in the cache.
    states, budgets = [_digest(output) for output in outputs], [0, 0]
    for moment in range(moments):
        which = moment % len(outputs)
        output, writing = outputs[which], moment % 4 >= 2
        # Another budget than the one of what is there: that would not be built again.
        process = _build(source, output, budgets[which] + 1, cache)
        if writing:
            _until_it_writes(process, output)
            time.sleep(random.uniform(0, _WRITING_S))
        else:
            time.sleep(random.uniform(0, usual_s))
        _kill(process, "writing" if writing else "building", kills)
        now = _check(output, states[which], moment, kills)
        budgets[which] += now != states[which]
        states[which] = now
    for which, output in enumerate(outputs):
        _wait(_build(source, output, budgets[which] + 1, cache))
        _check(output, states[which], moments + which, kills)
        left = [path.name for path in output.parent.iterdir() if path.name.startswith(".killed")]
        kills.wrong += [f"{name} is left over" for name in left]
    return kills


def _build(source: Path, output: Path, budget: int, cache: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "eecompile.cli", "build", str(source), "-o", str(output)]
    setting = f"policy.budget={_BUDGETS[budget % len(_BUDGETS)]}"
    return subprocess.Popen(
        [*command, "--set", setting, "--quiet"],
        env=os.environ | {"EECOMPILE_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def _wait(process: subprocess.Popen[bytes]) -> None:
    _, told = process.communicate()
    if process.returncode:
        raise RuntimeError(told.decode())


def _until_it_writes(process: subprocess.Popen[bytes], output: Path) -> None:
    while process.poll() is None and not list(output.parent.glob(f".{output.name}.*")):
        time.sleep(0.0005)


def _kill(process: subprocess.Popen[bytes], when: str, kills: Kills) -> None:
    """The build and everything it has started."""
    if process.poll() is None:
        kills.during[when] += 1
    else:
        kills.ended += 1
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _digest(output: Path) -> str:
    """Of everything in an artifact."""
    digest = hashlib.sha256()
    for name, data in sorted(read_artifact(output).files.items()):
        digest.update(name.encode())
        digest.update(data)
    return digest.hexdigest()


def _check(output: Path, before: str, moment: int, kills: Kills) -> str:
    """Load and run what is there; returns its digest."""
    try:
        now = _digest(output)
        with ee.load(output, governor=ee.NoGovernor()) as net:
            ((_, type_),) = net.manifest.network.inputs
            net.run(np.zeros(type_.shape, np.float32))
    except Exception as error:
        kills.wrong.append(f"moment {moment}, {output.name}: {type(error).__name__}: {error}")
        return before
    kills.found["the earlier one" if now == before else "the new one"] += 1
    return now


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill builds of the demo in a folder that is removed at the end."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--moments", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in Path(demo.__file__).parent.iterdir():
            if file.suffix in (".ee", ".onnx", ".npz"):
                shutil.copy(file, folder)
        kills = kill_builds(folder / "digits.ee", given.moments, folder / "cache", given.seed)
    during = ", ".join(f"{count} while {when}" for when, count in sorted(kills.during.items()))
    print(f"killed: {during}; {kills.ended} had ended before")
    print("there afterwards: " + ", ".join(f"{n} x {what}" for what, n in kills.found.items()))
    print("\n".join(kills.wrong) or "nothing was lost")
    return 1 if kills.wrong else 0


if __name__ == "__main__":
    sys.exit(main())

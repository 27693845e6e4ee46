"""Reads very many mutated artifacts, in processes of their own that may crash or hang.

    python -m tests.attacks.mutate --count 1000000 --jobs 2

Prints how many were accepted, refused (by ids of diagnostics) and, one line each, what should not
happen: another exception, a crash, a hang, more memory than an artifact can need. Each is told with
its number, which `--first NUMBER --count 1` reads again. Ends with status 1 if there was any.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from eecompile.artifact import read_artifact, write_artifact
from eecompile.checked_json import canonical_json
from eecompile.manifest import Manifest, Member
from eecompile.signatures import Signature
from tests.attacks.mutations import Mutator, outcome
from tests.runtime import tiny

__all__ = ["good_files", "main", "tiny_artifact"]

_GOLDEN = Path(__file__).parents[1] / "golden"
_SECONDS = 20  #: a hang: reading takes a millisecond
_BYTES = 4 << 30  #: of memory of a reading process
_BLOCK = 1000


def good_files(path: Path) -> dict[str, bytes]:
    """Files of an artifact that can be read, small enough to be read thousands of times a second.

    What its code and weights are does not matter to reading; both are cut off after 1000 bytes.
    """
    artifact = read_artifact(path, must_run=False)
    files = {name: bytes(data) for name, data in artifact.files.items()}
    for name in ("kernels.so", "weights.bin"):
        files[name] = files[name][:1000]
    members = {
        name: Member(hashlib.sha256(files[name]).hexdigest(), len(files[name]), member.measured)
        for name, member in artifact.manifest.members.items()
    }
    manifest: Manifest = replace(artifact.manifest, members=members)
    files["manifest.json"] = canonical_json(manifest.to_json())
    files["signature.json"] = Signature("1" * 64, bytes(64)).to_bytes()
    return files


def tiny_artifact(folder: Path) -> Path:
    """One with the smallest network, and a text of segments that can be read."""
    text = (_GOLDEN / "plain-x86-64-v5" / "segments.txt").read_text()
    write_artifact(folder / "tiny", tiny.contents(segments_text=text))
    return folder / "tiny"


def _read_all(results: Connection, base: Path, numbers: range) -> None:
    """In a process of its own: what came of each number, one message each."""
    resource.setrlimit(resource.RLIMIT_AS, (_BYTES, _BYTES))
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        warnings.simplefilter("ignore")  # a mutation puts one name twice into a ZIP file
        mutator = Mutator(good_files(base), Path(folder))
        for number in numbers:
            path = mutator.path(number)
            signal.alarm(_SECONDS)
            try:
                found = outcome(path, number % 5 == 0)
            except BaseException:
                found = "BUG " + traceback.format_exc()
            signal.alarm(0)
            results.send((number, found))


def _block(base: Path, numbers: range, counts: Counter[str]) -> list[str]:
    """Reads a block of numbers; a process that ends early is a bug, and the next one goes on."""
    bugs: list[str] = []
    while numbers:
        own, theirs = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.Process(target=_read_all, args=(theirs, base, numbers))
        process.start()
        theirs.close()
        try:
            while True:
                number, found = own.recv()
                numbers = range(number + 1, numbers.stop)
                if found.startswith("BUG"):
                    bugs.append(f"{base.name} {number}: {found}")
                else:
                    counts[found] += 1
        except EOFError:
            process.join()
        if numbers:
            how = "hangs" if process.exitcode == -signal.SIGALRM else "ends the process"
            bugs.append(f"{base.name} {numbers.start}: {how} ({process.exitcode})")
            numbers = range(numbers.start + 1, numbers.stop)
    return bugs


def _task(base: Path, numbers: range, end: float) -> tuple[list[str], Counter[str]]:
    counts: Counter[str] = Counter()
    return (_block(base, numbers, counts) if time.monotonic() < end else []), counts


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the numbers asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="at most")
    parser.add_argument(
        "artifacts",
        nargs="*",
        type=Path,
        help="good ones (default: a tiny and the golden ones)",
    )
    given = parser.parse_args(arguments)
    folder = tempfile.TemporaryDirectory()
    golden = sorted(_GOLDEN.glob("*x86-64-v?"))
    bases = given.artifacts or [tiny_artifact(Path(folder.name)), *golden]
    stop = given.first + given.count
    blocks = [
        (bases[start // _BLOCK % len(bases)], range(start, min(start + _BLOCK, stop)))
        for start in range(given.first, stop, _BLOCK)
    ]
    counts: Counter[str] = Counter()
    bugs: list[str] = []
    begun = time.monotonic()
    # Threads that only wait: each has one process at a time that reads.
    with ThreadPoolExecutor(given.jobs) as pool:
        end = begun + given.seconds
        for task in [pool.submit(_task, *block, end) for block in blocks]:
            found, own = task.result()
            counts.update(own)
            bugs += found
            for bug in found:
                print(bug, flush=True)
    taken, done = time.monotonic() - begun, sum(counts.values()) + len(bugs)
    for name, count in counts.most_common():
        print(f"{count:9d}  {name}")
    print(
        f"{done} mutated artifacts in {taken:.0f} s, {done / taken:.0f} a second: {len(bugs)} bugs"
    )
    return 1 if bugs else 0


if __name__ == "__main__":
    # From a process that has imported everything and runs no threads.
    multiprocessing.set_start_method("forkserver")
    multiprocessing.set_forkserver_preload(["tests.attacks.mutations", "tests.runtime.tiny"])
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())

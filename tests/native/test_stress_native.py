"""The native runtime under stress: threads, forks, damaged plans; with sanitizers and valgrind.

Longer, by hand: the programs' own descriptions say what they take.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from eecompile.artifact import write_artifact
from tests.native import networks

HERE = Path(__file__).parent
STRESS, STEADY, FUZZ = (
    HERE / f"{name}.c" for name in ("session_stress", "session_steady", "plan_fuzz")
)
ALLOCATING = ("malloc", "calloc", "realloc", "aligned_alloc", "free")
FORMS = {
    "plain": ["-O0"],
    "address": ["-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-O0", "-fsanitize=thread"],
}
MAINS: dict[str, dict[Path, list[str]]] = {
    "plain": {STRESS: [], STEADY: [f"-Wl,--wrap={name}" for name in ALLOCATING]},
    "address": {STRESS: [], FUZZ: []},
    "thread": {STRESS: []},
}
VALGRIND = shutil.which("valgrind")

#: Form -> programs by name.
Build = Callable[[str], dict[str, Path]]


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plans")
    for name in networks.SOURCES:
        networks.write_members(folder, name)
        write_artifact(folder / f"{name}.eec", networks.contents(name))
    return folder


@pytest.fixture(scope="module")
def built(compiler: str, tmp_path_factory: pytest.TempPathFactory) -> Build:
    made: dict[str, dict[str, Path]] = {}

    def build(form: str) -> dict[str, Path]:
        if form not in made:
            folder = tmp_path_factory.mktemp(form)
            (folder / "empty.c").write_text("int main(void) { return 0; }")
            command = [compiler, *FORMS[form], "-o", "empty", "empty.c"]
            probe = subprocess.run(command, cwd=folder, capture_output=True, check=False)
            if probe.returncode or subprocess.run([folder / "empty"], check=False).returncode:
                pytest.skip(f"the compiler has no sanitizer that runs here: {form}")
            made[form] = networks.programs(compiler, folder, MAINS[form], FORMS[form])
        return made[form]

    return build


def run(*command: object, output: str = "") -> None:
    """Ends with 0, and says that."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, output, "")


@pytest.mark.parametrize(
    ("form", "rounds", "forks"), [("plain", 1000, 10), ("address", 400, 5), ("thread", 250, 0)]
)
def test_threads_with_many_sessions_get_the_answers_of_one(
    built: Build, plans: Path, form: str, rounds: int, forks: int
) -> None:
    run(built(form)["session_stress"], plans, 8, 8, rounds, 1, forks)


@pytest.mark.skipif(VALGRIND is None, reason="no valgrind (Debian: apt install valgrind)")
def test_valgrind_sees_no_error_and_nothing_lost(built: Build, plans: Path) -> None:
    program, quiet = built("plain")["session_stress"], ("-q", "--error-exitcode=9")
    # A forked child has none of the other threads: what only their stacks knew is lost there.
    run(VALGRIND, *quiet, "--leak-check=no", program, plans, 3, 3, 30, 2, 1)
    leaks = ("--leak-check=full", "--show-leak-kinds=definite", "--errors-for-leak-kinds=definite")
    run(VALGRIND, *quiet, *leaks, program, plans, 3, 3, 30, 2, 0)


def test_nothing_is_allocated_and_nothing_grows_after_opening(built: Build, plans: Path) -> None:
    run(built("plain")["session_steady"], plans, 50_000)


@pytest.mark.parametrize("seed", [1, 2])
def test_damaged_plans_are_refused_or_do_no_harm(built: Build, plans: Path, seed: int) -> None:
    command = [str(built("address")["plan_fuzz"]), str(plans), str(seed), "3000"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    tried, accepted = map(int, done.stdout.split())
    assert tried == 3000 and 300 < accepted < 2000, "most is refused, and much is used"

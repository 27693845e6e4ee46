"""No kernel reads or writes outside its tensors, or uses what nothing wrote: valgrind says so."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("tvm")
from eecompile.hardware import machine
from eecompile.ir import Graph
from eecompile.targets.lowering import compile_functions
from tests.lowering.cases import ODD, renamed

VALGRIND = shutil.which("valgrind")
COMPILER = shutil.which("cc")

pytestmark = [
    pytest.mark.skipif(VALGRIND is None, reason="no valgrind (Debian: apt install valgrind)"),
    pytest.mark.skipif(COMPILER is None, reason="no C compiler (Debian: apt install gcc)"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="kernels for x86-64 run on it only"),
]


@pytest.fixture(scope="session")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that calls functions with tensors of exactly their size."""
    program = tmp_path_factory.mktemp("exact") / "exact"
    source = Path(__file__).parent / "exact.c"
    subprocess.run(
        [str(COMPILER), "-O1", "-g", "-o", str(program), str(source), "-ldl"], check=True
    )
    return program


@pytest.mark.parametrize("target", ["x86-64", "x86-64-v3"])
def test_kernels_stay_within_their_tensors(target: str, exact: Path, tmp_path: Path) -> None:
    done = _checked(exact, list(ODD.values()), target, tmp_path)
    assert done.returncode == 0, done.stderr[:4000]
    assert done.stdout.startswith(f"{len(ODD)} calls, ")


def test_a_tensor_that_is_too_small_is_reported(exact: Path, tmp_path: Path) -> None:
    done = _checked(exact, [ODD["dense 3x5"]], "x86-64", tmp_path, short=4)
    assert done.returncode == _REPORTED
    assert "Invalid write of size" in done.stderr


#: What valgrind exits with where it has seen an error.
_REPORTED = 9


def _checked(
    exact: Path, graphs: list[Graph], target: str, folder: Path, short: int = 0
) -> subprocess.CompletedProcess[str]:
    """Valgrind's verdict on one call of each graph, whose outputs lack their last `short` bytes."""
    where = machine(target)
    if not where.is_native:
        pytest.skip(f"this processor lacks what {target} needs")
    # Every value in the kernels' layout, so that no copy at the border hides where one ends.
    parts = [renamed(graph, f"case{index}") for index, graph in enumerate(graphs)]
    compiled = compile_functions(parts, where, plain=())
    calls = []
    for function in compiled.functions:
        inputs = [type_.nbytes for _, type_ in function.inputs]
        outputs = [type_.nbytes - short for _, type_ in function.outputs]
        memory = function.workspace_bytes + function.private_bytes
        line = [function.symbol, memory, len(inputs), *inputs, len(outputs), *outputs]
        calls.append(" ".join(map(str, line)))
    (folder / "kernels.so").write_bytes(compiled.library)
    (folder / "weights").write_bytes(compiled.weights.tobytes())
    (folder / "calls").write_text("\n".join(calls))
    options = ["--quiet", f"--error-exitcode={_REPORTED}", "--partial-loads-ok=no"]
    files = [str(folder / name) for name in ("kernels.so", "weights", "calls")]
    command = [str(VALGRIND), *options, str(exact), *files]
    return subprocess.run(command, capture_output=True, text=True, check=False)

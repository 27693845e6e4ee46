"""No kernel reads or writes outside its tensors, or uses what nothing wrote: valgrind says so."""

from __future__ import annotations

import platform
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("tvm")
from eecompile.hardware import machine
from eecompile.ir import Graph
from eecompile.targets.lowering import compile_functions
from tests.lowering.cases import conv, matmul, pool, rows

VALGRIND = shutil.which("valgrind")
COMPILER = shutil.which("cc")

pytestmark = [
    pytest.mark.skipif(VALGRIND is None, reason="no valgrind (Debian: apt install valgrind)"),
    pytest.mark.skipif(COMPILER is None, reason="no C compiler (Debian: apt install gcc)"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="kernels for x86-64 run on it only"),
]

#: Shapes whose every dimension leaves something over, and the smallest there are.
ODD: dict[str, Graph] = {
    "channels that fill no vector": conv(3, 5, 9, 3),
    "channels that fill vectors but one": conv(16, 31, (5, 11), 3),
    "one pixel": conv(19, 21, 1, 3),
    "one pixel, 1x1": conv(7, 33, 1, 1),
    "1x1 with a residual sum": conv(12, 20, 7, 1, residual=True),
    "1x1 with strides": conv(16, 24, 7, 1, stride=2),
    "strides": conv(8, 24, 7, 3, stride=2, residual=True),
    "strides wider than the window": conv(8, 8, 11, 2, stride=3, pad=0),
    "dilation": conv(8, 16, 9, 3, dilation=2),
    "7x7 window of 3 channels": conv(3, 16, 15, 7, stride=2),
    "padding wider than the picture": conv(4, 8, 2, 7),
    "groups": conv(12, 18, 7, 3, group=3),
    "groups of whole vectors": conv(32, 32, 6, 3, group=2),
    "Winograd, whole tiles": conv(32, 32, 8, 3),
    "Winograd, tiles cut off": conv(32, 32, 7, 3, residual=True),
    "Winograd, deep": conv(64, 48, (7, 13), 3),
    "depthwise": conv(24, 24, 7, 3, group=24),
    "depthwise with a tail": conv(21, 21, 9, 3, group=21, residual=True),
    "depthwise with strides": conv(16, 16, 9, 5, group=16, stride=2),
    "depthwise, one pixel": conv(17, 17, 1, 3, group=17),
    "dense 3x5": matmul(3, 5, 7),
    "dense, one row": matmul(1, 37, 19),
    "dense, one column": matmul(9, 16, 1),
    "dense, whole tiles": matmul(32, 16, 32),
    "computed matrices": matmul(7, 9, 13, batch=2, constant=False),
    "computed matrices, one row": matmul(1, 16, 16, constant=False),
    "softmax of 5": rows("softmax", 3, 5),
    "softmax of 37": rows("softmax", 2, 37),
    "norm of 19": rows("norm", 5, 19),
    "element by element": rows("sigmoid", 3, 11),
    "mean of rows": rows("mean", 5, 29),
    "mean of columns": rows("first mean", 5, 29),
    "transpose": rows("transpose", 13, 21),
    "largest of windows": pool("MaxPool", 19, 7, 3, 2),
    "mean of windows": pool("AveragePool", 33, 6, 3, 1),
}


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
    parts = [_renamed(graph, f"case{index}") for index, graph in enumerate(graphs)]
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


def _renamed(graph: Graph, prefix: str) -> Graph:
    """The graph under another name, with values of its own: names are shared between graphs."""

    def name(value: str) -> str:
        return f"{prefix}.{value}" if value else value

    ops = tuple(
        replace(op, inputs=tuple(map(name, op.inputs)), outputs=tuple(map(name, op.outputs)))
        for op in graph.ops
    )
    return Graph(
        prefix,
        tuple(map(name, graph.inputs)),
        tuple(map(name, graph.outputs)),
        ops,
        {name(key): value for key, value in graph.constants.items()},
        {name(key): value for key, value in graph.types.items()},
    )

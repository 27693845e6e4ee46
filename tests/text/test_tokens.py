"""Ids and masks in graphs: which numbers they may be, where exits can stand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eecompile.datasets import open_dataset
from eecompile.diagnostics import CompileErrors
from eecompile.ir import TensorType
from eecompile.passes.index_limits import index_limits
from eecompile.passes.propose_points import propose_points
from eecompile.spec import DataSet, DataSource, Spec
from eecompile.text import parse_graph
from tests.helpers import TextHost

TOKENS = TensorType("int64", (1, 4))


def test_the_smallest_table_that_ids_reach_limits_them() -> None:
    graph = parse_graph(
        """graph net(ids: int64[1, 4], other: int64[1, 4]) -> (y: float32[1, 2, 8]) {
            const large: float32[90, 8] = random(0)
            const small: float32[30, 8] = random(1)
            const place: int64[1, 4] = [0, 1, 2, 3]
            const places: float32[4, 8] = random(2)
            a: float32[1, 4, 8] = Gather(large, ids; axis=0)
            p: float32[1, 4, 8] = Gather(places, place; axis=0)
            b: float32[1, 4, 8] = Add(a, p)
            some: int64[1, 2] = Slice(ids; axes=(1,), starts=(0,), ends=(2,), steps=(1,))
            moved: int32[1, 2] = Cast(some; to="int32")
            c: float32[1, 2, 8] = Gather(small, moved; axis=0)
            part: float32[1, 2, 8] = Slice(b; axes=(1,), starts=(0,), ends=(2,), steps=(1,))
            y: float32[1, 2, 8] = Add(part, c)
        }"""
    )
    assert index_limits(graph, "ids") == (-30, 29)
    assert index_limits(graph, "other") is None


def test_numbers_that_are_calculated_with_are_not_limited() -> None:
    graph = parse_graph(
        """graph net(ids: int64[1, 4]) -> (y: float32[1, 4, 8]) {
            const table: float32[30, 8] = random(1)
            const rest: int64[1] = [1000]
            less: int64[1, 4] = Sub(ids, rest)
            y: float32[1, 4, 8] = Gather(table, less; axis=0)
        }"""
    )
    assert index_limits(graph, "ids") is None


def masked(layers: int) -> str:
    """Layers with a shortcut that read a mask made from the input; the last ends without it."""
    lines = [
        "graph net(x: float32[1, 8], m: float32[1, 8]) -> (y: float32[1, 8]) {",
        "const w: float32[8, 8] = random(0)",
        "mask: float32[1, 8] = Neg(m)",
    ]
    last = "x"
    for i in range(layers):
        lines += [
            f"a{i}: float32[1, 8] = MatMul({last}, w) @ layer.{i}.attention",
            f"b{i}: float32[1, 8] = Mul(a{i}, mask) @ layer.{i}.attention",
            f"c{i}: float32[1, 8] = Add(b{i}, {last}) @ layer.{i}.norm",
            f"d{i}: float32[1, 8] = MatMul(c{i}, w) @ layer.{i}.dense",
            f"e{i}: float32[1, 8] = Add(d{i}, c{i}) @ layer.{i}",
        ]
        last = f"e{i}"
    return "\n".join([*lines, f"y: float32[1, 8] = Tanh({last}) @ head", "}"])


def test_exits_are_proposed_after_layers_that_read_a_mask() -> None:
    """Only behind the last mask does everything go through single values."""
    host = TextHost(masked(4))
    found = propose_points(host.graph(), host.points(), "y", 8)
    assert [c.value for c in found] == ["e0", "e1", "e2"]


def opened(folder: Path, ids: np.ndarray, limits: tuple[int, int] | None = None) -> np.ndarray:
    np.savez(folder / "d.npz", images=ids, labels=np.zeros(len(ids), np.int64))
    data = DataSet("d", test=DataSource("d.npz"))
    spec = Spec(data=(data,), folder=str(folder))
    dataset = open_dataset(spec, data, "test", TOKENS, 2, limits)
    assert dataset is not None
    return np.concatenate([images for images, _ in dataset.batches()])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint64])
def test_ids_of_any_integer_type_are_read_as_they_are(dtype: type, tmp_path: Path) -> None:
    ids: np.ndarray = np.array([[0, 1, 29, 0], [7, 7, 7, 7]], dtype)
    found = opened(tmp_path, ids, (-30, 29))
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, ids)


@pytest.mark.parametrize(
    ("ids", "limits", "message", "help"),
    [
        ([[0, 1, 2, 30]], (-30, 29), "A value outside -30 to 29 in sample 0", ""),
        ([[0, 1, 2, 3], [0, -31, 0, 0]], (-30, 29), "outside -30 to 29 in sample 1", ""),
        ([[0, 1, 2]], None, "found int64[3]", "make every sample as long as the input: 4"),
        ([[0.0, 1, 2, 3]], None, "for int64, found float64", "`x.astype('int64')`"),
    ],
)
def test_what_is_no_token_is_refused(
    ids: list[list[float]],
    limits: tuple[int, int] | None,
    message: str,
    help: str,
    tmp_path: Path,
) -> None:
    with pytest.raises(CompileErrors) as raised:
        opened(tmp_path, np.array(ids), limits)
    (diagnostic,) = raised.value.diagnostics
    assert message in diagnostic.message
    assert help in diagnostic.help
    assert "layout" not in diagnostic.help

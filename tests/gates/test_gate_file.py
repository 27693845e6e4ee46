"""The file of trained gates: what is written is read, and what does not fit is told."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from eecompile.diagnostics import CompileErrors, Diagnostics
from eecompile.gates import (
    GateFile,
    GatePlan,
    initial_parameters,
    parameter_shapes,
    read_gates,
    write_gates,
)
from eecompile.passes.plan_gates import plan_gates
from eecompile.spec import HeadSpec, Model, Skip
from tests.gates.networks import host


def plan(*skips: tuple[str, str, str, int]) -> GatePlan:
    chosen = tuple(
        Skip("layers" if what == "layers" else "channels", point, HeadSpec(kind, options))
        for what, point, kind, groups in skips
        for options in [{"groups": groups} if groups else {}]
    )
    found = Diagnostics()
    made = plan_gates(Model("net", "onnx", "", skips=chosen), host(), found)
    found.raise_errors()
    return made


BOTH = (("layers", "a.*", "recurrent", 0), ("channels", "a.*.conv1", "squeeze", 2))


def written(path: Path, made: GatePlan) -> GateFile:
    weights = {"conv1.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}
    trained = {"target": 0.75, "calibrate": {"accuracy": 0.9}}
    file = GateFile.of(made, initial_parameters(made, 3), weights, trained)
    write_gates(path, file)
    return file


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made = plan(*BOTH)
    file = written(tmp_path / "net.gates.npz", made)
    found = read_gates(tmp_path / "net.gates.npz", made)
    assert found.gates == file.gates and found.trained == file.trained
    for ours, theirs in ((file.parameters, found.parameters), (file.weights, found.weights)):
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            np.testing.assert_array_equal(theirs[name], array)
    assert found.parameters.keys() == parameter_shapes(made).keys()


def test_numpy_reads_the_file_without_pickles_and_equal_files_are_equal(tmp_path: Path) -> None:
    made = plan(*BOTH)
    written(tmp_path / "a.npz", made)
    written(tmp_path / "b.npz", made)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert "gates.shared.input_weight" in arrays
        assert arrays["weights.conv1.weight"].shape == (2, 3)


def refusal(path: Path, made: GatePlan) -> str:
    with pytest.raises(CompileErrors) as raised:
        read_gates(path, made)
    (diagnostic,) = raised.value.diagnostics
    return diagnostic.full().replace(str(path), "FILE")


@pytest.mark.parametrize(
    ("now", "note"),
    [
        (BOTH[:1], "it holds a gate `a.0.conv1`, and the model has none there"),
        ((BOTH[0], ("channels", "a.*", "squeeze", 2)), None),
        ((BOTH[0], ("channels", "a.*.conv*", "squeeze", 2)), "it holds no gate `a.0.conv2`"),
        (
            (("layers", "a.*", "feedforward", 0), BOTH[1]),
            "its gate `a.0` has kind `recurrent`, the model has `feedforward`",
        ),
        (
            (BOTH[0], ("channels", "a.*.conv1", "squeeze", 4)),
            "its gate `a.0.conv1` has outputs (a.0.conv1.channels: 2), "
            "the model has (a.0.conv1.channels: 4)",
        ),
    ],
)
def test_gates_of_another_model_are_told(
    tmp_path: Path, now: tuple[tuple[str, str, str, int], ...], note: str | None
) -> None:
    written(tmp_path / "net.gates.npz", plan(*BOTH))
    if note is None:
        with pytest.raises(CompileErrors):
            plan(*now)
        return
    told = refusal(tmp_path / "net.gates.npz", plan(*now))
    assert told.startswith(
        "error[wrong-gates]: Gates file `FILE` is of other gates than the model has"
    )
    assert f"= note: {note}" in told


def test_wrong_and_missing_parameters_are_told(tmp_path: Path) -> None:
    made, path = plan(*BOTH), tmp_path / "net.gates.npz"
    parameters = initial_parameters(made, 0)
    parameters["gates.a.0.embedding_weight"] = np.zeros((5, 10), np.float32)
    del parameters["gates.shared.keep_weight"]
    write_gates(path, GateFile.of(made, parameters))
    told = refusal(path, made)
    assert "= note: `gates.shared.keep_weight` is missing in it" in told
    assert (
        "= note: `gates.a.0.embedding_weight` is float32[5, 10] in it, "
        "the model needs float32[4, 10]" in told
    )


def test_gates_that_the_build_fits_need_not_be_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "net.gates.npz"
    trained = ("layers", "a.0", "recurrent", 0)
    written(path, plan(trained))
    assert list(read_gates(path, plan(trained, ("layers", "a.2", "fitted", 0))).gates) == ["a.0"]


def test_damaged_files_are_told(tmp_path: Path) -> None:
    made, path = plan(*BOTH), tmp_path / "net.gates.npz"
    assert "there is no such file" in refusal(path, made)
    written(path, made)
    whole = path.read_bytes()
    for at in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:at])
        assert "error[bad-gates]: Gates file `FILE` cannot be read: it is damaged" in refusal(
            path, made
        )
    middle = whole.index(b"gates.shared.input_weight.npy") + 300
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    assert "Bad CRC-32" in refusal(path, made)
    directory = whole.rindex(b"PK\x01\x02")
    encrypted = bytearray(whole)
    encrypted[directory + 8] |= 1
    path.write_bytes(encrypted)
    assert "is encrypted" in refusal(path, made)
    np.savez_compressed(path, a=np.arange(3000))
    compressed = bytearray(path.read_bytes())
    compressed[60:90] = b"\xff" * 30
    path.write_bytes(compressed)
    assert "Error -3 while decompressing" in refusal(path, made)
    np.savez(path, weights=np.zeros(3))
    assert "`eecompile train` did not write it" in refusal(path, made)
    np.savez(path, a=np.array([{}], dtype=object))
    assert "Object arrays cannot be loaded" in refusal(path, made)


def test_numbers_that_are_none_and_other_versions_are_refused(tmp_path: Path) -> None:
    made, path = plan(*BOTH), tmp_path / "net.gates.npz"
    parameters = initial_parameters(made, 0)
    parameters["gates.shared.keep_weight"] = np.full(1, np.nan, np.float32)
    write_gates(path, GateFile.of(made, parameters))
    assert "`gates.shared.keep_weight` holds what is no finite number" in refusal(path, made)
    for wrong, told in (
        (b'{"format": "eecompile-gates", "version": 2}', "it has version 2"),
        (b'{"format": "other", "version": 1}', "it is of another format"),
        (b"{", "it is no JSON"),
    ):
        np.savez(path, meta=np.frombuffer(wrong, np.uint8))
        assert told in refusal(path, made)


def test_a_failed_write_leaves_the_earlier_file(tmp_path: Path) -> None:
    made, path = plan(*BOTH), tmp_path / "net.gates.npz"
    written(path, made)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_gates(path, GateFile.of(made, {}, {}, {"target": object()}))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert zipfile.is_zipfile(path)

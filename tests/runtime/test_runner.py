"""The runner computes what is asked for, whole and in bounded memory."""

from __future__ import annotations

import gc
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eecompile.diagnostics import CompileErrors, InternalError
from eecompile.ir import TensorType
from eecompile.manifest import Normalization
from eecompile.runtime.inputs import normalized
from eecompile.runtime.library import Library
from eecompile.runtime.runner import Runner, chunk_size
from tests.runtime import tiny


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_value_of_every_sample(count: int, threads: int) -> None:
    runner = Runner.of(Library(tiny.machine_code(), tiny.WEIGHTS), tiny.network())
    x = tiny.inputs(count)
    expected = tiny.reference(x)
    found = runner.run_all(x, tuple(expected), threads)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_only_what_is_needed_runs() -> None:
    library = tiny.CountingLibrary()
    runner = Runner.of(library, tiny.network())
    runner.run_all(tiny.inputs(3), ["late.class_means"])
    assert library.calls == [("segment_0", 3), ("segment_1", 3), ("comparator_1", 3)]


def test_a_runner_serves_again_with_other_outputs_and_sizes() -> None:
    runner = Runner.of(Library(tiny.machine_code(), tiny.WEIGHTS), tiny.network())
    for count, names in ((5, ["a"]), (100, ["logits", "a"]), (7, ["b"]), (100, ["b"])):
        x = tiny.inputs(count, seed=count)
        for name, array in runner.run_all(x, names).items():
            np.testing.assert_array_equal(array, tiny.reference(x)[name])


def test_samples_of_different_numbers_are_refused() -> None:
    network = tiny.network()
    other = ("y", TensorType("float32", (1, 2)))
    runner = Runner(
        Library(tiny.machine_code(), tiny.WEIGHTS), (*network.inputs, other), network.functions()
    )
    given = {"x": tiny.inputs(3), "y": np.zeros((2, 2), np.float32)}
    with pytest.raises(CompileErrors, match=r"different numbers of samples: \[2, 3\]"):
        runner.run_all(given, ["a"])
    with pytest.raises(CompileErrors, match="The network has 2 inputs, one array was given"):
        runner.run_all(tiny.inputs(3), ["a"])


def test_values_that_are_not_there_are_our_bug() -> None:
    library, network = Library(tiny.machine_code(), tiny.WEIGHTS), tiny.network()
    functions = network.functions()
    with pytest.raises(InternalError, match="segment_1 reads a, which is not there"):
        Runner(library, network.inputs, functions[2:])
    with pytest.raises(InternalError, match="segment_0 computes a again"):
        Runner(library, network.inputs, functions[:1] * 2)
    with pytest.raises(InternalError, match="no function computes z"):
        Runner.of(library, network).run_all(tiny.inputs(1), ["z"])


def test_missing_function_is_named() -> None:
    network = tiny.network()
    functions = (replace(network.functions()[0], symbol="segment_9"),)
    with pytest.raises(CompileErrors, match="has no function `segment_9`"):
        Runner(Library(tiny.machine_code(), tiny.WEIGHTS), network.inputs, functions)


def test_code_that_is_no_library_is_refused() -> None:
    with pytest.raises(CompileErrors, match="cannot be loaded"):
        Library(b"not a library", tiny.WEIGHTS)


def test_libraries_do_not_take_each_others_place() -> None:
    # The dynamic loader knows a library by its path; ours have none of their own.
    first = Library(tiny.machine_code(), tiny.WEIGHTS)
    second = Library(tiny.machine_code(), tiny.WEIGHTS)
    runner = Runner.of(first, tiny.network())
    runner.run_all(tiny.inputs(1), ["a"])
    assert tiny.counters(first)["segment_0"][0] == 1
    assert tiny.counters(second)["segment_0"][0] == 0
    del first, runner
    third = Library(tiny.machine_code(), tiny.WEIGHTS)
    assert tiny.counters(third)["segment_0"][0] == 0


def test_weights_are_aligned_whatever_is_given() -> None:
    raw = np.zeros(100, np.uint8)[1:65]
    raw[:16] = tiny.WEIGHTS.view(np.uint8)
    library = Library(tiny.machine_code(), raw)
    assert library.weights.ctypes.data % 64 == 0
    x = tiny.inputs(2)
    found = Runner.of(library, tiny.network()).run_all(x, ["a"])["a"]
    np.testing.assert_array_equal(found, tiny.reference(x)["a"])


def test_large_values_pass_in_small_chunks() -> None:
    large = [("x", TensorType("float32", (1, 1 << 22)))]
    assert chunk_size(large, []) == 4
    assert chunk_size([("x", TensorType("float32", (1, 1 << 30)))], []) == 1
    assert chunk_size([("x", TensorType("float32", (1, 4)))], []) == 64


@pytest.mark.parametrize("layout", ["channels last", "channels first", "one image"])
def test_images_are_normalised_by_channel(layout: str) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 6, 4, 3), dtype=np.uint8)
    how = Normalization((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    mean, std = np.array(how.mean, np.float32), np.array(how.std, np.float32)
    expected = np.moveaxis((images.astype(np.float32) / 255 - mean) / std, -1, 1)
    given = {
        "channels last": images,
        "channels first": np.moveaxis(images, -1, 1),
        "one image": images[0],
    }[layout]
    found = normalized(given, TensorType("float32", (1, 3, 6, 4)), how)
    np.testing.assert_allclose(found, expected[: len(found)], rtol=1e-6)
    assert len(found) == (1 if layout == "one image" else 5)


def test_only_integers_are_scaled() -> None:
    how, type_ = Normalization((0.5,), (0.25,)), TensorType("float32", (1, 2))
    raw = np.array([[0, 255]], np.uint8)
    np.testing.assert_array_equal(normalized(raw, type_, how), [[-2, 2]])
    np.testing.assert_array_equal(normalized(raw / np.float32(255), type_, how), [[-2, 2]])


def test_gray_images_get_their_channel() -> None:
    images = np.zeros((5, 28, 28), np.uint8)
    how = Normalization((0.5,), (0.5,))
    for shape in ((1, 1, 28, 28), (1, 28, 28, 1)):
        found = normalized(images, TensorType("float32", shape), how)
        assert found.shape == (5, *shape[1:]) and (found == -1).all()
    with pytest.raises(CompileErrors, match="Expected images for"):
        normalized(images, TensorType("float32", (1, 3, 28, 28)), how)


def test_systems_without_memory_files_load_from_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.memfd_create")
    runner = Runner.of(Library(tiny.machine_code(), tiny.WEIGHTS), tiny.network())
    x = tiny.inputs(3)
    np.testing.assert_array_equal(runner.run_all(x, ["b"])["b"], tiny.reference(x)["b"])


def test_code_is_unloaded_and_its_handle_closed_when_nothing_needs_it() -> None:
    def held() -> tuple[int, int]:
        gc.collect()
        mapped = Path("/proc/self/maps").read_text().count("eecompile-kernels")
        return len(os.listdir("/proc/self/fd")), mapped

    before = held()
    for _ in range(5):
        library = Library(tiny.machine_code(), tiny.WEIGHTS)
        Runner.of(library, tiny.network()).run_all(tiny.inputs(1), ["a"])
        del library
    assert held() == before

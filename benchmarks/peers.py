"""The sides of the kernel benchmark: our compiled network and what others make of the same one.

Every side runs float32 on a given number of threads and keeps its other defaults.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from eecompile.hardware import machine
from eecompile.passes.onnx_host import load_onnx
from eecompile.targets.loaded import LoadedLibrary
from eecompile.targets.lowering import CompiledLibrary, compile_functions

__all__ = [
    "OURS",
    "PEERS",
    "Side",
    "Subject",
    "Unavailable",
    "compile_file",
    "ours",
    "relative_error",
]

#: What the benchmark calls our side.
OURS = "eecompile"


class Unavailable(Exception):
    """A peer cannot run here; says why."""


@dataclass(frozen=True)
class Subject:
    """A network as all sides get it: as a module, as an ONNX file, and one input."""

    name: str
    model: nn.Module
    path: Path
    x: np.ndarray

    def exact(self) -> np.ndarray:
        """The answer in float64."""
        try:
            with torch.no_grad():
                answer: np.ndarray = self.model.double()(torch.from_numpy(self.x).double()).numpy()
        finally:
            self.model.float()
        return answer


@dataclass(frozen=True)
class Side:
    """A call without arguments, and the answer it gives."""

    call: Callable[[], object]
    answer: np.ndarray


def relative_error(found: np.ndarray, exact: np.ndarray) -> float:
    """The largest difference over the largest element.

    >>> relative_error(np.array([1.0, 4.1]), np.array([[1.0, 4.0]]))
    0.025
    """
    found = found.reshape(exact.shape)
    return round(float(np.abs(found - exact).max() / np.abs(exact).max()), 12)


def compile_file(path: Path, **options: Any) -> tuple[CompiledLibrary, float]:
    """Reads and compiles an ONNX file for this machine: the library, seconds it took."""
    begun = time.perf_counter()
    graph = load_onnx(path).graph()
    plain = (*graph.inputs, *graph.outputs)
    compiled = compile_functions([graph], machine("host"), plain=plain, **options)
    return compiled, time.perf_counter() - begun


def ours(compiled: CompiledLibrary, subject: Subject, threads: int) -> Side:
    """The compiled network."""
    loaded = LoadedLibrary(compiled, threads)
    call, (answer,) = loaded.bind(compiled.functions[0].symbol, [subject.x])
    if call():
        raise SystemExit(f"{subject.name}: the compiled network failed")

    def alive() -> object:
        return call() if loaded else None  # the library must live as long as its code is called

    return Side(alive, answer.copy())


def _onnxruntime(subject: Subject, threads: int) -> Side:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(
        str(subject.path), options, providers=["CPUExecutionProvider"]
    )
    feed = {session.get_inputs()[0].name: subject.x}
    return Side(lambda: session.run(None, feed), session.run(None, feed)[0])


def _openvino(subject: Subject, threads: int) -> Side:
    if importlib.util.find_spec("openvino") is None:
        raise Unavailable("not installed (pip install openvino)")
    import openvino

    hints = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
    }
    request = openvino.Core().compile_model(str(subject.path), "CPU", hints).create_infer_request()
    feed = {0: subject.x}
    # Input and output are shared, not copied, as they are for the other sides.
    answer = np.array(request.infer(feed, share_inputs=True)[0])
    return Side(lambda: request.infer(feed, share_inputs=True, share_outputs=True), answer)


def _torch(subject: Subject, threads: int) -> Side:
    torch.set_num_threads(threads)
    return _torch_side(subject.model, torch.from_numpy(subject.x), threads)


def _torch_compile(subject: Subject, threads: int) -> Side:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise Unavailable(f"no C++ compiler (`{compiler}`)")
    import torch._dynamo
    import torch._inductor.config

    torch._dynamo.reset()
    torch.set_num_threads(threads)
    torch._inductor.config.cpp.threads = threads
    try:
        compiled = torch.compile(subject.model, backend="inductor")
        return _torch_side(compiled, torch.from_numpy(subject.x), threads)
    except Exception as error:  # Whatever stops another compiler, the table goes on.
        text = str(error).strip() or type(error).__name__
        raise Unavailable(text.splitlines()[0][:80]) from error


def _torch_side(model: Callable[..., Any], x: torch.Tensor, threads: int) -> Side:
    def call() -> object:
        # The number is the process's: another side may have changed it.
        torch.set_num_threads(threads)
        with torch.inference_mode():
            return model(x)

    with torch.inference_mode():
        answer: np.ndarray = model(x).numpy()
    return Side(call, answer)


#: Name -> what makes a peer of a subject for a number of threads; may raise `Unavailable`.
PEERS: dict[str, Callable[[Subject, int], Side]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "torch": _torch,
    "torch.compile": _torch_compile,
}

"""Full-depth latency of compiled kernels against ONNX Runtime, float32, one thread, one run.

    python -m benchmarks.full_depth [NETWORK ...] [--weights W.th] [--repeats N] [--json]

The two take turns, so that both see the same neighbours, clock and temperature; the figure is the
median of the ratios of neighbouring calls, with the quartiles beside it. Outputs are compared
first: a figure is printed for a right answer only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

from benchmarks import networks
from eecompile.hardware import machine
from eecompile.passes.onnx_host import load_onnx
from eecompile.targets.loaded import LoadedLibrary
from eecompile.targets.lowering import compile_functions


def lively(name: str) -> nn.Module:
    """A network with random weights whose answers depend on the picture.

    With the batch statistics it is born with, activations die out and only a bias is left.
    """
    torch.manual_seed(0)
    model = networks.NETWORKS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    model.train()
    with torch.no_grad():
        for _ in range(2):
            model(torch.randn(8, *networks.INPUT_SHAPES[name][1:]))
    return model.eval()


def compare(name: str, weights: Path | None, repeats: int) -> dict[str, Any]:
    """Latencies in seconds and their ratio for one network."""
    bare = networks.NETWORKS[name]
    model = networks.load_weights(bare(), weights) if weights else lively(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.onnx"
        networks.export_onnx(model, networks.INPUT_SHAPES[name], path, exporter="torchscript")
        graph = load_onnx(path).graph()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    start = time.perf_counter()
    plain = (*graph.inputs, *graph.outputs)
    compiled = compile_functions([graph], machine("host"), plain=plain)
    compile_s = time.perf_counter() - start
    shape = networks.INPUT_SHAPES[name]
    image = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    feed = {session.get_inputs()[0].name: image}
    (expected,) = session.run(None, feed)
    loaded = LoadedLibrary(compiled)
    call, outputs = loaded.bind(compiled.functions[0].symbol, [image])
    call()
    error = float(np.abs(outputs[0].reshape(expected.shape) - expected).max())
    if error > 1e-4 * float(np.abs(expected).max()):
        raise SystemExit(f"{name}: wrong by {error:.2e}")
    theirs, ours = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        session.run(None, feed)
        middle = time.perf_counter()
        call()
        theirs.append(middle - start)
        ours.append(time.perf_counter() - middle)
    low, ratio, high = np.percentile(np.divide(ours, theirs), [25, 50, 75])
    latency = float(np.median(ours))
    return {
        "network": name,
        "onnxruntime_s": float(np.median(theirs)),
        "eecompile_s": latency,
        "ratio": float(ratio),
        "ratio_quartiles": [float(low), float(high)],
        "gflop_per_s": 2 * compiled.functions[0].macs / latency / 1e9,
        "compile_s": compile_s,
        "max_abs_error": error,
    }


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.full_depth", description=__doc__)
    parser.add_argument("networks", nargs="*", default=["resnet56"], metavar="NETWORK")
    parser.add_argument("--weights", type=Path, help="checkpoint, for a single network")
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    rows = [compare(name, options.weights, options.repeats) for name in options.networks]
    if options.json:
        json.dump(rows, sys.stdout, indent=1)
        return
    for row in rows:
        low, high = row["ratio_quartiles"]
        print(
            f"{row['network']}: {row['eecompile_s'] * 1e3:.3f} ms, ONNX Runtime "
            f"{row['onnxruntime_s'] * 1e3:.3f} ms, ratio {row['ratio']:.3f} "
            f"({low:.3f} to {high:.3f}), {row['gflop_per_s']:.0f} GFLOP/s, "
            f"compiled in {row['compile_s']:.1f} s, error {row['max_abs_error']:.1e}"
        )


if __name__ == "__main__":
    main()

"""Makes the golden artifacts of the present format version, once; see README.md beside it.

    python -m tests.golden.make

Golden artifacts are what earlier versions of eecompile really wrote: they are never made again.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import eecompile as ee
from eecompile import demo
from eecompile.build_options import BuildOptions
from eecompile.cache import Cache
from eecompile.console import Steps
from eecompile.driver import build
from eecompile.manifest import FORMAT_VERSION

__all__ = ["HERE", "expected_answers", "main"]

HERE = Path(__file__).parent
_DATA = Path(demo.__file__).parent
_CLASSES, _WIDTH, _INNER, _SAMPLES = 10, 4, 8, 48

_MODEL = """eecompile 1

model golden {{
    source onnx "golden.onnx"
    input  image: float32[1, 1, 8, 8]
    output logits: classes(10)

    exit early after "block0" head linear(pool: 4) comparator class_means
    exit late  after "block1" head linear(pool: 4) comparator class_means
{skips}}}

data digits {{ fit "fit.npz" calibrate "calibrate.npz" test "test.npz" }}
{more}"""

_PLAIN = """
policy quick   { exit when confidence(max_softmax) >= 0.95 }
policy sure    { exit when confidence(entropy) >= 0.95 or patience(count: 2) }
policy means   { exit when confidence(class_means) >= 0.8 }
policy learned { exit when learned_score budget mean macs <= 60 % }
policy ahead   { exit when predicted(start: early) budget mean macs <= 80 % }
policy watched {
    exit when confidence(margin) budget mean macs <= 60 % guard accuracy drop <= 5 %
}
policy halted  { exit when confidence(max_softmax) >= 0.9 halt at budget macs <= 90 % }
policy shared  {
    exit when confidence(max_softmax) >= 0.8
    offload "http://127.0.0.1:8000" cost 0.5
    split online_ucb
}
"""
_CLOCKED = """
policy quick { exit when confidence(max_softmax) budget mean macs <= 60 % }
policy slow  { exit when confidence(entropy) >= 0.95 deadline 10 ms frequency lowest_energy }
policy idle  { exit when patience(count: 1) deadline 10 ms hard frequency race_to_idle }
"""
_GATED = """
policy both   { exit when confidence(max_softmax) >= 0.95 }
policy gated  { budget mean macs <= 90 % }
policy as_is  { exit when patience(count: 1) }
policy halted { halt at budget macs <= 95 % }
"""
_SKIPS = """    skip layers "block2" gate fitted
    skip channels "block*.conv1" gate fitted(groups: 4)
"""
#: Name -> target, what gates may leave out, policies.
_GOLDEN = {
    "plain-x86-64": ("x86-64", "", _PLAIN),
    "gated-x86-64": ("x86-64", _SKIPS, _GATED),
    "clocked-aarch64": ("raspberry-pi-4", "", _CLOCKED),
    "gated-aarch64": ("arm-cpu", _SKIPS, _GATED),
}


def main() -> None:
    """Write `tests/golden/NAME-vN` with what it answers, for each that is not there yet."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for name in ("fit.npz", "calibrate.npz", "test.npz"):
            shutil.copy(_DATA / name, folder)
        onnx.save(_network(folder), folder / "golden.onnx")
        for name, (target, skips, more) in _GOLDEN.items():
            wanted = HERE / f"{name}-v{FORMAT_VERSION}"
            if wanted.exists():
                print(f"{wanted.name} is there already")
                continue
            source, output = folder / f"{name}.ee", folder / wanted.name
            source.write_text(_MODEL.format(skips=skips, more=more))
            build(source, BuildOptions(target, output), Steps(11, True), Cache(folder / "cache"))
            if target == "x86-64":
                np.savez_compressed(HERE / f"{wanted.name}.npz", **expected_answers(output))
            shutil.copytree(output, wanted)


def expected_answers(artifact: Path) -> dict[str, Any]:
    """What an artifact answers to the first test images, by policy: exits and logits."""
    with np.load(_DATA / "test.npz") as test:
        images = (test["images"][:_SAMPLES].astype(np.float32) / 255).reshape(-1, 1, 1, 8, 8)
    found: dict[str, Any] = {"images": images}
    with ee.load(artifact, governor=ee.NoGovernor()) as net:
        found["full_depth"] = net.full_depth_batch(images[:, 0]).logits
        for policy in net.policies:
            if policy in ("shared", "watched"):
                continue  # One asks its server, one audits samples at random.
            net.set_policy(policy)
            answers = [net.run(image) for image in images]
            found[f"{policy}.exits"] = np.array([answer.exit for answer in answers])
            found[f"{policy}.logits"] = np.stack([answer.logits for answer in answers])
    return found


def _network(folder: Path) -> onnx.ModelProto:
    """A residual network of random features, its last layer fitted by least squares."""
    rng = np.random.default_rng(0)
    arrays, nodes = {}, []

    def weights(name: str, *shape: int) -> str:
        fan_in = int(np.prod(shape[1:])) or 1
        scale = np.sqrt(2 / fan_in) if len(shape) > 1 else 0.1
        arrays[name] = (rng.standard_normal(shape) * scale).astype(np.float32)
        return name

    def conv(name: str, x: str, inner: int, outer: int, size: int) -> str:
        given = [x, weights(f"{name}.w", outer, inner, size, size), weights(f"{name}.b", outer)]
        pads = [size // 2] * 4
        nodes.append(helper.make_node("Conv", given, [f"{name}.out"], f"/{name}/Conv", pads=pads))
        return f"{name}.out"

    def simple(kind: str, name: str, *given: str) -> str:
        nodes.append(helper.make_node(kind, given, [f"{name}.out"], f"/{name}"))
        return f"{name}.out"

    x = simple("Relu", "stem/Relu", conv("stem", "image", 1, _WIDTH, 3))
    for block in ("block0", "block1", "block2"):
        inner = conv(f"{block}/conv1", x, _WIDTH, _INNER, 3)
        inner = simple("Relu", f"{block}/Relu", inner)
        outer = conv(f"{block}/conv2", inner, _INNER, _WIDTH, 1)
        added = simple("Add", f"{block}/Add", x, outer)
        x = simple("Relu", f"{block}/Relu_1", added)
    pooled = simple("MaxPool", "pool/MaxPool", x)
    nodes[-1].attribute.extend(
        [helper.make_attribute("kernel_shape", [2, 2]), helper.make_attribute("strides", [2, 2])]
    )
    flat = simple("Flatten", "Flatten", pooled)
    features = _features(folder, nodes, arrays, flat)
    with np.load(folder / "fit.npz") as fit:
        labels = fit["labels"]
    wanted = np.eye(_CLASSES)[labels] * 10 - 5
    ones = np.ones((len(features), 1))
    system = np.concatenate([features, ones], 1)
    solution = np.linalg.solve(
        system.T @ system + 0.1 * np.eye(system.shape[1]), system.T @ wanted
    ).astype(np.float32)
    arrays["fc.w"], arrays["fc.b"] = solution[:-1], solution[-1]
    nodes.append(helper.make_node("Gemm", [flat, "fc.w", "fc.b"], ["logits"], "/fc/Gemm"))
    return _model(nodes, arrays, "logits", (1, _CLASSES))


def _features(
    folder: Path, nodes: list[onnx.NodeProto], arrays: dict[str, np.ndarray], output: str
) -> np.ndarray:
    import onnxruntime

    model = _model(nodes, arrays, output, None)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    with np.load(folder / "fit.npz") as fit:
        images = fit["images"].astype(np.float32) / 255
    images = images.reshape(-1, 1, 1, 8, 8)
    return np.concatenate([session.run([output], {"image": image})[0] for image in images])


def _model(
    nodes: list[onnx.NodeProto],
    arrays: dict[str, np.ndarray],
    output: str,
    shape: tuple[int, ...] | None,
) -> onnx.ModelProto:
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 1, 8, 8))
    answer = helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)
    constants = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "golden", [image], [answer], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


if __name__ == "__main__":
    main()

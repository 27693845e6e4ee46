"""A network of 224 x 224 pixels with real answers: MobileNetV2 of ImageNet, moved to CIFAR-10.

    python -m benchmarks.transfer FOLDER

What its users do with a pretrained network: the backbone stays (a foreign ONNX file, quantised
with ``QuantizeLinear``/``DequantizeLinear``), images are enlarged to what it was trained on, and a
new linear classifier is fitted on the pooled features of 20,000 training images. FOLDER then has
``mobilenetv2_cifar10.onnx``, whose input are CIFAR's own 32 x 32 pixels.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks.machine import shared_data
from eecompile.heads.logistic import fit_logistic

__all__ = ["transferred"]

_SOURCE = "onnx/mobilenetv2_quant_static.onnx"
_POOLED = "/Flatten_output_0"
_SIDE = 224
#: Of ImageNet, as the network was trained with.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def transferred(folder: Path, data: Path) -> Path:
    """The network with its new classifier, made once for a folder."""
    path = folder / "mobilenetv2_cifar10.onnx"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    backbone = _enlarging(onnx.load(data / _SOURCE))
    with np.load(data / "cifar10_train_20k.npz") as archive:
        images, labels = archive["images"], archive["labels"].astype(np.int64)
    features = _features(backbone, images)
    linear = fit_logistic(features, labels, 10, seed=0)
    onnx.save(_with_classifier(backbone, linear.weight, linear.bias), path)
    return path


def _enlarging(model: onnx.ModelProto) -> onnx.ModelProto:
    """The backbone up to its pooled features, with an input of 32 x 32 pixels."""
    graph = model.graph
    made_by = {name: node for node in graph.node for name in node.output}
    wanted, kept = [_POOLED], set()
    while wanted:
        node = made_by.get(wanted.pop())
        if node is not None and id(node) not in kept:
            kept.add(id(node))
            wanted.extend(node.input)
    nodes = [node for node in graph.node if id(node) in kept]
    (given,) = (value for value in graph.input if value.name == "input")
    given.CopyFrom(helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 32, 32]))
    scales = np.array([1, 1, _SIDE / 32, _SIDE / 32], np.float32)
    graph.initializer.append(numpy_helper.from_array(scales, "enlarge.scales"))
    resize = helper.make_node(
        "Resize", ["image", "", "enlarge.scales"], ["input"], "enlarge", mode="linear"
    )
    read = {name for node in nodes for name in node.input}
    constants = [value for value in graph.initializer if value.name in {*read, "enlarge.scales"}]
    del graph.node[:], graph.output[:], graph.initializer[:]
    graph.node.extend([resize, *nodes])
    graph.initializer.extend(constants)
    graph.output.append(helper.make_tensor_value_info(_POOLED, TensorProto.FLOAT, [1, 1280]))
    del graph.value_info[:]
    return model


def _features(backbone: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """Pooled features of images as stored, float32 (n, 1280), by ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        backbone.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    mean, std = np.array([_MEAN, _STD], np.float32)
    found = np.empty((len(images), 1280), np.float32)
    for row, image in enumerate(images):
        x = (image / np.float32(255) - mean) / std
        feed = {"image": np.ascontiguousarray(x.transpose(2, 0, 1)[None], np.float32)}
        found[row] = session.run(None, feed)[0]
    return found


def _with_classifier(
    backbone: onnx.ModelProto, weight: np.ndarray, bias: np.ndarray
) -> onnx.ModelProto:
    """The network with a linear layer behind the pooled features."""
    graph = backbone.graph
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.ascontiguousarray(weight, np.float32), "classifier.weight"),
            numpy_helper.from_array(np.ascontiguousarray(bias, np.float32), "classifier.bias"),
        ]
    )
    graph.node.append(
        helper.make_node(
            "Gemm", [_POOLED, "classifier.weight", "classifier.bias"], ["logits"], "classifier"
        )
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 10]))
    onnx.checker.check_model(backbone)
    return backbone


def main() -> None:
    """Make the network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    print(transferred(parser.parse_args().folder, shared_data()))


if __name__ == "__main__":
    main()

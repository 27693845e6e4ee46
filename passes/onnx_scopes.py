"""Module paths out of what PyTorch's exporters leave in an ONNX node."""

from __future__ import annotations

import ast
import re
from functools import lru_cache

import onnx

__all__ = ["Scopes", "slash_path"]


class Scopes:
    """The module paths of a graph's nodes.

    The torch.export-based exporter writes them into the nodes' metadata, the TorchScript-based one
    into their names. The latter numbers the further calls of one module: ``relu``, ``relu_1``. A
    numbered path is taken for another call of the module without the number where there is such a
    module and the node has no weights; a convolution called ``conv_1`` more likely is a module of
    that name.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._weights = {tensor.name for tensor in graph.initializer}
        self._recorded = {path for node in graph.node if (path := _recorded(node))}
        #: paths of modules whose own result is not computed
        self.fused = {slash_path(node.name) for node in graph.node if _fused(node)}

    def __contains__(self, path: str) -> bool:
        return path in self._recorded

    def of(self, node: onnx.NodeProto) -> str:
        """The path of the module that a node belongs to, empty where none is recorded."""
        path = _recorded(node)
        numbered = re.fullmatch(r"(.+)_\d+", path)
        further = numbered and numbered[1] in self._recorded and node.name.startswith("/")
        if numbered and further and self._weights.isdisjoint(node.input):
            return numbered[1]
        return path


def _fused(node: onnx.NodeProto) -> bool:
    """Whether the node is a convolution with weights that are not its module's own.

    The TorchScript-based exporter folds batch normalisation into the convolution before it: the
    weights are then new, called ``onnx::Conv_274``, and what is computed is no longer what the
    module called ``conv1`` gives.
    """
    if node.op_type not in ("Conv", "ConvTranspose") or not (path := slash_path(node.name)):
        return False
    return not node.input[1].startswith(f"{path}.")


def _recorded(node: onnx.NodeProto) -> str:
    metadata = {entry.key: entry.value for entry in node.metadata_props}
    if (scopes := metadata.get("pkg.torch.onnx.name_scopes")) is not None:
        return _name_scope(scopes)
    if (namespace := metadata.get("namespace")) is not None:
        return _namespace(namespace)
    return slash_path(node.name)


def slash_path(name: str) -> str:
    """The module path in a name given by the TorchScript exporter.

    A component that begins with the one before it stands for both.

    >>> slash_path("/layer1/layer1.8/conv1/Conv")
    'layer1.8.conv1'
    >>> slash_path("/features/features.1/conv/conv.0/conv.0.2/Clip")
    'features.1.conv.0.2'
    >>> slash_path("model/dense/MatMul")
    ''
    """
    if not name.startswith("/"):
        return ""
    path: list[str] = []
    for component in name.split("/")[1:-1]:
        if path and component.startswith(path[-1] + "."):
            path.pop()
        path.append(component)
    return ".".join(path)


@lru_cache(maxsize=1 << 14)  # every edit of a network reads the same texts again
def _name_scope(text: str) -> str:
    """The module path in the list of enclosing names, which ends with the node's own."""
    try:
        scopes = ast.literal_eval(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return ""
    if not isinstance(scopes, list) or len(scopes) < 2 or not isinstance(scopes[-2], str):
        return ""
    return scopes[-2]


def _namespace(text: str) -> str:
    """The module path in ``: Net/layer1.0: Block/layer1.0.conv1: Conv2d/conv2d: aten.conv2d``."""
    parts = [part.partition(":")[0].strip() for part in text.split("/")]
    return parts[-2] if len(parts) > 1 else ""

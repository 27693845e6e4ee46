"""Module paths out of what PyTorch's exporters leave in an ONNX node."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable

import onnx

__all__ = ["all_scopes", "module_path", "slash_path"]


def module_path(node: onnx.NodeProto, known: frozenset[str] = frozenset()) -> str:
    """The path of the module that a node belongs to, empty where the exporter recorded none.

    The torch.export-based exporter writes it into the node's metadata, the TorchScript-based one
    into the node's name. `known` are the paths of the whole model (`all_scopes`): the TorchScript
    exporter numbers the further calls of one module (``relu``, ``relu_1``), which get its path.
    """
    metadata = {entry.key: entry.value for entry in node.metadata_props}
    if (scopes := metadata.get("pkg.torch.onnx.name_scopes")) is not None:
        return _name_scope(scopes)
    if (namespace := metadata.get("namespace")) is not None:
        return _namespace(namespace)
    path = slash_path(node.name)
    if (first := re.fullmatch(r"(.+)_\d+", path)) and first[1] in known and "." in path:
        return first[1]
    return path


def all_scopes(nodes: Iterable[onnx.NodeProto]) -> frozenset[str]:
    """The module path of every node that has one."""
    return frozenset(filter(None, map(module_path, nodes)))


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

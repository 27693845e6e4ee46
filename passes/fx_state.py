"""Parts of a graph module that are put in and taken out: weights, submodules, the mode flag."""

from __future__ import annotations

import numpy as np
import torch
from torch import fx, nn

__all__ = ["add_state", "has_attribute", "remove_module", "remove_state", "training_flag"]


def training_flag(graph: fx.Graph) -> fx.Node:
    """The node that reads the module's `training` attribute, made where there is none."""
    for node in graph.nodes:
        if node.op == "get_attr" and node.target == "training":
            found: fx.Node = node
            return found
    with graph.inserting_before(next(iter(graph.nodes))):
        flag: fx.Node = graph.create_node("get_attr", "training", name="training")
    return flag


def add_state(module: nn.Module, path: str, array: np.ndarray, trainable: bool) -> None:
    """Puts an array into a module as parameter or buffer, intermediate modules made as needed."""
    *parents, last = path.split(".")
    for name in parents:
        if name not in module._modules:
            module.add_module(name, nn.Module())
        module = module.get_submodule(name)
    tensor = torch.from_numpy(np.array(array, copy=True))
    if trainable:
        module.register_parameter(last, nn.Parameter(tensor))
    else:
        module.register_buffer(last, tensor)


def remove_module(module: nn.Module, path: str) -> None:
    """Removes a submodule and the parents it leaves empty."""
    parts = path.split(".")
    while parts:
        parent = module
        for name in parts[:-1]:
            parent = parent.get_submodule(name) if name in parent._modules else nn.Module()
        child = parent._modules.get(parts[-1])
        if child is None or (len(parts) < len(path.split(".")) and [*child.state_dict()]):
            return
        del parent._modules[parts[-1]]
        parts.pop()


def remove_state(module: nn.Module, path: str) -> None:
    """Removes a parameter or buffer, and the parents it leaves empty."""
    parent, _, last = path.rpartition(".")
    delattr(module.get_submodule(parent), last)
    while parent and not [*module.get_submodule(parent).state_dict()]:
        above, _, last = parent.rpartition(".")
        del module.get_submodule(above)._modules[last]
        parent = above


def has_attribute(module: nn.Module, path: str) -> bool:
    """Whether the module path leads to anything."""
    for name in path.split("."):
        if not hasattr(module, name):
            return False
        module = getattr(module, name)
    return True

"""Batch normalisation with frozen statistics, folded into the convolutions before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

__all__ = ["Fold", "fold_batch_norms", "unfolded"]

_CONVOLUTIONS = (
    torch.ops.aten.conv1d.default,
    torch.ops.aten.conv2d.default,
    torch.ops.aten.conv3d.default,
)
#: Smaller factors cannot be divided by again.
_LEAST_SCALE = 1e-6


@dataclass(frozen=True)
class Fold:
    """One batch normalisation that is part of a convolution now.

    Attributes:
        weight: state-dict name of the convolution's weight, which holds ``weight * scale``.
        bias: that of the normalisation's bias, which holds ``bias + offset`` and is the
            convolution's bias now.
        scale, offset: by output channel.
    """

    weight: str
    bias: str
    scale: Tensor
    offset: Tensor


def fold_batch_norms(module: fx.GraphModule) -> tuple[Fold, ...]:
    """Folds every normalisation it can into the convolution before it, in place.

    ::

        y = conv(x, w, b); z = batch_norm(y, gamma, beta, mean, var)
        ->
        z = conv(x, w', beta')

    Only where the convolution and all parameters have no other reader and no scale is nearly 0.
    Names stay: `unfolded` undoes it on a state dict. The module computes what it did in eval mode.
    """
    folds = [
        fold
        for node in list(module.graph.nodes)
        if node.target is torch.ops.aten.batch_norm.default
        and (fold := _fold(module, node)) is not None
    ]
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    return tuple(folds)


def unfolded(state: Mapping[str, Tensor], folds: tuple[Fold, ...]) -> dict[str, Tensor]:
    """A folded module's state as its source has it."""
    found = dict(state)
    for fold in folds:
        weight = found[fold.weight]
        found[fold.weight] = weight / _by_output(fold.scale, weight)
        found[fold.bias] = found[fold.bias] - fold.offset
    return found


def _fold(module: fx.GraphModule, norm: fx.Node) -> Fold | None:
    conv, gamma, beta, mean, variance = norm.args[:5]
    if not isinstance(conv, fx.Node) or conv.target not in _CONVOLUTIONS or len(conv.users) != 1:
        return None
    bias = conv.args[2] if len(conv.args) > 2 else None
    read = [conv.args[1], gamma, beta, mean, variance]
    own = read if bias is None else [*read, bias]
    nodes = [node for node in own if isinstance(node, fx.Node)]
    if len(nodes) != len(own) or not all(_is_private(module, node) for node in nodes):
        return None
    weight, factor, shift, average, spread = (_tensor(module, node) for node in nodes[:5])
    epsilon = float(norm.args[7])  # type: ignore[arg-type]
    with torch.no_grad():
        scale = factor / torch.sqrt(spread + epsilon)
        if scale.abs().min() < _LEAST_SCALE:
            return None
        before = _tensor(module, nodes[5]) if bias is not None else torch.zeros_like(average)
        offset = (before - average) * scale
        weight.mul_(_by_output(scale, weight))
        shift.add_(offset)
    conv.args = (conv.args[0], conv.args[1], beta, *conv.args[3:])
    conv.prepend(nodes[2])
    norm.replace_all_uses_with(conv)
    module.graph.erase_node(norm)
    return Fold(str(nodes[0].target), str(nodes[2].target), scale, offset)


def _by_output(scale: Tensor, weight: Tensor) -> Tensor:
    return scale.view(-1, *(1,) * (weight.ndim - 1))


def _tensor(module: fx.GraphModule, node: fx.Node) -> Tensor:
    owner, _, name = str(node.target).rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(owner), name)
    return tensor


def _is_private(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether one node reads that tensor, once."""
    if node.op != "get_attr" or len(node.users) != 1:
        return False
    readers = module.graph.find_nodes(op="get_attr")
    return [other.target for other in readers].count(node.target) == 1

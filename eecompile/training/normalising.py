"""Batch normalisation: folded away where it is frozen, by each batch's own statistics elsewhere."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

__all__ = ["fold_batch_norms", "normalise_by_batches"]

_CONVOLUTIONS = (
    torch.ops.aten.conv1d.default,
    torch.ops.aten.conv2d.default,
    torch.ops.aten.conv3d.default,
)
_NORM = torch.ops.aten.batch_norm.default


class _Normalisation(nn.Module):
    """By the statistics of each batch, which are gathered, in training; else by those gathered."""

    def __init__(self, momentum: float, epsilon: float) -> None:
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon

    def forward(
        self, inputs: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
    ) -> Tensor:
        """What `torch.nn.functional.batch_norm` gives; `mean` and `variance` change in training."""
        return functional.batch_norm(
            inputs, mean, variance, weight, bias, self.training, self.momentum, self.epsilon
        )


def normalise_by_batches(module: fx.GraphModule) -> tuple[str, ...]:
    """Lets the module's `train` and `eval` decide by which statistics is normalised, in place.

    Where blocks are left out, what later ones read has other means and variances: with the old
    ones weights have to learn to make up for that, which takes them many times longer. Source:
    measured on ResNet-56 and CIFAR-10, see `benchmarks.gates`.

    Returns:
        Names in the state dict of the statistics, which change in training.
    """
    found: dict[str, None] = {}
    for index, norm in enumerate(module.graph.find_nodes(op="call_function", target=_NORM)):
        mean, variance = norm.args[3:5]
        if mean is None or variance is None:  # Always by the batch's own.
            continue
        name = f"normalisation_{index}"
        module.add_submodule(name, _Normalisation(float(norm.args[6]), float(norm.args[7])))
        with module.graph.inserting_before(norm):
            norm.replace_all_uses_with(module.graph.call_module(name, norm.args[:5]))
        module.graph.erase_node(norm)
        found |= {str(node.target): None for node in (mean, variance)}
    module.graph.lint()
    module.recompile()
    return tuple(found)


def fold_batch_norms(module: fx.GraphModule) -> None:
    """Folds every normalisation it can into the convolution before it, in place.

    ::

        y = conv(x, w, b); z = batch_norm(y, gamma, beta, mean, var)
        ->
        z = conv(x, w', beta')

    Only where the convolution and all parameters have no other reader. The module computes what it
    did in eval mode.
    """
    for norm in module.graph.find_nodes(op="call_function", target=_NORM):
        _fold(module, norm)
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()


def _fold(module: fx.GraphModule, norm: fx.Node) -> None:
    conv, gamma, beta, mean, variance = norm.args[:5]
    if not isinstance(conv, fx.Node) or conv.target not in _CONVOLUTIONS or len(conv.users) != 1:
        return
    bias = conv.args[2] if len(conv.args) > 2 else None
    read = [conv.args[1], gamma, beta, mean, variance]
    own = read if bias is None else [*read, bias]
    nodes = [node for node in own if isinstance(node, fx.Node)]
    if len(nodes) != len(own) or not all(_is_private(module, node) for node in nodes):
        return
    weight, factor, shift, average, spread = (_tensor(module, node) for node in nodes[:5])
    epsilon = float(norm.args[7])  # type: ignore[arg-type]
    with torch.no_grad():
        scale = factor / torch.sqrt(spread + epsilon)
        before = _tensor(module, nodes[5]) if bias is not None else torch.zeros_like(average)
        offset = (before - average) * scale
        weight.mul_(_by_output(scale, weight))
        shift.add_(offset)
    conv.args = (conv.args[0], conv.args[1], beta, *conv.args[3:])
    conv.prepend(nodes[2])
    norm.replace_all_uses_with(conv)
    module.graph.erase_node(norm)


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

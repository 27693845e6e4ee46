"""What one run of a graph module tells of its nodes: types, and values known at compile time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from eecompile.ir import TensorType
from eecompile.passes.fx_builder import type_of
from eecompile.passes.host import HostError, Problem

__all__ = ["SHAPE_ONLY", "Evaluation"]

#: Operators whose result depends on their tensors' types alone.
SHAPE_ONLY = frozenset(
    {
        "aten.sym_size.int",
        "aten.sym_numel.default",
        "aten.sym_stride.int",
        "aten.zeros_like.default",
        "aten.ones_like.default",
        "aten.full_like.default",
        "aten.fill.Scalar",
        "aten.new_zeros.default",
        "aten.new_ones.default",
        "aten.new_full.default",
    }
)


@dataclass(frozen=True, slots=True)
class _Known:
    """What a node gave.

    Attributes:
        reads: what that followed from, beside the nodes it reads; see `Evaluation._reads`.
        result: the value itself where it is `constant`, else with tensors on the meta device.
        constant: whether the result is the same whatever numbers the inputs hold.
    """

    reads: tuple[Any, ...]
    result: Any
    constant: bool


class Evaluation:
    """The nodes of a graph module, run on inputs that are all zeros.

    `update` runs only nodes that are new, read something else than before, or follow from such
    nodes: an edit of a deep network costs what was inserted. What they read of the other nodes is
    zeros of the right type, shape and strides.

    Attributes:
        types: node -> neutral type of its result, None where it has none; constants left out.
        constants: node -> result, where no input's numbers take part in it.
    """

    def __init__(self, module: fx.GraphModule, inputs: Mapping[str, TensorType]) -> None:
        """Nothing is run yet."""
        self.types: dict[fx.Node, TensorType | None] = {}
        self.constants: dict[fx.Node, Any] = {}
        self._module = module
        self._inputs = tuple((t.shape, getattr(torch, t.dtype)) for t in inputs.values())
        self._known: dict[fx.Node, _Known] = {}

    def update(self) -> None:
        """Brings `types` and `constants` in step with the module's graph and weights.

        Raises:
            HostError: torch cannot run the module; then nothing changes.
        """
        training = self._module.training
        self._module.eval()
        try:
            with torch.no_grad():
                self._known = self._run_anew()
        except Exception as error:
            message = f"torch cannot run the network: {str(error).strip().splitlines()[0]}"
            raise HostError(Problem("unreadable-model", message)) from error
        finally:
            self._module.train(training)
        known = self._known.items()
        self.constants = {node: found.result for node, found in known if found.constant}
        self.types = {
            node: type_of(found.result) if isinstance(found.result, torch.Tensor) else None
            for node, found in known
            if not found.constant
        }

    def _run_anew(self) -> dict[fx.Node, _Known]:
        """Runs what must be run; all of it where zeros, and then ones, are divided by."""
        valid = _unchanged(self._module, self._known)
        attempts: list[tuple[dict[fx.Node, _Known], Any]] = [({}, torch.zeros), ({}, torch.ones)]
        attempts = [(valid, torch.zeros), *attempts] if valid else attempts
        for kept, fill in attempts[:-1]:
            try:
                return _Run(self._module, kept).of(fill, self._inputs)
            except RuntimeError:  # a division by whole numbers that are zero
                continue
        kept, fill = attempts[-1]
        return _Run(self._module, kept).of(fill, self._inputs)


def _unchanged(module: fx.GraphModule, known: Mapping[fx.Node, _Known]) -> dict[fx.Node, _Known]:
    """The nodes whose result is still the known one."""
    found: dict[fx.Node, _Known] = {}
    for node in module.graph.nodes:
        before = known.get(node)
        sources = all(source in found for source in node.all_input_nodes)
        if before is not None and sources and _same(before.reads, _reads(module, node)):
            found[node] = before
    return found


def _reads(module: fx.GraphModule, node: fx.Node) -> tuple[Any, ...]:
    """What the node's result follows from, beside the nodes it reads."""
    if node.op != "get_attr":
        return (node.target, node.args, node.kwargs)
    value: Any = module
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return (value, value._version) if isinstance(value, torch.Tensor) else (value,)


def _same(before: tuple[Any, ...], now: tuple[Any, ...]) -> bool:
    """Whether nothing was put in another's place.

    A node's arguments are a new tuple after each edit of them, so that identity tells; tensors'
    versions are numbers, of which equal ones may be two objects.
    """
    return len(before) == len(now) and all(
        a is b or (type(a) is type(b) is int and a == b) for a, b in zip(before, now, strict=True)
    )


class _Run(fx.Interpreter):
    """One run of a module, which passes over the nodes in `kept`."""

    def __init__(self, module: fx.GraphModule, kept: Mapping[fx.Node, _Known]) -> None:
        super().__init__(module)
        self.network = module
        self.kept = kept
        self.known = dict(kept)

    def of(self, fill: Any, inputs: Iterable[tuple[Any, ...]]) -> dict[fx.Node, _Known]:
        """What every node gives for inputs of these shapes and types, made by `fill`."""
        self.run(*(fill(shape, dtype=dtype) for shape, dtype in inputs))
        return self.known

    def run_node(self, n: fx.Node) -> Any:
        """The node's result; None where only nodes that are passed over would read it."""
        kept = self.kept.get(n)
        if kept is not None:
            if all(user in self.kept for user in n.users):
                return None
            return kept.result if kept.constant else pytree.tree_map(_zeros, kept.result)
        result = super().run_node(n)
        constant = n.op == "get_attr" or (n.op == "call_function" and self._is_constant(n))
        told = result if constant else pytree.tree_map(_described, result)
        self.known[n] = _Known(_reads(self.network, n), told, constant)
        return result

    def _is_constant(self, node: fx.Node) -> bool:
        if str(node.target) in SHAPE_ONLY:
            return True
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        return not random and all(self.known[s].constant for s in node.all_input_nodes)


def _described(value: Any) -> Any:
    """A tensor without its content."""
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _zeros(value: Any) -> Any:
    """A tensor as described, of zeros; one whose elements share memory (a broadcast one) too."""
    if not isinstance(value, torch.Tensor):
        return value
    reach = sum((d - 1) * s for d, s in zip(value.shape, value.stride(), strict=True)) + 1
    return torch.zeros(max(reach, 1), dtype=value.dtype).as_strided(value.shape, value.stride())

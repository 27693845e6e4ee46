"""The PyTorch host: a torch.export graph module that is read, extended, trained, run and saved.

`load_torch` makes one from a user's file; see `fx_load.py`. The module, `FxHost.module`, is an
ordinary `torch.nn.Module`:

- ``module(*inputs)`` gives a dictionary of tensors: the network's own outputs first, in its order,
  then those added, in the order they were added.
- Weights keep the names they have in the source network's `state_dict`; those of a spliced head lie
  under its prefix (``exits.early.weight``). All are parameters that any optimiser trains.
- ``train()`` and ``eval()`` switch dropout and batch normalisation as ever.
- Where `FxHost.batched` is true the leading dimension, 1 in the neutral view, may be any number.
"""

from __future__ import annotations

import copy
import hashlib
import operator
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import fx

from eecompile.ir import Graph, TensorType
from eecompile.passes.fx_emit import Emitter
from eecompile.passes.fx_evaluate import Evaluation
from eecompile.passes.fx_export import Loaded
from eecompile.passes.fx_load import load_module_head, load_torch_module
from eecompile.passes.fx_state import has_attribute
from eecompile.passes.fx_translate import Translation, translate
from eecompile.passes.host import HostError, HostGraph, Point, Problem, collect_points, read_by

__all__ = ["FxHost", "load_module_head", "load_torch"]


def load_torch(
    entry: str,
    weights: Path | str | None,
    inputs: Mapping[str, TensorType],
    outputs: tuple[str, ...] = (),
) -> FxHost:
    """The network a user's Python function returns, exported and ready to be edited.

    Args:
        entry: ``path/file.py:function``; the file is imported, the function called without
            arguments.
        weights: a state dict written by `torch.save`, or None for the weights the function sets.
        inputs: name -> type of each input. Names are those of `forward`'s parameters, or, where
            none agrees, stand for them in order.
        outputs: names for the outputs; default ``output`` (``output_0`` ... where there are
            several, or a dictionary's own keys).

    Raises:
        HostError: the file, its function, the weights or the network cannot be used.
    """
    loaded = load_torch_module(entry, weights, inputs, outputs)
    return FxHost(loaded)


class FxHost(HostGraph):
    """A network held as a torch.fx graph module of ATen calls.

    Attributes:
        module: the graph module; trainable, see the top of this file.
        inputs: input name -> type, as given to `load_torch`.
        batched: whether `module` takes any number of samples at once.
    """

    kind = "fx"

    def __init__(self, loaded: Loaded) -> None:
        self.module: fx.GraphModule = loaded.module
        self.inputs: dict[str, TensorType] = dict(loaded.inputs)
        self.batched: bool = loaded.batched
        self.name: str = loaded.name
        self._forget()

    # --- reading ----------------------------------------------------------------------------------

    def copy(self) -> Self:
        """An independent host with its own weights."""
        twin = copy.copy(self)
        twin.module = copy.deepcopy(self.module)
        twin.inputs = dict(self.inputs)
        twin._forget()
        return twin

    def _forget(self) -> None:
        """Marks everything that was read off the module as out of date."""
        self._known = Evaluation(self.module, self.inputs)
        self._view: _View | None = None

    def graph(self) -> Graph:
        """The neutral view; translated anew after an edit or a training step.

        NOTE: writes through a parameter's `.data` are not seen; torch counts no version for them.
        """
        return self._translated().graph

    def outputs(self) -> dict[str, str]:
        """Output name -> value of `graph()`."""
        return dict(self._translated().outputs)

    def points(self) -> dict[str, Point]:
        """Module paths and node names."""
        translation = self._translated()
        assert self._view is not None, "a translation is a view's"
        if self._view.points is None:
            graph, nodes = translation.graph, self._nodes()
            values = (*graph.inputs, *(op.name for op in graph.ops if op.name in nodes))
            self._view.points = collect_points(graph, values, translation.aliases)
        return self._view.points

    def _translated(self) -> Translation:
        stamp = _Stamp.of(self.module)
        if self._view is None or self._view.stamp != stamp:
            translation = translate(self.module, self.inputs, self.name, self._known)
            self._view = _View(stamp, translation)
        return self._view.translation

    def _nodes(self) -> dict[str, fx.Node]:
        nodes = {node.name: node for node in self.module.graph.nodes}
        # An input keeps its name where Python's words stand in the way of the placeholder's.
        placeholders = self.module.graph.find_nodes(op="placeholder")
        return nodes | dict(zip(self.inputs, placeholders, strict=True))

    def _node(self, value: str) -> fx.Node:
        translation = self._translated()
        node = self._nodes().get(value)
        known = translation.graph.types.keys() | translation.aliases.keys()
        if node is None or value not in known or node.op == "get_attr":
            raise _refusal(f"No value `{value}` in the network", value)
        return node

    def _type(self, value: str) -> TensorType:
        translation = self._translated()
        return translation.graph.types[translation.aliases.get(value, value)]

    # --- editing ----------------------------------------------------------------------------------

    def splice(
        self,
        graph: Graph,
        feature: str | Mapping[str, str],
        prefix: str,
        weights: Mapping[str, str] | None = None,
    ) -> tuple[str, ...]:
        """Writes `graph` behind what it reads; its weights become parameters under `prefix`."""
        read = read_by(graph, feature)
        nodes = {name: self._node(value) for name, value in read.items()}
        for name, value in read.items():
            wanted, found = graph.types[name], self._type(value)
            if wanted != found:
                raise _refusal(f"Head `{graph.name}` takes {wanted}, `{value}` is {found}", value)
        for path in (prefix, *(weights or {}).values()):
            if not all(part.isidentifier() or part.isdigit() for part in path.split(".")):
                raise _refusal(f"`{path}` is no module path", "")
        if has_attribute(self.module, prefix):
            raise _refusal(f"The network has a module `{prefix}` already", "")
        self._check_weights(graph, weights or {})
        places = {node: place for place, node in enumerate(self.module.graph.nodes)}
        last = max(nodes.values(), key=places.__getitem__)
        emitter = Emitter(self.module, graph, prefix, self.batched, nodes, weights)
        results = emitter.emit(last)
        # Nothing is shown that was not before: the module's compiled code stays right.
        self.module.graph.lint()
        try:
            aliases = self._translated().aliases
        except HostError:
            emitter.undo()
            raise
        return tuple(aliases.get(result.name, result.name) for result in results)

    def _check_weights(self, graph: Graph, weights: Mapping[str, str]) -> None:
        """Refuses paths where something else than such a weight is."""
        state = self.module.state_dict(keep_vars=True)
        for name, path in weights.items():
            shape = graph.types[name].shape
            if has_attribute(self.module, path) and (
                path not in state or tuple(state[path].shape) != shape
            ):
                raise _refusal(f"The network has something else at `{path}` already", "")

    def add_output(self, name: str, value: str) -> None:
        """A further entry of the dictionary that the module returns."""
        node = self._node(value)
        shown = self._shown()
        if name in shown:
            raise _refusal(f"The network has an output `{name}` already", value)
        before = self._translated()
        self._show({**shown, name: node})
        found = before.aliases.get(value, value)
        if found in before.graph.types.keys() - before.graph.constants.keys():
            # An output changes nothing else of the view; deep networks take long to translate.
            graph = replace(before.graph, outputs=(*before.graph.outputs, found))
            outputs = {**before.outputs, name: found}
            translation = replace(before, graph=graph, outputs=outputs)
            self._view = _View(_Stamp.of(self.module), translation)

    def replace_uses(self, old: str, new: str) -> None:
        """Readers of `old`, but for the ancestors of `new`, read `new`."""
        self.rewire({old: new}, {})

    def rewire(self, uses: Mapping[str, str], outputs: Mapping[str, str]) -> None:
        """Both at once: the module is written and translated anew only once."""
        for name, value in outputs.items():
            if name in self._shown():
                raise _refusal(f"The network has an output `{name}` already", value)
        nodes = {v: self._node(v) for v in (*uses, *uses.values(), *outputs.values())}
        for old, new in uses.items():
            if self._type(old) != self._type(new):
                raise _refusal(f"`{old}` is {self._type(old)}, `{new}` is {self._type(new)}", old)
        for old, new in uses.items():
            needed = _ancestors(nodes[new])
            others = [user for user in nodes[old].users if user not in needed]
            for user in others:
                user.replace_input_with(nodes[old], nodes[new])
        _sort(self.module.graph)
        self._show({**self._shown(), **{name: nodes[value] for name, value in outputs.items()}})

    def remove_unused(self) -> bool:
        """Drops nodes that lead to no output, and the weights only they read."""
        graph = self.module.graph
        before = (len(graph.nodes), len(self.module.state_dict()))
        graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
        read = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
        for path in self.module.state_dict().keys() - read:
            parent, _, last = path.rpartition(".")
            delattr(self.module.get_submodule(parent), last)
        self.module.delete_all_unused_submodules()
        self._edited()
        return before != (len(graph.nodes), len(self.module.state_dict()))

    def _shown(self) -> dict[str, fx.Node]:
        shown: dict[str, fx.Node] = dict(self.module.graph.output_node().args[0])  # type: ignore[arg-type]
        return shown

    def _show(self, shown: Mapping[str, fx.Node]) -> None:
        self.module.graph.output_node().args = (dict(shown),)
        self._edited()

    def _edited(self) -> None:
        self.module.graph.lint()
        self.module.recompile()

    # --- weights ----------------------------------------------------------------------------------

    def weights(self) -> dict[str, np.ndarray[Any, Any]]:
        """Copies of all parameters and buffers, by their names in the module's `state_dict`."""
        state = self.module.state_dict()
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in state.items()}

    def set_weights(self, weights: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Gives parameters and buffers other contents.

        Raises:
            HostError: there is none of a name, or it has another shape. None is changed then.
        """
        state = self.module.state_dict()
        for name, array in weights.items():
            if name not in state or tuple(state[name].shape) != array.shape:
                found = f"has shape {list(state[name].shape)}" if name in state else "is not there"
                raise _refusal(f"Weight `{name}` of shape {list(array.shape)} {found}", "")
        with torch.no_grad():
            for name, array in weights.items():
                state[name].copy_(torch.from_numpy(np.array(array)))

    # --- running and saving -----------------------------------------------------------------------

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output by name, computed by torch; any batch where `batched`."""
        if inputs.keys() != self.inputs.keys():
            raise _refusal(f"Inputs are {', '.join(self.inputs)}; found {', '.join(inputs)}", "")
        tensors = []
        for name, type_ in self.inputs.items():
            array, start = np.array(inputs[name], type_.dtype, order="C"), 1 if self.batched else 0
            if array.ndim != len(type_.shape) or array.shape[start:] != type_.shape[start:]:
                raise _refusal(f"Input `{name}` is {type_}, found {TensorType.of(array)}", name)
            tensors.append(torch.from_numpy(array))
        training = self.module.training
        self.module.eval()
        try:
            with torch.no_grad():
                results = self.module(*tensors)
        finally:
            self.module.train(training)
        return {name: result.numpy().copy() for name, result in results.items()}

    def save(self, path: Path) -> None:
        """Writes a ``.pt2`` file that `torch.export.load` reads."""
        path = Path(path)
        training = self.module.training
        self.module.eval()
        try:
            program = torch.export.export(self.module, self._example(), dynamic_shapes=self._dims())
        finally:
            self.module.train(training)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            draft = Path(folder) / "model.pt2"
            torch.export.save(program, draft)
            os.replace(draft, path)

    def _example(self) -> tuple[torch.Tensor, ...]:
        lead = (2,) if self.batched else ()
        shapes = (t.shape if not lead else (*lead, *t.shape[1:]) for t in self.inputs.values())
        types = (getattr(torch, t.dtype) for t in self.inputs.values())
        return tuple(torch.zeros(s, dtype=d) for s, d in zip(shapes, types, strict=True))

    def _dims(self) -> tuple[Any, ...] | None:
        if not self.batched:
            return None
        batch = torch.export.Dim("batch", min=1)
        return tuple({0: batch} for _ in self.inputs)

    def fingerprint(self) -> str:
        """SHA-256 over nodes, input types and weights."""
        digest = hashlib.sha256()
        for name, type_ in self.inputs.items():
            digest.update(f"{name}: {type_}\n".encode())
        for node in self.module.graph.nodes:
            line = f"{node.op} {node.name} {node.target} {node.args} {node.kwargs}\n"
            digest.update(line.encode())
        for name, tensor in sorted(self.module.state_dict(keep_vars=True).items()):
            array = tensor.detach().cpu().contiguous()
            digest.update(f"{name}: {array.dtype}{tuple(array.shape)}\n".encode())
            digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class _Stamp:
    """A state of a module: its nodes with what they read, its tensors with their versions.

    Nodes, arguments and tensors are held, so that none can take the place of another unnoticed.
    """

    parts: tuple[object, ...]
    versions: tuple[int, ...]

    @classmethod
    def of(cls, module: fx.GraphModule) -> _Stamp:
        """The state the module is in. O(#nodes + #tensors)."""
        nodes = module.graph.nodes
        read = (part for n in nodes for part in (n, n.name, n.target, n.args, n.kwargs))
        tensors = (*module.parameters(), *module.buffers())
        return cls((*read, *tensors), tuple(tensor._version for tensor in tensors))

    def __eq__(self, other: object) -> bool:
        """Whether nothing was put in another's place or written to."""
        return (
            isinstance(other, _Stamp)
            and self.versions == other.versions
            and len(self.parts) == len(other.parts)
            and all(map(operator.is_, self.parts, other.parts))
        )


@dataclass
class _View:
    """What was read off a module in one state of it; the points once they were asked for."""

    stamp: _Stamp
    translation: Translation
    points: dict[str, Point] | None = None


def _refusal(message: str, node: str) -> HostError:
    return HostError(Problem("bad-head", message, node))


def _ancestors(node: fx.Node) -> set[fx.Node]:
    """The node and everything it is computed from."""
    found: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting.extend(current.all_input_nodes)
    return found


def _sort(graph: fx.Graph) -> None:
    """Restores topological order, moving as few nodes as it can: each behind its last source."""
    placed: set[fx.Node] = set()
    for node in list(graph.nodes):
        _place(node, placed)


def _place(node: fx.Node, placed: set[fx.Node]) -> None:
    waiting = [node]
    while waiting:
        current = waiting[-1]
        missing = [source for source in current.all_input_nodes if source not in placed]
        if missing:
            waiting.extend(missing)
            continue
        waiting.pop()
        if current not in placed:
            placed.add(current)
            if current is not node:
                node.prepend(current)

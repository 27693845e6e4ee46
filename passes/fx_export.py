"""A PyTorch module as a plain torch.fx graph module of functional ATen calls."""

from __future__ import annotations

import inspect
import io
import logging
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from eecompile.ir import TensorType
from eecompile.passes.fx_state import training_flag
from eecompile.passes.host import HostError, Problem

__all__ = ["Loaded", "export", "failed", "said", "unreadable"]


@dataclass(frozen=True)
class Loaded:
    """A network, exported: what `FxHost` holds.

    Attributes:
        module: takes the inputs in order, gives a dictionary of tensors.
        inputs: name -> type, in the module's order.
        batched: whether the leading dimension may be any number.
        name: what the network is called.
    """

    module: fx.GraphModule
    inputs: Mapping[str, TensorType]
    batched: bool
    name: str


def export(
    model: nn.Module, inputs: Mapping[str, TensorType], outputs: Sequence[str], name: str
) -> Loaded:
    """`model`, in evaluation mode, exported for any batch if it allows that, else as it is.

    Args:
        model: the network.
        inputs: types by name; a leading dimension of 1 everywhere stands for the batch.
        outputs: names of the outputs, or none for the defaults.
        name: what to call it.

    Raises:
        HostError: torch.export refuses it, or inputs and outputs are not as told.
    """
    names = _parameter_order(model, inputs)
    ordered = {key: inputs[key] for key in names}
    if {t.shape[:1] for t in inputs.values()} == {(1,)}:
        try:
            module = _graph_module(model, ordered, outputs, flexible=True)
            if _agree(module, model, ordered):
                return Loaded(module, ordered, True, name)
        except Exception:
            # Tried again below without freedom of batch; what is wrong then is told.
            logging.getLogger(__name__).debug("no flexible batch", exc_info=True)
    try:
        return Loaded(_graph_module(model, ordered, outputs, flexible=False), ordered, False, name)
    except HostError:
        raise
    except Exception as error:
        raise _not_exported(error) from error


def _parameter_order(model: nn.Module, inputs: Mapping[str, TensorType]) -> list[str]:
    """Input names in the order of `forward`'s parameters."""
    signature = inspect.signature(model.forward)
    parameters = [p for p in signature.parameters if p in inputs]
    known = ", ".join(f"`{p}`" for p in signature.parameters)
    if unknown := [name for name in inputs if parameters and name not in parameters]:
        message = f"`forward` has no parameter `{unknown[0]}`; it takes {known}"
        raise HostError(Problem("unknown-input", message))
    args, kwargs = ([], dict.fromkeys(inputs)) if parameters else (list(inputs), {})
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        message = f"`forward` takes {known}, found {len(inputs)} inputs: {error}"
        raise HostError(Problem("unknown-input", message)) from error
    return parameters or list(inputs)


def _by_name(model: nn.Module, inputs: Mapping[str, TensorType]) -> bool:
    return all(name in inspect.signature(model.forward).parameters for name in inputs)


def _called(model: nn.Module, tensors: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments and keywords to call the model, or describe a call of it, with."""
    if _by_name(model, tensors):
        return (), dict(tensors)
    return tuple(tensors.values()), {}


def _graph_module(
    model: nn.Module, inputs: Mapping[str, TensorType], outputs: Sequence[str], *, flexible: bool
) -> fx.GraphModule:
    """`model` as a graph module whose placeholders and outputs bear the given names."""
    example = {
        name: torch.zeros((2, *t.shape[1:]) if flexible else t.shape, dtype=getattr(torch, t.dtype))
        for name, t in inputs.items()
    }
    args, kwargs = _called(model, example)
    shapes: Any = None
    if flexible:
        batch = torch.export.Dim("batch", min=1)
        few, many = _called(model, {name: {0: batch} for name in inputs})
        shapes = few or many
    with _quiet():
        program = torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
        exported = program.module()
        if not _make_functional(exported.graph):
            program = program.run_decompositions({})
            exported = program.module()
    return _tidied(exported, program.call_spec.out_spec, list(inputs), outputs)


def _agree(module: fx.GraphModule, model: nn.Module, inputs: Mapping[str, TensorType]) -> bool:
    """Whether a graph exported for any batch still gives the model's numbers for one sample."""
    generator = torch.Generator().manual_seed(0)
    sample = {
        name: torch.rand(t.shape, generator=generator).to(getattr(torch, t.dtype))
        for name, t in inputs.items()
    }
    args, kwargs = _called(model, sample)
    module.eval()
    with torch.no_grad():
        wanted = pytree.tree_leaves(model(*args, **kwargs))
        found = module(*sample.values()).values()
    wanted = [leaf for leaf in wanted if isinstance(leaf, torch.Tensor)]
    return len(wanted) == len(found) and all(
        a.shape == b.shape and torch.allclose(a, b, 1e-4, 1e-5, equal_nan=True)
        for a, b in zip(wanted, found, strict=True)
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences torch.export, which warns of and prints its insides; its errors are raised."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    printed = io.StringIO()
    try:
        with warnings.catch_warnings(), redirect_stdout(printed), redirect_stderr(printed):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


# --- what went wrong ------------------------------------------------------------------------------


def unreadable(message: str, advice: str = "") -> HostError:
    """The error of a network that cannot be used."""
    return HostError(Problem("unreadable-model", message, help=advice))


def said(error: BaseException) -> str:
    """An exception in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def failed(message: str, error: BaseException) -> HostError:
    """An error of the user's code, with the line of it that raised."""
    here = str(Path(__file__).parent)
    library = str(Path(torch.__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((here, library, "<")) and "importlib" not in frame.filename
    ]
    frame = frames[-1] if frames else None
    return unreadable(message, f"at {frame.filename}:{frame.lineno}: {frame.line}" if frame else "")


def _not_exported(error: Exception) -> HostError:
    text = str(error)
    places = re.findall(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]+)', text)
    if "data-dependent" in text or "DataDependent" in type(error).__name__:
        file, line, code = places[-1] if places else ("", "", "")
        what = f": `{code.strip()}`" if code else ""
        return unreadable(
            f"The network's control flow depends on its data{what}",
            f"at {file}:{line}; torch.where or torch.cond can say it without branching"
            if file
            else "torch.where or torch.cond can say it without branching",
        )
    return failed(f"torch.export cannot capture the network: {said(error)}", error)


# --- tidying --------------------------------------------------------------------------------------


def _make_functional(graph: fx.Graph) -> bool:
    """Replaces in-place operators by ordinary ones where nothing else sees the change.

    That is where the changed tensor is the fresh result of an operator and no view of it exists.
    Returns whether no in-place operator and no nested graph is left.
    """
    clean = True
    place = {node: i for i, node in enumerate(graph.nodes)}
    for node in place:
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            clean = False
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable:
            continue
        changed, functional = node.args[0], _functional(node.target)
        if functional is None or not isinstance(changed, fx.Node) or not _is_private(changed, node):
            clean = False
            continue
        node.target = functional
        later = {user for user in changed.users if place[user] > place[node]}
        changed.replace_all_uses_with(node, later.__contains__)
    return clean


def _functional(overload: Any) -> Any:
    """``relu_.default`` -> ``relu.default``."""
    name, _, variant = str(overload).removeprefix("aten.").partition(".")
    if not name.endswith("_") or name.startswith("__"):
        return None
    return getattr(getattr(torch.ops.aten, name.rstrip("_"), None), variant, None)


def _is_private(tensor: fx.Node, writer: fx.Node) -> bool:
    """Whether nothing but `tensor` itself refers to its memory."""
    nodes = [tensor, *(user for user in tensor.users if user is not writer)]
    return tensor.op == "call_function" and not any(map(_may_alias, nodes))


#: These return their argument itself, or a view of it, where they can.
_LAZY = ("aten.contiguous", "aten.dropout", "aten.flatten", "aten.reshape", "aten.to.", "aten.type")


def _may_alias(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return node.op == "call_function"
    shares = any(result.alias_info is not None for result in schema.returns)
    return shares or str(node.target).startswith(_LAZY)


#: Checks that hold for the shapes exported, and calls that only guard them.
_CHECKS = ("aten._assert", "aten.sym_constrain", "_guards_fn")


def _tidied(
    exported: Any, out_spec: pytree.TreeSpec, inputs: Sequence[str], outputs: Sequence[str]
) -> fx.GraphModule:
    """A plain graph module: flat inputs, a dictionary of outputs, checks dropped."""
    graph = fx.Graph()
    old = [node for node in exported.graph.nodes if not str(node.target).startswith(_CHECKS)]
    placeholders = [node for node in old if node.op == "placeholder"]
    if len(placeholders) != len(inputs):
        message = f"The network has {len(placeholders)} inputs, {len(inputs)} are described"
        raise HostError(Problem("unknown-input", message))
    copies: dict[fx.Node, fx.Node] = {}
    for name, node in zip(inputs, placeholders, strict=True):
        copies[node] = graph.placeholder(name)
        copies[node].meta.clear()
    for node in old:
        if node.op == "output":
            graph.output(_named_outputs(node, out_spec, outputs, copies))
        elif node.op != "placeholder" and not _writes_back(node):
            copies[node] = graph.node_copy(node, copies.__getitem__)
            copies[node].meta = _described(node)
    _make_modes_switchable(graph)
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    return fx.GraphModule(exported, graph)


def _writes_back(node: fx.Node) -> bool:
    """Whether the node is what is left of a write to an input, which is not ours to change."""
    if str(node.target) != "aten.copy_.default" or node.users:
        return False
    target = node.args[0]
    if isinstance(target, fx.Node) and target.op == "placeholder":
        return True
    raise unreadable(f"The network changes its own state `{getattr(target, 'target', target)}`")


def _named_outputs(
    node: fx.Node,
    out_spec: pytree.TreeSpec,
    names: Sequence[str],
    copies: Mapping[fx.Node, fx.Node],
) -> dict[str, fx.Node]:
    """Output name -> node: the given names, a dictionary's keys, or ``output``."""
    leaves = pytree.tree_leaves(node.args[0])
    tree = pytree.tree_unflatten(list(range(out_spec.num_leaves)), out_spec)
    paths, _ = pytree.tree_flatten_with_path(tree)
    found = {}
    for (path, index), leaf in zip(paths, leaves, strict=True):
        if isinstance(leaf, fx.Node):
            keys = [str(getattr(key, "key", getattr(key, "idx", index))) for key in path]
            first = "output" if not keys or keys[0].isdigit() else ""
            found["_".join(filter(None, [first, *keys]))] = copies[leaf]
    if len(found) == 1 and next(iter(found)).startswith("output"):
        found = {"output": next(iter(found.values()))}
    if names and len(names) != len(found):
        message = f"The network has {len(found)} outputs, {len(names)} are named"
        raise HostError(Problem("unknown-output", message))
    return dict(zip(names or found, found.values(), strict=True))


def _described(node: fx.Node) -> dict[str, str]:
    """Module path and source line: all that is kept of torch's notes on a node."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str([*stack.values()][-1][0]) if stack else ""
    # Forms of older exporters, and the mark of a module's second call.
    path = re.sub(r"^L\['self'\]\.?|^L__self__\.?|@\d+", "", path)
    frames = re.findall(
        r'File "([^"]+)", line (\d+), in [^\n]*(?:\n\s*([^\n]*))?',
        node.meta.get("stack_trace") or "",
    )
    library = str(Path(torch.__file__).parent)
    frames = [frame for frame in frames if not frame[0].startswith(library)] or frames
    source = "{}:{}: {}".format(*frames[-1]).rstrip(": ") if frames else ""
    return {"scope": path, "source": source}


def _make_modes_switchable(graph: fx.Graph) -> None:
    """Lets `train()` and `eval()` reach dropout and batch normalisation, exported as inference."""
    place = {"batch_norm": 5, "dropout": 2, "feature_dropout": 2, "alpha_dropout": 2}
    for node in list(graph.nodes):
        index = place.get(str(node.target).removeprefix("aten.").removesuffix(".default"))
        if index is not None and len(node.args) > index and node.args[index] is False:
            arguments = list(node.args)
            arguments[index] = training_flag(graph)
            node.args = tuple(arguments)

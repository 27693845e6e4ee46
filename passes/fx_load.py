"""From a user's Python file and weights to a graph module of ATen calls."""

from __future__ import annotations

import importlib.util
import inspect
import linecache
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eecompile.diagnostics import did_you_mean_help
from eecompile.ir import Graph, TensorType
from eecompile.passes.fx_export import Loaded, export, failed, said, unreadable
from eecompile.passes.fx_translate import renamed, translate
from eecompile.passes.host import HostError, Problem

__all__ = ["load_module_head", "load_torch_module", "load_weights"]


def load_torch_module(
    entry: str,
    weights: Path | str | None,
    inputs: Mapping[str, TensorType],
    outputs: Sequence[str] = (),
) -> Loaded:
    """The exported network; arguments and errors as in `fx_host.load_torch`."""
    # Standard output is ours, perhaps one JSON object: what the user's code prints goes beside it.
    with redirect_stdout(sys.stderr), _user_code(entry) as function:
        try:
            model = function()
        except Exception as error:
            raise failed(f"`{entry}` raised {said(error)}", error) from error
        if not isinstance(model, nn.Module):
            raise unreadable(f"`{entry}` returned {type(model).__name__}, not an nn.Module")
        if weights is not None:
            load_weights(model, Path(weights))
        return export(model.eval(), inputs, outputs, entry.rpartition(":")[2])


def load_module_head(entry: str, weights: Path | str | None, feature: TensorType) -> Graph:
    """A user's own exit head as a neutral graph: input ``feature``, output ``logits``.

    Args:
        entry: ``path/file.py:Head``, a class or function that gives the module without arguments.
        weights: its state dict, or None.
        feature: type of the tensor it reads.

    Raises:
        HostError: it cannot be loaded or translated, or has several outputs.
    """
    loaded = load_torch_module(entry, weights, {"feature": feature})
    translation = translate(loaded.module, loaded.inputs, loaded.name)
    if len(translation.outputs) != 1:
        problem = f"Head `{entry}` gives {len(translation.outputs)} tensors instead of its logits"
        raise HostError(Problem("bad-head", problem))
    (logits,) = translation.outputs.values()
    if logits == "feature":
        raise HostError(Problem("bad-head", f"Head `{entry}` computes nothing"))
    return renamed(translation.graph, {logits: "logits"})


# --- a user's file --------------------------------------------------------------------------------


@contextmanager
def _user_code(entry: str) -> Iterator[Callable[[], Any]]:
    """The function `entry` names; its file's folder can be imported from inside the block."""
    file, colon, function = entry.rpartition(":")
    if not colon or not function.isidentifier():
        raise unreadable(f"`{entry}` does not name a function", "write `file.py:function`")
    path = Path(file).resolve()
    if not path.is_file():
        raise HostError(Problem("missing-file", f"There is no file `{file}`"))
    sys.path.insert(0, str(path.parent))
    linecache.checkcache(str(path))  # it may have been edited since messages last quoted it
    try:
        module = _imported(path)
        found = getattr(module, function, None)
        if not callable(found):
            own = (v for v in vars(module).values() if inspect.isfunction(v) or inspect.isclass(v))
            names = [v.__name__ for v in own if v.__module__ == module.__name__]
            advice = did_you_mean_help(function, names) or f"it has {', '.join(names) or 'none'}"
            raise unreadable(f"No function `{function}` in `{path.name}`", advice)
        yield found
    finally:
        sys.path.remove(str(path.parent))


def _imported(path: Path) -> Any:
    name = f"_eecompile_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise unreadable(f"`{path.name}` is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise failed(f"`{path.name}` cannot be imported: {said(error)}", error) from error
    return module


# --- weights --------------------------------------------------------------------------------------

#: Where training scripts put the state dict in what they save.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a state dict; no code of the file is run. A common ``module.`` prefix is dropped.

    Raises:
        HostError: the file holds something else, or the weights of another network.
    """
    state = _state_dict(path)
    own = model.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own and not k.endswith("num_batches_tracked")]
    shapes = [
        f"`{k}` is {tuple(state[k].shape)} in the file, {tuple(v.shape)} in the network"
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    problems = []
    if missing:
        problems.append(f"Weights missing in `{path.name}`: {_listed(missing)}")
    if unexpected:
        problems.append(f"Weights in `{path.name}` the network lacks: {_listed(unexpected)}")
    problems += [f"Weight {shape}" for shape in shapes]
    if problems:
        raise HostError(*(Problem("unreadable-weights", problem) for problem in problems))
    model.load_state_dict({k: v for k, v in state.items() if k in own}, strict=False)


def _listed(names: Sequence[str], most: int = 20) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _state_dict(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise HostError(Problem("missing-file", f"There is no file `{path}`"))
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        code = "weights_only" in str(error) or "Unsupported" in str(error)
        holds = "holds more than plain tensors" if code else "is no file of weights"
        advice = "save `model.state_dict()`, not the model itself" if code else ""
        problem = Problem("unreadable-weights", f"`{path.name}` {holds}", help=advice)
        raise HostError(problem) from error
    while isinstance(found, dict) and not _is_state(found):
        inner = [found[key] for key in _WRAPPERS if isinstance(found.get(key), dict)]
        if not inner:
            break
        found = inner[0]
    if not isinstance(found, dict) or not _is_state(found):
        message = f"`{path.name}` holds {type(found).__name__}, not a state dict"
        raise HostError(Problem("unreadable-weights", message))
    if all(name.startswith("module.") for name in found):  # saved from a DataParallel wrapper
        found = {name.removeprefix("module."): tensor for name, tensor in found.items()}
    return found


def _is_state(found: Mapping[Any, Any]) -> bool:
    tensors = (isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in found.items())
    return bool(found) and all(tensors)

"""The ONNX host: an ONNX file behind the `HostGraph` interface.

The model stays the user's `ModelProto`; edits touch only what they must, so that names, metadata
and weights of the rest are saved as they came. The neutral view is made by `onnx_translate`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx
from onnx import helper

from eecompile.atomic import write_file
from eecompile.diagnostics import ToolError, did_you_mean_help
from eecompile.ir import Graph, TensorType
from eecompile.passes.host import HostError, HostGraph, Point, Problem, collect_points, read_by
from eecompile.passes.onnx_edit import insert_behind, read_instead, remove_unused
from eecompile.passes.onnx_emit import Unexpressible, emit, set_scope
from eecompile.passes.onnx_layers import LAYERS
from eecompile.passes.onnx_moving import MOVING
from eecompile.passes.onnx_operators import OPERATORS
from eecompile.passes.onnx_quantised import MICROSOFT, QUANTISED
from eecompile.passes.onnx_read import read_model
from eecompile.passes.onnx_recurrent import RECURRENT
from eecompile.passes.onnx_scopes import Scopes
from eecompile.passes.onnx_translate import Handler, Translation, translate

__all__ = ["OnnxHost", "load_onnx"]

_HANDLERS: dict[tuple[str, str], Handler] = {
    **{
        ("", kind): handler
        for kind, handler in (OPERATORS | MOVING | LAYERS | QUANTISED | RECURRENT).items()
    },
    **{("com.microsoft", kind): handler for kind, handler in MICROSOFT.items()},
}


def load_onnx(path: Path | str, inputs: Mapping[str, TensorType] | None = None) -> OnnxHost:
    """The network in an ONNX file.

    Args:
        path: the file; external data are read from its folder only.
        inputs: types that fix dynamic dimensions, by input name (by place where no name fits).

    Raises:
        HostError: the file cannot be read, is invalid, has unknown dimensions left, or holds
            operators that are not supported (each is named).
    """
    path = Path(path)
    model = read_model(path, inputs, _HANDLERS)
    host = OnnxHost(model, path.stem)
    types, values = host.graph().types, host.outputs()
    for output in model.graph.output:  # known now, also where they were dynamic
        tensor = output.type.tensor_type
        shape = types[values[output.name]].shape
        output.type.CopyFrom(helper.make_tensor_type_proto(tensor.elem_type, shape))
    return host


class OnnxHost(HostGraph):
    """An ONNX network; made by `load_onnx`."""

    kind = "onnx"

    def __init__(self, model: onnx.ModelProto, name: str) -> None:
        self._model = model
        self._name = name
        self._translated: Translation | None = None
        self._session: tuple[onnx.ModelProto, Any] | None = None

    def copy(self) -> Self:
        """See `HostGraph.copy`."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        return type(self)(model, self._name)

    # -- reading -------------------------------------------------------------------------------

    @property
    def _translation(self) -> Translation:
        if self._translated is None:
            self._translated = translate(self._model, _HANDLERS, self._name)
        return self._translated

    def graph(self) -> Graph:
        """See `HostGraph.graph`; operators that no output needs are there until removed."""
        return self._translation.graph

    def outputs(self) -> dict[str, str]:
        """See `HostGraph.outputs`."""
        values = self._translation.values
        return {output.name: values[output.name] for output in self._model.graph.output}

    def points(self) -> dict[str, Point]:
        """See `HostGraph.points`."""
        translation = self._translation
        own = {value for name, value in translation.values.items() if name == value}
        renamed = {n: v for n, v in translation.values.items() if n != v and v in own}
        nodes = {name: value for name, value in translation.nodes.items() if value in own}
        modules = {path: value for path, value in translation.modules.items() if value in own}
        return collect_points(self.graph(), own, renamed | nodes, modules)

    # -- editing -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _edited(self) -> Iterator[onnx.GraphProto]:
        """The graph of a copy, which takes the model's place if it still can be translated."""
        candidate = onnx.ModelProto()
        candidate.CopyFrom(self._model)
        yield candidate.graph
        translated = translate(candidate, _HANDLERS, self._name)
        self._model, self._translated = candidate, translated

    def splice(
        self,
        graph: Graph,
        feature: str | Mapping[str, str],
        prefix: str,
        weights: Mapping[str, str] | None = None,
    ) -> tuple[str, ...]:
        """See `HostGraph.splice`; the new values are called ``prefix/name in graph``."""
        read = read_by(graph, feature)
        for name, value in read.items():
            wanted, type_ = graph.types[name], self._type(value)
            if wanted != type_:
                raise _wrong("bad-head", f"Expected `{value}` to be {wanted}, found {type_}")
        self._check_weights(graph, weights or {})
        if prefix in Scopes(self._model.graph) or self._uses(f"{prefix}/"):
            raise _wrong("duplicate-name", f"The name `{prefix}` is taken")
        names = {name: f"{prefix}/{name}" for name in graph.types} | read | dict(weights or {})
        opset = next(entry.version for entry in self._model.opset_import if not entry.domain)
        try:
            nodes, tensors = emit(graph, names, prefix, opset)
        except Unexpressible as why:
            raise _wrong(
                "bad-head", str(why), "export the network with a later operator set"
            ) from why
        with self._edited() as edited:
            known = {tensor.name for tensor in edited.initializer}
            edited.initializer.extend(tensor for tensor in tensors if tensor.name not in known)
            insert_behind(edited, read.values(), nodes)
        return tuple(self._translation.values[names[name]] for name in graph.outputs)

    def _check_weights(self, graph: Graph, weights: Mapping[str, str]) -> None:
        """Refuses paths where something else than such a weight is."""
        stored = {tensor.name: tuple(tensor.dims) for tensor in self._model.graph.initializer}
        others = self._translation.values.keys() - stored.keys()
        for name, path in weights.items():
            if path in others or stored.get(path, graph.types[name].shape) != (
                graph.types[name].shape
            ):
                raise _wrong("duplicate-name", f"The name `{path}` is taken")

    def add_output(self, name: str, value: str) -> None:
        """See `HostGraph.add_output`; an `Identity` gives the value its name as an output."""
        self._check_output(name, value)
        with self._edited() as edited:
            self._show(edited, name, value)

    def _check_output(self, name: str, value: str) -> None:
        """Refuses an output whose name is taken, or of no value."""
        self._type(value)
        if name in self.outputs():
            raise _wrong("duplicate-name", f"There is an output `{name}` already")
        if name != value and (name in self._translation.values or self._uses(f"output/{name}")):
            raise _wrong("duplicate-name", f"The name `{name}` is taken")

    def _show(self, edited: onnx.GraphProto, name: str, value: str) -> None:
        type_ = self._type(value)
        if name != value:
            node = helper.make_node("Identity", [value], [name], f"output/{name}")
            op = self.graph().producer().get(value)
            set_scope(node, op.scope if op else "")
            insert_behind(edited, [value], [node])
        element = helper.np_dtype_to_tensor_dtype(np.dtype(type_.dtype))
        edited.output.append(helper.make_tensor_value_info(name, element, type_.shape))

    def replace_uses(self, old: str, new: str) -> None:
        """See `HostGraph.replace_uses`; an output keeps its name and shows `new`."""
        self.rewire({old: new}, {})

    def rewire(self, uses: Mapping[str, str], outputs: Mapping[str, str]) -> None:
        """See `HostGraph.rewire`; the model is translated anew only once."""
        for old, new in uses.items():
            wanted, type_ = self._type(old), self._type(new)
            if wanted != type_:
                raise _wrong("bad-head", f"Expected `{new}` to be {wanted}, found {type_}")
        for name, value in outputs.items():
            self._check_output(name, value)
        with self._edited() as edited:
            for old, new in uses.items():
                read_instead(edited, old, new)
            for name, value in outputs.items():
                self._show(edited, name, value)

    def remove_unused(self) -> bool:
        """See `HostGraph.remove_unused`."""
        with self._edited() as edited:
            return remove_unused(edited)

    def _type(self, value: str) -> TensorType:
        """The type of a value that the model has too."""
        values = self._translation.values
        if values.get(value) != value:
            raise _wrong(
                "unknown-point", f"Unknown value `{value}`", did_you_mean_help(value, values)
            )
        return self.graph().types[value]

    def _uses(self, start: str) -> bool:
        names = (*self._translation.values, *(node.name for node in self._model.graph.node))
        return any(name.startswith(start) for name in names)

    # -- running and saving --------------------------------------------------------------------

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See `HostGraph.run`: ONNX Runtime where it is installed, else ONNX's own evaluator.

        Raises:
            ToolError: the model holds operators that only ONNX Runtime has, and it is not there.
        """
        weights = {tensor.name for tensor in self._model.graph.initializer}
        feeds = {
            value.name: np.asarray(inputs[value.name]).astype(
                helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type), copy=False
            )
            for value in self._model.graph.input
            if value.name not in weights
        }
        results = self._engine().run(None, feeds)
        names = [output.name for output in self._model.graph.output]
        return dict(zip(names, map(np.asarray, results), strict=True))

    def _engine(self) -> Any:
        if self._session is None or self._session[0] is not self._model:
            self._session = (self._model, _session(self._model))
        return self._session[1]

    def save(self, path: Path) -> None:
        """See `HostGraph.save`: one file, checked by `onnx.checker`."""
        onnx.checker.check_model(self._model)
        _write_atomically(Path(path), self._model.SerializeToString(deterministic=True))

    def fingerprint(self) -> str:
        """See `HostGraph.fingerprint`."""
        return hashlib.sha256(self._model.SerializeToString(deterministic=True)).hexdigest()


def _write_atomically(path: Path, content: bytes) -> None:
    """Put a file where another may be, so that at any time one of the two is there whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        write_file(temporary, content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _wrong(kind: str, message: str, help: str = "") -> HostError:
    return HostError(Problem(kind, message, help=help))


def _session(model: onnx.ModelProto) -> Any:
    if importlib.util.find_spec("onnxruntime"):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    if any(node.domain for node in model.graph.node):
        raise ToolError(
            "this model holds operators only ONNX Runtime has", "pip install onnxruntime"
        )
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(model)

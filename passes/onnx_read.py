"""Reading an ONNX file that may be damaged, hostile, or not fully specified.

Nothing outside the file's own folder is read, sizes are checked against what is on disk before
anything is allocated, and what comes out has static input shapes and a unique name for every node.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from onnx import external_data_helper, inliner, numpy_helper

from eecompile.ir import TensorType
from eecompile.passes.host import HostError, Problem
from eecompile.passes.onnx_edit import bodies
from eecompile.passes.onnx_translate import Refused, element_name, neutral_dtype

__all__ = ["OLDEST_OPSET", "external_files", "read_model"]

#: Opset 7 brought numpy's broadcasting.
OLDEST_OPSET = 7

_LARGEST_FILE = 2 << 30  # a protobuf message cannot be longer
_LARGEST_EXTERNAL = 16 << 30

#: Domains whose operators some table of handlers knows, at least in part.
_KNOWN_DOMAINS = ("", "ai.onnx", "com.microsoft")


def read_model(
    path: Path, inputs: Mapping[str, TensorType] | None, known: Collection[tuple[str, str]]
) -> onnx.ModelProto:
    """The checked model, weights loaded, local functions inlined, input shapes static.

    Args:
        path: an ONNX file.
        inputs: types of the network's inputs, by name. One that is named differently is taken by
            its place where no name in `inputs` is one of the network's.
        known: (domain, operator) that need not be expanded into the functions ONNX defines for
            them.

    Raises:
        HostError: unreadable, damaged or invalid file, external data out of reach, operators of an
            unknown domain, or inputs that do not fit `inputs` or stay dynamic.
    """
    model = _parse(path)
    _load_external_data(model, path)
    _check_domains(model)
    _check(model, path)
    if model.functions:
        model = inliner.inline_local_functions(model)
    _drop_stale_types(model)
    _use_float32(model)
    _fix_inputs(model.graph, inputs)
    model = _expand_functions(model, known)
    _name_nodes(model.graph)
    return model


def _expand_functions(
    model: onnx.ModelProto, known: Collection[tuple[str, str]]
) -> onnx.ModelProto:
    """The model with operators that nobody knows written out, where ONNX says how."""
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    used = {("", node.op_type) for node in _nodes(model.graph) if not node.domain}
    functions = sorted(pair for pair in used.difference(known) if _has_function(pair[1], opset))
    if not functions:
        return model
    try:
        return inliner.inline_selected_functions(model, functions, inline_schema_functions=True)
    except RuntimeError:  # types that ONNX cannot infer; the operator will be refused by name
        return model


def _has_function(operator: str, opset: int) -> bool:
    try:
        schema: Any = onnx.defs.get_schema(operator, opset, "")
    except onnx.defs.SchemaError:
        return False
    return bool(schema.has_function or schema.has_context_dependent_function)


def _wrong(kind: str, message: str, help: str = "", **where: str) -> HostError:
    return HostError(Problem(kind, message, help=help, **where))


def _parse(path: Path) -> onnx.ModelProto:
    try:
        size = path.stat().st_size
        if size > _LARGEST_FILE:
            raise _wrong(
                "unreadable-model",
                f"`{path}` has {size} bytes; an ONNX file has at most {_LARGEST_FILE}",
                "keep the weights in external data",
            )
        content = path.read_bytes()
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise _wrong("missing-file", f"There is no file `{path}`") from error
        reason = (error.strerror or str(error)).lower()
        raise _wrong("unreadable-model", f"Cannot read `{path}`: {reason}") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise _wrong("unreadable-model", f"`{path}` is no ONNX file, or a truncated one") from error
    if not _holds_text(model):
        raise _wrong("unreadable-model", f"`{path}` is damaged: it holds names that are no text")
    if not model.graph.node and not model.graph.output:
        raise _wrong("unreadable-model", f"`{path}` holds no network")
    return model


def _holds_text(message: Message) -> bool:
    """Whether every string of the message, and of the messages in it, is UTF-8.

    Protobuf does not look when it parses; it gives bytes, or fails, when a string is looked at.
    """
    try:
        return all(isinstance(text, str) for text in _strings(message))
    except UnicodeDecodeError:
        return False


def _strings(message: Message) -> Iterator[object]:
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_MESSAGE, field.TYPE_STRING):
            continue
        for item in [value] if isinstance(value, (Message, str, bytes)) else value:
            if field.type == field.TYPE_MESSAGE:
                yield from _strings(item)
            else:
                yield item


# -- external data -----------------------------------------------------------------------------


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model: initializers, attributes, subgraphs, functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
    elif isinstance(message, onnx.ModelProto):
        yield from _tensors(message.graph)
        for function in message.functions:
            yield from _in_nodes(function.node)
    elif isinstance(message, onnx.GraphProto):
        yield from message.initializer
        for sparse in message.sparse_initializer:
            yield sparse.values
            yield sparse.indices
        yield from _in_nodes(message.node)


def _in_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for body in bodies(node):
            yield from _tensors(body)


def external_files(path: Path) -> tuple[Path, ...]:
    """The files beside an ONNX file that hold some of its weights; none if it cannot be read."""
    try:
        tensors = list(_tensors(_parse(path)))
    except HostError:
        return ()
    names = {
        entry.value
        for tensor in tensors
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(path.parent / name for name in sorted(names))


def _load_external_data(model: onnx.ModelProto, path: Path) -> None:
    folder = path.parent.resolve()
    total = 0
    for tensor in _tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        total += _checked_length(tensor, folder)
        if total > _LARGEST_EXTERNAL:
            raise _wrong("unreadable-model", f"The external data of `{path}` are over 16 GiB")
        external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]


def _checked_length(tensor: onnx.TensorProto, folder: Path) -> int:
    """Bytes of a tensor's external data, once it is sure that they are there to be read."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    file = (folder / location).resolve()
    what = f"The external data of `{tensor.name}`"
    if not location or not file.is_relative_to(folder):
        raise _wrong(
            "unreadable-model",
            f"{what} lie outside the model's folder, at `{location}`",
            "move them beside the model",
        )
    if not file.is_file():
        raise _wrong("unreadable-model", f"{what} are missing: there is no `{location}`")
    try:
        offset, size = int(entries.get("offset", 0)), file.stat().st_size
        length = int(entries.get("length", size - offset))
    except ValueError as error:
        raise _wrong("unreadable-model", f"{what} have no valid offset and length") from error
    if offset < 0 or length < 0 or offset + length > size:
        raise _wrong("unreadable-model", f"{what} reach past the end of `{location}`")
    return length


# -- validity ----------------------------------------------------------------------------------


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for body in bodies(node):
            yield from _nodes(body)


def _check_domains(model: onnx.ModelProto) -> None:
    local = {(function.domain, function.name) for function in model.functions}
    foreign = [
        node
        for node in _nodes(model.graph)
        if node.domain not in _KNOWN_DOMAINS and (node.domain, node.op_type) not in local
    ]
    problems = []
    for node in foreign:
        name, operator = node.name or _stable_name(node), f"{node.domain}::{node.op_type}"
        message = f"Operator `{operator}` of node `{name}` belongs to a custom domain"
        help_ = "export the network with standard ONNX operators only"
        problems.append(Problem("unsupported-operator", message, name, operator, help_))
    if problems:
        raise HostError(*problems)
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise _wrong(
            "unreadable-model",
            f"Operator set {opset} is not supported; {OLDEST_OPSET} to {newest} are",
            "convert it with `onnx.version_converter.convert_version`",
        )


def _check(model: onnx.ModelProto, path: Path) -> None:
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        first = next(filter(None, map(str.strip, str(error).splitlines())), "no reason given")
        raise _wrong("unreadable-model", f"`{path}` is no valid ONNX model: {first}") from error


def _drop_stale_types(model: onnx.ModelProto) -> None:
    """Forget recorded types of inner values: they may hold the names of dynamic dimensions."""
    for node in _nodes(model.graph):
        for body in bodies(node):
            del body.value_info[:]
        if node.domain == "ai.onnx":  # the default domain's other name
            node.domain = ""
    for entry in model.opset_import:
        entry.domain = "" if entry.domain == "ai.onnx" else entry.domain
    del model.graph.value_info[:]


_OTHER_FLOATS = (
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
)


def _use_float32(model: onnx.ModelProto) -> None:
    """Compute in float32 what the model computes in float64, float16 or bfloat16.

    The compiled network does; so heads fit in, and what is compared with it runs on equal terms.
    """
    for tensor in _tensors(model):
        if tensor.data_type in _OTHER_FLOATS:
            array = numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type in _OTHER_FLOATS:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for node in _nodes(model.graph):
        for attribute in node.attribute:
            named = (node.op_type, attribute.name) == ("Cast", "to") or attribute.name == "dtype"
            if named and attribute.i in _OTHER_FLOATS:
                attribute.i = onnx.TensorProto.FLOAT


# -- inputs ------------------------------------------------------------------------------------


def _fix_inputs(graph: onnx.GraphProto, wanted: Mapping[str, TensorType] | None) -> None:
    weights = {tensor.name for tensor in graph.initializer}
    values = [value for value in graph.input if value.name not in weights]
    by_name = _by_name(values, wanted or {})
    problems = [
        problem for value in values for problem in _fix_input(value, by_name.get(value.name))
    ]
    if problems:
        raise HostError(*problems)


def _by_name(
    values: list[onnx.ValueInfoProto], wanted: Mapping[str, TensorType]
) -> Mapping[str, TensorType]:
    names = [value.name for value in values]
    if len(wanted) <= len(names) and set(names).isdisjoint(wanted):
        return dict(zip(names, wanted.values(), strict=False))
    if unknown := [name for name in wanted if name not in names]:
        have = ", ".join(f"`{name}`" for name in names)
        raise HostError(
            *(
                Problem(
                    "unknown-input", f"The network has no input `{name}`", help=f"it has {have}"
                )
                for name in unknown
            )
        )
    return wanted


def _fix_input(value: onnx.ValueInfoProto, wanted: TensorType | None) -> Iterator[Problem]:
    name, tensor = value.name, value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        yield Problem("unsupported-operator", f"Input `{name}` is no tensor")
        return
    found = _listed(tensor)
    if wanted is not None:
        try:
            dtype = neutral_dtype(tensor.elem_type)
        except Refused as why:
            yield Problem("unsupported-operator", f"Input `{name}`: {why}")
            return
        if not tensor.HasField("shape"):
            tensor.shape.Clear()
            tensor.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in wanted.shape)
        fits = len(tensor.shape.dim) == len(wanted.shape)
        pairs = list(zip(tensor.shape.dim, wanted.shape, strict=False))
        if any(dim.dim_value > 0 and dim.dim_value != size for dim, size in pairs):
            fits = False
        if dtype != wanted.dtype or not fits or any(size <= 0 for size in wanted.shape):
            kind = "wrong-shape" if dtype == wanted.dtype else "wrong-dtype"
            message = f"Expected input `{name}` to be {found}, found {wanted}"
            yield Problem(kind, message)
            return
        for dim, size in pairs:
            dim.dim_value = size
    if not tensor.HasField("shape"):
        yield Problem("missing-input", f"Input `{name}` has no shape", help="state its shape")
    for i, dim in enumerate(tensor.shape.dim):
        if dim.dim_value <= 0:
            label = f" (`{dim.dim_param}`)" if dim.dim_param else ""
            yield Problem(
                "missing-input",
                f"Dimension {i}{label} of input `{name}` is not fixed: {found}",
                help=f"state the shape of `{name}`",
            )


def _listed(tensor: onnx.TypeProto.Tensor) -> str:
    """A type as the model declares it: ``float32[batch, 3, ?]``."""
    dims = (str(d.dim_value) if d.dim_value else d.dim_param or "?" for d in tensor.shape.dim)
    return f"{element_name(tensor.elem_type)}[{', '.join(dims)}]"


# -- names -------------------------------------------------------------------------------------


def _stable_name(node: onnx.NodeProto) -> str:
    return f"{node.op_type}_{next(filter(None, node.output), '')}"


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Names nodes after their first output where they have no name or not one of their own."""
    given = {node.name for node in _nodes(graph)}
    taken: set[str] = set()
    for node in _nodes(graph):
        stem = node.name if node.name and node.name not in taken else _stable_name(node)
        name, n = stem, 0
        while name in taken or (name in given and name != node.name):
            n += 1
            name = f"{stem}_{n}"
        taken.add(name)
        node.name = name

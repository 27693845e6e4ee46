"""The Open Inference Protocol, version 2, over HTTP and gRPC: the one importer of `tritonclient`.

`tritonclient` writes requests and reads answers. Over HTTP they travel by `HttpConnection`, as its
own client has a time limit for each step only, and none for the whole. Whatever it raises on what
a server sent is an attempt that failed: what comes from elsewhere can be anything.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote, urlsplit

import numpy as np

from eecompile.diagnostics import ToolError
from eecompile.offload_rule import Tail, WireTensor
from eecompile.runtime.offload.errors import AttemptFailed, Deadline, TooLate
from eecompile.runtime.offload.http import HttpConnection, Response
from eecompile.runtime.offload.wire import Reply

__all__ = ["Connection", "ModelMetadata", "Sent", "TensorMetadata", "connection_to"]

#: Beside what an answer holds: names, shapes, and digits where numbers come as text.
_MOST_BYTES = 1 << 20
_DIGITS = 64

Sent = Sequence[tuple[WireTensor, np.ndarray]]


@dataclass(frozen=True)
class TensorMetadata:
    """An input or output as a server describes it; -1 in a shape stands for any extent."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelMetadata:
    """A model as a server describes it; no versions where the server knows none."""

    name: str
    versions: tuple[str, ...]
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


class Connection(Protocol):
    """A server, asked by one protocol. Each method raises `AttemptFailed` or `TooLate`."""

    bytes_sent: int

    def ready(self, deadline: Deadline) -> bool:
        """Whether the server says that it is ready."""

    def models(self, deadline: Deadline) -> tuple[str, ...]:
        """Names of the models it has; none where it does not tell."""

    def metadata(self, model: str, deadline: Deadline) -> ModelMetadata:
        """What it says of a model."""

    def infer(
        self, tail: Tail, version: str, tensors: Sent, request: str, deadline: Deadline
    ) -> Reply:
        """What it computes; an empty version leaves the choice to the server."""

    def choose_form(self, tail: Tail, version: str, deadline: Deadline) -> None:
        """Finds out in which form it takes tensors."""

    def close(self) -> None:
        """An answer on its way is never read; the next request connects anew."""


def connection_to(url: str) -> Connection:
    """A connection, not yet made, to ``http://host:port``, ``https:``, ``grpc:`` or ``grpcs:``.

    Raises:
        ToolError: `tritonclient` is not installed.
    """
    parts = urlsplit(url)
    host, port, tls = parts.hostname or "", parts.port or 0, parts.scheme in ("https", "grpcs")
    return (_Grpc if parts.scheme.startswith("grpc") else _Http)(host, port, tls)


def _missing(error: ImportError) -> ToolError:
    return ToolError(
        f"tritonclient, which asks servers, cannot be imported ({error})",
        "pip install 'eecompile[offload]'",
    )


def datatype(dtype: str) -> str:
    """The protocol's name of an element type.

    >>> datatype("float32"), datatype("bool")
    ('FP32', 'BOOL')
    """
    return dtype.upper().replace("FLOAT", "FP")


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """What is wrong with what a server sent, in one kind of exception."""
    try:
        yield
    except AttemptFailed:
        raise
    except Exception as error:
        raise AttemptFailed(f"{type(error).__name__}: {error}"[:500]) from error


def _as_metadata(value: Mapping[str, Any]) -> ModelMetadata:
    def tensors(key: str) -> tuple[TensorMetadata, ...]:
        return tuple(
            TensorMetadata(str(one["name"]), str(one["datatype"]), tuple(map(int, one["shape"])))
            for one in value.get(key) or ()
        )

    versions = tuple(map(str, value.get("versions") or ()))
    return ModelMetadata(str(value["name"]), versions, tensors("inputs"), tensors("outputs"))


class _Http:
    """Over HTTP: tensors in binary form where the server takes it, as numbers in JSON elsewhere."""

    def __init__(self, host: str, port: int, tls: bool) -> None:
        try:
            import tritonclient.http as protocol
        except ImportError as error:
            raise _missing(error) from error
        self._protocol: Any = protocol
        self._connection = HttpConnection(host, port, tls=tls)
        self._binary = True
        self.bytes_sent = 0

    def _get(self, path: str, deadline: Deadline, body: bytes = b"") -> Any:
        """A response's JSON value, None where it has no body; posted where `body` is not empty."""
        response = self._connection.request(
            "POST" if body else "GET",
            path,
            deadline,
            body=body,
            headers={"Content-Type": "application/json"} if body else {},
            most_bytes=_MOST_BYTES,
        )
        _refuse_status(response)
        with _failures():
            return json.loads(response.body) if response.body else None

    def ready(self, deadline: Deadline) -> bool:
        response = self._connection.request(
            "GET", "/v2/health/ready", deadline, most_bytes=_MOST_BYTES
        )
        return response.status == 200

    def models(self, deadline: Deadline) -> tuple[str, ...]:
        found = self._get("/v2/repository/index", deadline, b"{}")
        with _failures():
            return tuple(str(one["name"]) for one in found)

    def metadata(self, model: str, deadline: Deadline) -> ModelMetadata:
        found = self._get(f"/v2/models/{quote(model, safe='')}", deadline)
        with _failures():
            return _as_metadata(found)

    def choose_form(self, tail: Tail, version: str, deadline: Deadline) -> None:
        """Binary where the server says so, or takes it: some take it and do not say so."""
        self._binary = True
        server = self._get("/v2", deadline)
        with _failures():
            if "binary_tensor_data" in server.get("extensions", ()):
                return
        zeros = [(t, np.zeros(t.shape, t.dtype)) for t in tail.inputs]
        try:
            self._binary = self.infer(tail, version, zeros, "form", deadline).output is not None
        except TooLate:
            raise
        except AttemptFailed:
            self._binary = False

    def infer(
        self, tail: Tail, version: str, tensors: Sent, request: str, deadline: Deadline
    ) -> Reply:
        protocol, client = self._protocol, self._protocol.InferenceServerClient
        with _failures():
            body, length = client.generate_request_body(
                self._inputs(tensors),
                [protocol.InferRequestedOutput(tail.output.name, binary_data=self._binary)],
                request,
            )
        headers = {"Content-Type": "application/json"}
        if length is not None:
            headers["Inference-Header-Content-Length"] = str(length)
            headers["Content-Type"] = "application/octet-stream"
        path = f"/v2/models/{quote(tail.model, safe='')}"
        path += f"/versions/{quote(version, safe='')}/infer" if version else "/infer"
        self.bytes_sent += len(body)
        most = _MOST_BYTES + _DIGITS * int(np.prod(tail.output.shape))
        response = self._connection.request(
            "POST", path, deadline, body=bytes(body), headers=headers, most_bytes=most
        )
        _refuse_status(response)
        with _failures():
            given = response.headers.get("inference-header-content-length")
            result = client.parse_response_body(
                response.body, header_length=None if given is None else int(given)
            )
            return _reply(result, result.get_response(), tail.output.name)

    def _inputs(self, tensors: Sent) -> list[Any]:
        found = []
        for tensor, array in tensors:
            one = self._protocol.InferInput(tensor.name, list(tensor.shape), datatype(tensor.dtype))
            found.append(one.set_data_from_numpy(array, binary_data=self._binary))
        return found

    def close(self) -> None:
        self._connection.close()


def _refuse_status(response: Response) -> None:
    """Raises for what is no success; the server's words go with it."""
    if response.status == 200:
        return
    words = response.body[:200].decode(errors="replace")
    raise AttemptFailed(f"status {response.status}: {words}", missing=response.status in (400, 404))


def _reply(result: Any, value: Mapping[str, Any], output: str) -> Reply:
    return Reply(
        str(value.get("id") or ""),
        str(value.get("model_name") or ""),
        str(value.get("model_version") or ""),
        result.as_numpy(output),
    )


class _Grpc:
    """Over gRPC, where tensors always travel in binary form."""

    #: No other endpoint is spoken to, so no proxy of the environment's; connections are not shared
    #: with other channels, whose pauses after failures would be waited for; nothing is tried again
    #: by the channel itself.
    _ARGUMENTS = (
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", _MOST_BYTES << 4),
    )

    def __init__(self, host: str, port: int, tls: bool) -> None:
        try:
            import tritonclient.grpc as protocol
        except ImportError as error:
            raise _missing(error) from error
        self._protocol: Any = protocol
        self._url = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._tls = tls
        self._client: Any = None
        self.bytes_sent = 0

    def _call(self, method: Callable[[Any, float], Any], deadline: Deadline) -> Any:
        """What `method` of the client gives, called with it and the seconds that are left."""
        left = deadline.left_s()
        try:
            with _failures():
                if self._client is None:
                    self._client = self._protocol.InferenceServerClient(
                        self._url, ssl=self._tls, channel_args=list(self._ARGUMENTS)
                    )
                return method(self._client, left)
        except BaseException as error:
            self.close()
            if not isinstance(error, AttemptFailed):
                raise
            cause: Any = error.__cause__
            status = cause.status() if hasattr(cause, "status") else ""
            if status == "StatusCode.DEADLINE_EXCEEDED":
                raise TooLate("there was no answer in time") from cause
            if status in ("StatusCode.NOT_FOUND", "StatusCode.INVALID_ARGUMENT"):
                raise AttemptFailed(str(error), missing=True) from cause
            raise

    def ready(self, deadline: Deadline) -> bool:
        return bool(self._call(lambda c, s: c.is_server_ready(client_timeout=s), deadline))

    def models(self, deadline: Deadline) -> tuple[str, ...]:
        found = self._call(lambda c, s: c.get_model_repository_index(client_timeout=s), deadline)
        return tuple(str(one.name) for one in found.models)

    def metadata(self, model: str, deadline: Deadline) -> ModelMetadata:
        found = self._call(lambda c, s: c.get_model_metadata(model, client_timeout=s), deadline)

        def tensors(given: Any) -> tuple[TensorMetadata, ...]:
            return tuple(TensorMetadata(t.name, t.datatype, tuple(t.shape)) for t in given)

        versions = tuple(map(str, found.versions))
        return ModelMetadata(found.name, versions, tensors(found.inputs), tensors(found.outputs))

    def choose_form(self, tail: Tail, version: str, deadline: Deadline) -> None:
        """Nothing to choose."""

    def infer(
        self, tail: Tail, version: str, tensors: Sent, request: str, deadline: Deadline
    ) -> Reply:
        inputs = []
        for tensor, array in tensors:
            one = self._protocol.InferInput(tensor.name, list(tensor.shape), datatype(tensor.dtype))
            inputs.append(one.set_data_from_numpy(array))
            self.bytes_sent += array.nbytes
        outputs = [self._protocol.InferRequestedOutput(tail.output.name)]

        def ask(client: Any, left_s: float) -> Reply:
            result = client.infer(
                tail.model,
                inputs,
                model_version=version,
                outputs=outputs,
                request_id=request,
                client_timeout=left_s,
            )
            answer = result.get_response()
            found = _output(result, answer, tail.output)
            return Reply(answer.id, answer.model_name, answer.model_version, found)

        reply: Reply = self._call(ask, deadline)
        return reply

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.close()


def _output(result: Any, answer: Any, wanted: WireTensor) -> np.ndarray | None:
    """The tensor asked for, also of servers that answer in numbers instead of bytes."""
    if answer.raw_output_contents:
        found: np.ndarray | None = result.as_numpy(wanted.name)
        return found
    for one in answer.outputs:
        if one.name == wanted.name and one.datatype == "FP32":
            return np.array(one.contents.fp32_contents, np.float32).reshape(tuple(one.shape))
    return None

"""Border tensors in the form they travel, and answers that are what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from eecompile.compiled import CompiledGraph
from eecompile.memory import border_values
from eecompile.offload_rule import OffloadRule, Tail, WireTensor
from eecompile.runtime.offload.errors import AttemptFailed

__all__ = ["Reply", "as_sent", "as_taken", "check_fit", "checked", "to_wire"]


@dataclass(frozen=True)
class Reply:
    """What a server says it computed.

    Attributes:
        request: the identifier of the request, as the server gives it back.
        model, version: what computed it; the version is empty where the server has none.
        output: the tensor that was asked for; None where it is not there.
    """

    request: str
    model: str
    version: str
    output: np.ndarray | None


def as_sent(tensor: WireTensor, value: np.ndarray) -> np.ndarray:
    """A value as it lies in memory, in the form it travels.

    float16 saturates, int8 rounds to the nearest step.

    >>> tensor = WireTensor("x", "x", (1, 3), "int8", scale=0.5, zero=-128)
    >>> as_sent(tensor, np.array([0.0, 0.6, 1e9])).tolist()
    [[-128, -127, 127]]
    >>> as_sent(WireTensor("x", "x", (1,), "float16"), np.array([1e9])).tolist()
    [65504.0]
    """
    given = np.asarray(value)
    if tensor.scale > 0:
        steps = np.rint(np.asarray(given, np.float32) / np.float32(tensor.scale)) + tensor.zero
        given = np.clip(steps, -128, 127)
    elif tensor.dtype == "float16":
        most = np.finfo(np.float16).max
        given = np.clip(given, -most, most)
    return np.ascontiguousarray(given, np.dtype(tensor.dtype)).reshape(tensor.shape)


def as_taken(tensor: WireTensor, sent: np.ndarray) -> np.ndarray:
    """What the server's model makes of a value that travelled, float32.

    >>> tensor = WireTensor("x", "x", (3,), "int8", scale=0.5, zero=-128)
    >>> as_taken(tensor, np.array([-128, -127, 127], np.int8)).tolist()
    [0.0, 0.5, 127.5]
    """
    if tensor.scale > 0:
        return (sent.astype(np.float32) - np.float32(tensor.zero)) * np.float32(tensor.scale)
    return sent.astype(np.float32) if tensor.dtype == "float16" else sent


def to_wire(tail: Tail, values: Mapping[str, np.ndarray]) -> list[tuple[WireTensor, np.ndarray]]:
    """Everything a tail needs, in the form it travels.

    Raises:
        KeyError, ValueError: a value is missing, or is of another size.
    """
    return [(tensor, as_sent(tensor, values[tensor.value])) for tensor in tail.inputs]


def check_fit(rule: OffloadRule, network: CompiledGraph) -> None:
    """Refuses a rule that is another network's, so that no sample fails for it later.

    Raises:
        ValueError: an exit, a value or the answer is not the network's.
    """
    types = dict(network.inputs)
    for segment in network.segments:
        types |= dict(segment.outputs)
    borders, count = border_values(network), len(network.exits)
    for index, tail in rule.tails.items():
        if index >= count:
            raise ValueError(f"it sends samples from exit {index} of {count}")
        if tail.exit != network.exits[index].name:
            raise ValueError(f"it sends samples from exit {index}, which is not `{tail.exit}`")
        for tensor in tail.inputs:
            there = tensor.value in borders[index]
            if not there or types[tensor.value].size != prod(tensor.shape):
                raise ValueError(f"it sends what is not there at `{tail.exit}`: `{tensor.value}`")
        if tail.output.shape != types[network.output].shape:
            raise ValueError(f"it expects answers of another shape: {list(tail.output.shape)}")


def checked(tail: Tail, request: str, reply: Reply) -> np.ndarray:
    """The network's answer, of its shape and type, every number finite.

    Raises:
        AttemptFailed: it is the answer to another request or of another model, or none.
    """
    if reply.request != request:
        raise AttemptFailed(f"an answer to request `{reply.request[:60]}` instead of `{request}`")
    if reply.model != tail.model or reply.version not in ("", tail.version):
        raise AttemptFailed(
            f"an answer of model `{reply.model[:200]}` version `{reply.version[:20]}`"
        )
    wanted, found = tail.output, reply.output
    if found is None:
        raise AttemptFailed(f"an answer without `{wanted.name}`")
    if found.dtype.name != wanted.dtype or found.shape != wanted.shape:
        raise AttemptFailed(
            f"an answer {found.dtype.name}{list(found.shape)}"
            f" instead of {wanted.dtype}{list(wanted.shape)}"
        )
    if not np.isfinite(found).all():
        raise AttemptFailed("an answer that is not finite")
    return np.array(found)

"""How a policy has samples finished elsewhere: by which servers, which models, in which form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import inf
from types import MappingProxyType
from typing import Any, Literal, get_args

from eecompile.checked_json import JsonError, ObjectReader

__all__ = ["Border", "OffloadRule", "Tail", "WireTensor"]

#: How border tensors travel.
Border = Literal["float32", "float16", "int8"]

_MOST_TAILS = 1_000
_MOST_RETRIES = 100
_MOST_EXTENT = 1 << 40
_MODEL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,200}")
_VERSION = re.compile(r"[0-9]{1,9}")
_DTYPES = ("float32", "float16", "int8", "int32", "int64", "uint8", "bool")


@dataclass(frozen=True, slots=True)
class WireTensor:
    """A value as it travels.

    Attributes:
        value: its name in the network.
        name: its name in the server's model.
        shape: of one sample, as it lies in the device's memory.
        dtype: numpy's name of the type it travels as.
        scale, zero: of a float32 value that travels as int8: it is ``scale * (sent - zero)``; 0.0
            and 0 where it is not rounded to steps.

    Raises:
        ValueError: there is no such tensor.
    """

    value: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float = 0.0
    zero: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}")
        if not all(0 < extent <= _MOST_EXTENT for extent in self.shape):
            raise ValueError("shape must be of whole numbers above 0")
        if not 0 <= self.scale < inf or (self.scale > 0 and self.dtype != "int8"):
            raise ValueError("scale must be finite, and above 0 for int8 only")
        if not -128 <= self.zero <= 127:
            raise ValueError("zero must be from -128 to 127")


@dataclass(frozen=True, slots=True)
class Tail:
    """The rest of the network behind an exit, as a server has it.

    Attributes:
        exit: the exit's name.
        model: the server's name for it; it ends in a digest of all that the model computes.
        version: the model's version in the folder that was written.
        inputs: what is sent.
        output: the network's answer, as it comes back; `WireTensor.value` is the network's output.
    """

    exit: str
    model: str
    version: str
    inputs: tuple[WireTensor, ...]
    output: WireTensor


@dataclass(frozen=True, slots=True)
class OffloadRule:
    """What `eecompile.runtime.offload.Offloader` sends, and to whom.

    Attributes:
        urls: the only servers that may be asked, the one used by default first.
        border: how border tensors travel.
        timeout_s: the most that one answer may take, all attempts together.
        retries: attempts after a failed one, within `timeout_s`.
        tails: index of the exit a sample is sent from -> what is sent, and what comes back.

    Raises:
        ValueError: the parts are not what they must be.
    """

    urls: tuple[str, ...]
    border: Border
    timeout_s: float
    retries: int
    tails: Mapping[int, Tail]

    def __post_init__(self) -> None:
        object.__setattr__(self, "tails", MappingProxyType(dict(self.tails)))
        if not self.urls or not self.tails:
            raise ValueError("there must be a server, and a tail to ask it for")
        if self.border not in get_args(Border):
            raise ValueError(f"border must be one of {', '.join(get_args(Border))}")
        if not 0 < self.timeout_s < inf:
            raise ValueError("timeout_s must be finite and above 0")
        if not 0 <= self.retries <= _MOST_RETRIES:
            raise ValueError(f"retries must be from 0 to {_MOST_RETRIES}")

    def to_json(self) -> dict[str, Any]:
        """JSON value from which `from_json` makes an equal rule.

        >>> logits = WireTensor("logits", "logits", (1, 2), "float32")
        >>> tail = Tail("early", "net-early-0", "1", (logits,), logits)
        >>> rule = OffloadRule(("http://edge:8000",), "float32", 0.2, 1, {0: tail})
        >>> OffloadRule.from_json(rule.to_json()) == rule
        True
        """
        return {
            "urls": list(self.urls),
            "border": self.border,
            "timeout_s": self.timeout_s,
            "retries": self.retries,
            "tails": [{"index": index, **_json(tail)} for index, tail in self.tails.items()],
        }

    @classmethod
    def from_json(cls, value: Any) -> OffloadRule:
        """The inverse of `to_json`.

        Raises:
            JsonError: the value is no such rule; the message names the place.
        """
        reader = ObjectReader(value, "offload")
        urls, border = reader.texts("urls"), reader.text("border")
        timeout_s = reader.number("timeout_s")
        retries = reader.whole("retries", _MOST_RETRIES)
        tails: dict[int, Tail] = {}
        try:
            for one in reader.objects("tails", _MOST_TAILS):
                index = one.whole("index", _MOST_TAILS)
                if index in tails:
                    raise ValueError(f"exit {index} has two tails")
                tails[index] = _tail(one)
            reader.done()
            return cls(urls, border, timeout_s, retries, tails)  # type: ignore[arg-type]
        except JsonError:
            raise
        except ValueError as error:
            raise JsonError(f"`offload` contradicts itself: {error}") from None


def _json(tail: Tail) -> dict[str, Any]:
    value = asdict(tail)
    for tensor in (*value["inputs"], value["output"]):
        tensor["shape"] = list(tensor["shape"])
    value["inputs"] = list(value["inputs"])
    return value


def _tail(reader: ObjectReader) -> Tail:
    found = Tail(
        exit=reader.text("exit"),
        model=reader.text("model", _MODEL_NAME),
        version=reader.text("version", _VERSION),
        inputs=tuple(_tensor(one) for one in reader.objects("inputs", 1_000)),
        output=_tensor(reader.object("output")),
    )
    reader.done()
    return found


def _tensor(reader: ObjectReader) -> WireTensor:
    shape = reader.items("shape", 64)
    if not all(type(extent) is int for extent in shape):
        reader.fail("shape", "a list of whole numbers")
    zero = reader.take("zero")
    if type(zero) is not int:
        reader.fail("zero", "a whole number")
    found = WireTensor(
        reader.text("value"),
        reader.text("name", most=1_000),
        tuple(shape),
        reader.text("dtype"),
        reader.number("scale"),
        zero,
    )
    reader.done()
    return found

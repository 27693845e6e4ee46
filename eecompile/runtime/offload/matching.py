"""Whether a server's model is the one whose answers are wanted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from eecompile.diagnostics import Diagnostic
from eecompile.offload_rule import Tail, WireTensor
from eecompile.runtime.offload.triton import ModelMetadata, TensorMetadata, datatype

__all__ = ["mismatch"]

_HELP = "serve the folder that this artifact's build wrote"


def mismatch(url: str, tail: Tail, found: ModelMetadata) -> list[Diagnostic]:
    """What a server's model has otherwise than the tail: version, tensors; both are named."""
    if found.name != tail.model:
        message = f"The server `{url}` has model `{found.name[:200]}` instead of `{tail.model}`"
        return [Diagnostic("wrong-server", message, help=_HELP)]
    model = f"model `{tail.model}` of the server `{url}`"
    if found.versions and tail.version not in found.versions:
        has = ", ".join(f"`{version[:20]}`" for version in found.versions[:8])
        message = f"Expected version `{tail.version}` of {model}, found {has}"
        return [Diagnostic("wrong-server", message, help=_HELP)]
    return [
        Diagnostic("wrong-server", f"Expected {one} of {model}, found {other}", help=_HELP)
        for one, other in (
            *_apart("inputs", tail.inputs, found.inputs),
            *_apart("outputs", (tail.output,), found.outputs),
        )
    ]


def _apart(
    what: str, wanted: Sequence[WireTensor], found: Sequence[TensorMetadata]
) -> Iterator[tuple[str, str]]:
    """The tensors in words where they differ; a server that describes none is believed."""
    named = {tensor.name: tensor for tensor in found}
    same = len(named) == len(wanted) and all(
        tensor.name in named and _fits(tensor, named[tensor.name]) for tensor in wanted
    )
    if found and not same:
        ours = (f"{t.name}: {datatype(t.dtype)}{list(t.shape)}" for t in wanted)
        theirs = (f"{t.name[:60]}: {t.datatype[:20]}{list(t.shape[:8])}" for t in found[:8])
        yield f"{what} {', '.join(ours)}", ", ".join(theirs)


def _fits(wanted: WireTensor, found: TensorMetadata) -> bool:
    if datatype(wanted.dtype) != found.datatype or len(wanted.shape) != len(found.shape):
        return False
    return all(b in (-1, a) for a, b in zip(wanted.shape, found.shape, strict=True))

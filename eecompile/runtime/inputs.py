"""What the caller gives, checked and brought into the form the network reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from eecompile.compiled import Value, batch_shape, sample_shape
from eecompile.diagnostics import CompileErrors, Diagnostic
from eecompile.ir import TensorType
from eecompile.manifest import Manifest, Normalization

__all__ = [
    "Inputs",
    "as_batch",
    "as_mapping",
    "bad_argument",
    "copy_inputs",
    "normalized",
    "raw_inputs",
]

#: What a session is given: one array, or one for each input by name.
Inputs = np.ndarray | Mapping[str, np.ndarray]


def bad_argument(message: str, help: str = "") -> CompileErrors:
    """The exception for an argument that cannot be used as given."""
    return CompileErrors([Diagnostic("bad-argument", message, help=help)])


def as_mapping(given: Inputs, inputs: Sequence[Value]) -> Mapping[str, np.ndarray]:
    """The arrays by input name, one for each input.

    Raises:
        CompileErrors: one is missing or unknown.
    """
    names = [name for name, _ in inputs]
    if not isinstance(given, Mapping):
        if len(names) != 1:
            raise bad_argument(
                f"The network has {len(names)} inputs, one array was given",
                f"give them by name: {', '.join(names)}",
            )
        return {names[0]: given}
    for name in given:
        if name not in names:
            raise bad_argument(f"The network has no input `{name}`", f"inputs: {', '.join(names)}")
    for name in names:
        if name not in given:
            raise bad_argument(f"The input `{name}` is missing")
    return given


def as_batch(name: str, type_: TensorType, given: np.ndarray, *, single: bool) -> np.ndarray:
    """`given` as samples of an input, (n, ...); no copy.

    Args:
        name: the input's.
        type_: the input's.
        given: one sample with or without its leading 1, or n of them.
        single: whether exactly one sample is wanted.

    Raises:
        CompileErrors: it has another shape or element type.
    """
    if not isinstance(given, np.ndarray):
        found = f"a {type(given).__name__}"
    elif given.dtype != type_.dtype:
        found = f"{given.dtype}{list(given.shape)}"
        if given.dtype.kind in "fiub":
            help_ = f"convert it: `x.astype({type_.dtype!r})`"
            raise bad_argument(f"Expected {type_} for the input `{name}`, found {found}", help_)
    else:
        one = sample_shape(type_)
        if given.ndim and given.shape[1:] == one and (not single or len(given) == 1):
            return given
        if single and given.shape in (one, type_.shape):
            return given.reshape(batch_shape(type_, 1))
        found = f"{given.dtype}{list(given.shape)}"
        if single and given.shape[1:] == one:
            help_ = "this is a batch: use `run_batch`"
            raise bad_argument(f"Expected {type_} for the input `{name}`, found {found}", help_)
    shape = str(type_) if single else f"{type_.dtype}[n, {str(list(sample_shape(type_)))[1:]}"
    raise bad_argument(f"Expected {shape} for the input `{name}`, found {found}")


def copy_inputs(
    x: Inputs,
    normalize: bool,
    manifest: Manifest,
    places: Sequence[tuple[str, TensorType, np.ndarray]],
) -> None:
    """Copy one sample to where it is read, which also aligns it and makes it dense.

    Args:
        x: the sample, see `as_batch`.
        normalize: whether it is raw data, see `raw_inputs`.
        manifest: of the artifact.
        places: each input's name and type, and memory of its batch shape.

    Raises:
        CompileErrors: `x` is no such sample.
    """
    if not normalize and len(places) == 1:
        ((_, _, memory),) = places
        # What is as it should be needs no looking into, which takes longer than copying it.
        if type(x) is np.ndarray and x.shape == memory.shape and x.dtype == memory.dtype:
            memory[:] = x
            return
    given = raw_inputs(x, manifest) if normalize else x
    arrays = as_mapping(given, manifest.network.inputs)
    for name, type_, memory in places:
        memory[:] = as_batch(name, type_, arrays[name], single=True)


def raw_inputs(x: Inputs, manifest: Manifest) -> dict[str, np.ndarray]:
    """Raw data, normalised as the artifact says; inputs without a rule are passed on as they are.

    Raises:
        CompileErrors: it does not say how, or they do not fit.
    """
    rules, inputs = manifest.normalizations, manifest.network.inputs
    if not rules and all(type_.dtype != "float32" for _, type_ in inputs):
        raise bad_argument(
            f"There is nothing to normalise: the input is {inputs[0][1]}, read as it is",
            "leave the normalisation out",
        )
    if not rules:
        raise bad_argument(
            "The artifact does not say how to normalise its input",
            "give normalised data, or add `normalize` to the `.ee` file's data block",
        )
    types = dict(inputs)
    return {
        name: normalized(array, types[name], rules[name]) if name in rules else array
        for name, array in as_mapping(x, inputs).items()
    }


def normalized(given: np.ndarray, type_: TensorType, how: Normalization) -> np.ndarray:
    """Raw data as the network reads them: ``(raw / scale - mean) / std`` by channel, (n, ...).

    Only integers are divided by the scale; numbers with a fraction are taken to be scaled already.
    Images with their channels last, or without any, are laid out as the input is.

    >>> image = np.full((2, 2, 1), 255, np.uint8)
    >>> how = Normalization((0.5,), (0.5,))
    >>> normalized(image, TensorType("float32", (1, 1, 2, 2)), how).tolist()
    [[[[1.0, 1.0], [1.0, 1.0]]]]

    Raises:
        CompileErrors: the shape is neither the input's nor that of such images.
    """
    raw = _laid_out(np.asarray(given), type_)
    shape = [1] * raw.ndim
    if len(how.mean) > 1:
        shape[_channel_axis(raw.shape, len(how.mean))] = len(how.mean)
    mean = np.asarray(how.mean, np.float32).reshape(shape)
    std = np.asarray(how.std, np.float32).reshape(shape)
    values = raw.astype(np.float32)
    if raw.dtype.kind in "iu":
        values /= np.float32(how.scale)
    return np.asarray((values - mean) / std, type_.dtype)


def _laid_out(raw: np.ndarray, type_: TensorType) -> np.ndarray:
    """`raw` as (n, ...) with the samples' shape of `type_`."""
    wanted = sample_shape(type_)
    for lead in (1, 0):
        one = raw.shape[lead:]
        batch = raw if lead else raw[None]
        if one == wanted:
            return batch
        if len(one) == 3 and (one[2], *one[:2]) == wanted:
            return np.moveaxis(batch, -1, 1)
        if len(one) == 2 and wanted in ((1, *one), (*one, 1)):
            return batch.reshape(len(batch), *wanted)
    raise bad_argument(f"Expected images for {type_}, found {raw.dtype}{list(raw.shape)}")


def _channel_axis(shape: Sequence[int], channels: int) -> int:
    if len(shape) > 1 and shape[1] == channels:
        return 1
    if shape[-1] == channels:
        return len(shape) - 1
    raise bad_argument(f"{channels} channels are normalised, the input is {list(shape[1:])}")

"""The C header of one network: what of it is known before it is opened, as constants.

Names in it are made of those in the artifact, which may hold any characters: whatever is no part of
a C name becomes an underscore, and of two names that are the same then, the second gets a number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from eecompile.artifact import Artifact
from eecompile.compiled import CompiledGraph, Value
from eecompile.ir import TensorType
from eecompile.native_names import app_name, library_file, library_symbol, plain_name
from eecompile.native_plan import runs_natively

__all__ = ["AppNames", "c_string", "header_text", "plain_text"]

_WIDTH = 100
#: Of each input and output, a constant with such an ending.
_OF_VALUES = ("", "_DTYPE", "_RANK", "_SHAPE", "_BYTES")
_TAKEN = ("INPUTS", "OUTPUTS", "EXITS", "CLASSES", "LABELS")


def plain_text(text: str) -> str:
    """A text as it may stand in comments and documents of any kind.

    >>> plain_text("a*/b @X@ c")
    'a__b _X_ c'
    """
    return re.sub(r"[^\w .,:+-]", "_", text)


def c_string(text: str) -> str:
    r"""A C string literal of the text in UTF-8.

    >>> print(c_string('say "hé?"'))
    "say \"h\303\251\?\""
    """

    def one(byte: int) -> str:
        if chr(byte) in '"\\?':  # ? for the sake of trigraphs
            return "\\" + chr(byte)
        return chr(byte) if 32 <= byte < 127 else f"\\{byte:03o}"

    return f'"{"".join(map(one, text.encode()))}"'


@dataclass
class AppNames:
    """What an artifact's files and constants are called in an app.

    Attributes:
        name: the network's, as part of file names and C names.
        library: name of the library's file.
        symbol: of its `ee_library`.
        prefix: of all constants.
        inputs, outputs, exits, policies: their constants, in order; the last exit is the network's
            own answer.
        native: of each policy, whether the native runtime knows it.
        policy: constant of the policy to begin with: the artifact's default, else the first that
            the native runtime knows; `""`, decisions off, where there is none.
    """

    artifact: Artifact
    taken: set[str] = field(default_factory=lambda: set(_TAKEN))

    def __post_init__(self) -> None:
        manifest = self.artifact.manifest
        network = manifest.network
        self.name = app_name(network.name)
        self.library = library_file(network.name)
        self.symbol = library_symbol(network.name)
        self.prefix = f"EE_{self.name.upper()}_"
        self.inputs = [self._name("INPUT", name, _OF_VALUES) for name, _ in network.inputs]
        self.outputs = [self._name("OUTPUT", name, _OF_VALUES) for name, _ in _outputs_of(network)]
        self.exits = [self._name("EXIT", name) for name in network.exit_names]
        self.policies = {name: self._name("POLICY", name) for name in manifest.policies}
        entries = self.artifact.policies
        self.native = {name: runs_natively(entries[name]) for name in manifest.policies}
        order = sorted(self.native, key=lambda name: name != manifest.default_policy)
        known = [self.policies[name] for name in order if self.native[name]]
        self.policy = known[0] if known else '""'

    def _name(self, kind: str, name: str, endings: Sequence[str] = ("",)) -> str:
        """A constant's name that is not taken, nor any of its endings."""
        base = wanted = f"{kind}_{plain_name(name).upper()}"
        number = 2
        while any(base + ending in self.taken for ending in endings):
            base, number = f"{wanted}_{number}", number + 1
        self.taken.update(base + ending for ending in endings)
        return self.prefix + base


def _outputs_of(network: CompiledGraph) -> tuple[Value, ...]:
    """What `ee_output` tells: the network's own answer and what else it computes with it."""
    return network.segments[-1].outputs


def header_text(names: AppNames) -> str:
    """The header: equal for equal artifacts."""
    manifest = names.artifact.manifest
    network, target = manifest.network, manifest.target
    guard = f"{names.prefix}H"
    lines = [
        f"/* {names.name}.h: the network `{plain_text(network.name)}` for {plain_text(target.name)}"
        f" ({plain_text(target.triple)}).",
        f" * Written by `eecompile export` {plain_text(manifest.version)}. */",
        f"#ifndef {guard}",
        f"#define {guard}",
        "",
        '#include "eecompile.h"',
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        "",
        f"/* Its code, in {names.library}; ee_open takes it together with {names.name}.eec. */",
        f"extern const ee_library {names.symbol};",
        "",
        "#ifdef __cplusplus",
        "}",
        "#endif",
        "",
        *_inputs(names),
        *_outputs(names),
        *_exits(names),
        *_policies(names),
    ]
    if manifest.labels is not None:
        lines += _labels(names.prefix, manifest.labels)
    return "\n".join([*lines, f"#endif /* {guard} */", ""])


def _inputs(names: AppNames) -> list[str]:
    manifest = names.artifact.manifest
    inputs = manifest.network.inputs
    lines = ["/* Inputs, in the order calls take them; bytes are one sample's. */"]
    lines.append(f"#define {names.prefix}INPUTS {len(inputs)}")
    for index, (constant, value) in enumerate(zip(names.inputs, inputs, strict=True)):
        lines += _input(constant, index, value, value[0] in manifest.normalizations)
    return [*lines, ""]


def _input(constant: str, index: int, value: Value, normalizes: bool) -> list[str]:
    name, type_ = value
    raw = ", which ee_run_raw makes of 8-bit data" if normalizes else ""
    return [f"#define {constant} {index} /* `{plain_text(name)}`{raw} */", *_type(constant, type_)]


def _outputs(names: AppNames) -> list[str]:
    outputs = _outputs_of(names.artifact.manifest.network)
    lines = ["/* Outputs, for ee_output after an answer of the last exit. */"]
    lines.append(f"#define {names.prefix}OUTPUTS {len(outputs)}")
    for constant, (name, type_) in zip(names.outputs, outputs, strict=True):
        lines += [f"#define {constant} {c_string(name)}", *_type(constant, type_)]
    return [*lines, ""]


def _type(constant: str, type_: TensorType) -> list[str]:
    # C has no empty initialisers, so that of a single number's shape holds one that is not used.
    return [
        f"#define {constant}_DTYPE EE_{type_.dtype.upper()}",
        f"#define {constant}_RANK {len(type_.shape)}",
        f"#define {constant}_SHAPE {{{', '.join(map(str, type_.shape or (1,)))}}}",
        f"#define {constant}_BYTES {type_.nbytes}",
    ]


def _exits(names: AppNames) -> list[str]:
    network = names.artifact.manifest.network
    points = [f"after {plain_text(exit_.point)}" for exit_ in network.exits]
    lines = [f"#define {names.prefix}CLASSES {network.classes or 0}", ""]
    lines += ["/* ee_answer.exit */", "enum {"]
    for index, (constant, where) in enumerate(
        zip(names.exits, [*points, "the network's own answer"], strict=True)
    ):
        lines.append(f"    {constant} = {index}, /* {where} */")
    return [*lines, f"    {names.prefix}EXITS = {len(names.exits)}", "};", ""]


def _policies(names: AppNames) -> list[str]:
    if not names.policies:
        return []
    lines = ["/* For ee_options.policy and ee_set_policy; NULL: the artifact's default. */"]
    for name, constant in names.policies.items():
        remark = "" if names.native[name] else " /* needs eecompile's Python runtime */"
        lines.append(f"#define {constant} {c_string(name)}{remark}")
    return [*lines, ""]


def _labels(prefix: str, labels: Sequence[str]) -> list[str]:
    """A macro, so that no program carries a table that it does not use."""
    lines = [f"/* const char *const labels[] = {prefix}LABELS; as ee_label tells them. */"]
    lines.append(f"#define {prefix}LABELS {{")
    for label in map(c_string, labels):
        fits = len(lines[-1]) + len(label) < _WIDTH - 4 and len(lines) > 2
        lines[-1:] = [f"{lines[-1]} {label},"] if fits else [lines[-1], f"    {label},"]
    body = "".join(f"{line:<{_WIDTH - 2}} \\\n" for line in lines[1:])
    return [lines[0], f"{body}}}", ""]

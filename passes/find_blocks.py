"""Finding what gates can leave out: residual blocks, dense layers, channels of convolutions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any

from eecompile.cost import op_macs
from eecompile.gates.places import ChannelPlace, Found, LayerBlock, Reader
from eecompile.ir import Graph, Op, TensorType
from eecompile.passes.host import Point
from eecompile.passes.structure import Flow, static_values

__all__ = ["channel_places", "layer_blocks"]

#: Activations of one tensor, which a channel gate stands behind.
_ACTIVATIONS = frozenset(
    """Celu Clip Elu Gelu HardSigmoid HardSwish LeakyRelu Mish Relu Selu Sigmoid Softplus Softsign
    Tanh ThresholdedRelu""".split()
)


def layer_blocks(graph: Graph, points: Mapping[str, Point]) -> Found[LayerBlock]:
    """The blocks that can be left out, in the order they are reached.

    1. A residual block ends in ``y = x + F(x)``; left out, y is x. Where x is known to lie where
       an activation behind the sum changes nothing (a Relu's result before a Relu), the
       activation is part of the block.
    2. A dense layer gives features ``F(x)`` that only concatenations with all of x read; left out,
       they are zeros.
    3. Nothing inside may be read, or shown, outside. F may read more than x: masks, say.
    4. What does not fit is refused with its reason: a sum of other things, a shortcut that is
       computed, shapes that differ, a branch that multiplies nothing.

    O(#ops) for networks whose blocks do not lie within each other; at most that times the depth.

    Args:
        graph: a host's neutral view.
        points: the host's points: only what the host itself can address can be gated.
    """
    return _Search(graph, points).blocks()


def channel_places(graph: Graph, points: Mapping[str, Point]) -> Found[ChannelPlace]:
    """The convolutions some of whose channels can be left out, in order. O(#ops).

    Refused are those whose result, behind batch normalisation and activation, is no value of the
    host's own or is the network's output, and transposed convolutions.

    Args:
        graph: a host's neutral view.
        points: the host's points.
    """
    return _Search(graph, points).channels()


#: A block that has no name yet, module paths that could be its name, and node names.
_Candidate = tuple[LayerBlock, list[str], list[str]]


class _Refused(Exception):
    """What looked like a block or place is none; the text says why."""


class _Search:
    def __init__(self, graph: Graph, points: Mapping[str, Point]) -> None:
        self.graph = graph = graph.pruned()  # what leads nowhere reads nothing
        self.users = graph.users()
        self.scopes = {op.scope for op in graph.ops}
        self.producer = graph.producer()
        self.static = static_values(graph)
        self.shown = frozenset(graph.outputs)
        self.place = {value: -1 for value in graph.inputs}
        self.place.update((out, i) for i, op in enumerate(graph.ops) for out in op.outputs)
        self.names: dict[str, list[Point]] = {}
        for point in points.values():
            self.names.setdefault(point.value, []).append(point)
        self.above = Flow(graph).dominators(graph.inputs)
        self.bounds = _bounds(graph)

    # --- blocks -----------------------------------------------------------------------------------

    def blocks(self) -> Found[LayerBlock]:
        found: list[_Candidate] = []
        refused: dict[str, str] = {}
        for op in self.graph.ops:
            for candidate in self._candidates(op):
                try:
                    found.append(candidate())
                except _Refused as why:
                    refused.setdefault(self._name(op), str(why))
        found.sort(key=lambda entry: (self.place[entry[0].entry], self.place[entry[0].result]))
        blocks = _named(found)
        taken = {block.name for block in blocks}
        return Found(blocks, {n: reason for n, reason in refused.items() if n not in taken})

    def _candidates(self, op: Op) -> Iterable[Any]:
        live = [value for value in op.inputs if value and value not in self.static]
        if op.kind == "Add" and len(live) == 2 and self._carries(op.outputs[0]):
            yield lambda: self._residual(op)
        elif self._only_joined(op.outputs[0]) and (entry := self._dense_entry(op.outputs[0])):
            yield lambda: self._dense(op, entry)

    def _carries(self, value: str) -> bool:
        """Whether the value is a feature that gates can read: float32 (1, ...)."""
        type_ = self.graph.types[value]
        return type_.dtype == "float32" and len(type_.shape) > 1 and type_.shape[0] == 1

    def _residual(self, join: Op) -> _Candidate:
        total = join.outputs[0]
        entry, branch = sorted(join.inputs, key=self.place.__getitem__)
        if entry == branch:
            raise _Refused("both sides of its sum are the same value")
        types = self.graph.types
        inside = self._between(entry, branch) if types[entry] == types[branch] else set()
        if not inside:
            raise _Refused(self._why_no_shortcut(join))
        if types[entry] != types[total]:
            raise _Refused(f"its sum is {types[total]}, its input {types[entry]}")
        ops = self._closed(inside, branch, [join])
        self._check_addressed(branch)
        result = self._behind(entry, total)
        ops += [join] if result == total else [join, self.producer[result]]
        return self._block(entry, branch, result, entry, ops)

    def _why_no_shortcut(self, join: Op) -> str:
        types, total = self.graph.types, join.outputs[0]
        before = self.above.get(total, "")
        if not before or before not in self.place or not self._carries(before):
            return "no value of its own is what it adds to: it joins separate branches"
        if before in join.inputs and types[before] == types[total]:
            return f"its branch is {self._other(join, before)}, its input {types[before]}"
        if types[before] != types[total]:
            return f"shortcut is downsampled: {types[before]} is not {types[total]}"
        return "its shortcut is computed, not its input itself"

    def _other(self, join: Op, value: str) -> TensorType:
        other = next(v for v in join.inputs if v != value)
        return self.graph.types[other]

    def _between(self, entry: str, branch: str) -> set[str]:
        """Values computed from `entry` that `branch` needs, itself included; empty if it does not.

        Only operators that stand between the two are looked at.
        """
        start, end = self.place[entry] + 1, self.place[branch] + 1
        window = self.graph.ops[start:end]
        below = {entry}
        for op in window:
            if not below.isdisjoint(op.inputs):
                below.update(op.outputs)
        below.discard(entry)
        if branch not in below:
            return set()
        needed = {branch}
        for op in reversed(window):
            if not needed.isdisjoint(op.outputs):
                needed.update(below.intersection(op.inputs))
        return needed

    def _closed(self, inside: set[str], branch: str, joins: Sequence[Op]) -> list[Op]:
        """The operators that compute `inside`, in order.

        Raises:
            _Refused: something else than `joins` reads them, or they multiply nothing.
        """
        allowed = {id(join) for join in joins}
        for value in sorted(inside, key=self.place.__getitem__):
            if value in self.shown:
                raise _Refused(f"`{value}` inside it is an output of the network")
            for user in self.users.get(value, ()):
                within = not inside.isdisjoint(user.outputs)
                if not within and not (value == branch and id(user) in allowed):
                    where = self._name(user)
                    raise _Refused(f"its inside is read outside the block at `{where}`")
        ops = [self.graph.ops[i] for i in sorted({self.place[value] for value in inside})]
        if not any(op_macs(op, self.graph) for op in ops):
            raise _Refused("nothing is multiplied in its branch, so nothing would be saved")
        return ops

    def _check_addressed(self, *values: str) -> None:
        for value in values:
            if value not in self.names:
                raise _Refused(f"`{value}` is part of one operator of the network")

    def _behind(self, entry: str, total: str) -> str:
        """`total`, or the activation behind it where that is the identity on the entry's range."""
        users = self.users.get(total, [])
        if len(users) != 1 or total in self.shown:
            return total
        (user,) = users
        low, high = self.bounds.get(entry, (-inf, inf))
        wanted = {"Relu": (0.0, inf)}.get(user.kind)
        if user.kind == "Clip":
            limits: Any = user.attributes
            wanted = (limits["min"], limits["max"])
        fits = wanted is not None and wanted[0] <= low and high <= wanted[1]
        result = user.outputs[0]
        return result if fits and result in self.names else total

    def _only_joined(self, value: str) -> bool:
        """Whether only concatenations of channels read the value, each beside other things."""
        if value in self.static or value in self.shown or not self._carries(value):
            return False
        users = self.users.get(value, [])
        return bool(users) and all(
            user.kind == "Concat" and user.attributes["axis"] == 1 and user.inputs.count(value) == 1
            for user in users
        )

    def _dense_entry(self, branch: str) -> str:
        """The value that new features are computed from and joined with; empty: there is none."""
        users = self.users[branch]
        others = set.intersection(*(self._parts(user, branch) for user in users)) - self.static
        if not others:
            return ""
        first = min(self.place[value] for value in others)
        value = self.above.get(branch, "")
        while value in self.place and self.place[value] >= first:
            if self._parts_of(value) - self.static <= others and self._carries(value):
                return value
            value = self.above.get(value, "")
        return ""

    def _parts(self, join: Op, without: str) -> set[str]:
        found: set[str] = set()
        for value in join.inputs:
            if value != without:
                found |= self._parts_of(value) | {value}
        return found

    def _parts_of(self, value: str) -> frozenset[str]:
        """What a concatenation of channels puts together, concatenations in it taken apart once."""
        op = self.producer.get(value)
        if op is None or op.kind != "Concat" or op.attributes["axis"] != 1:
            return frozenset((value,))
        return frozenset(op.inputs)

    def _dense(self, op: Op, entry: str) -> _Candidate:
        branch = op.outputs[0]
        inside = self._between(entry, branch)
        if not inside:
            raise _Refused("its features do not come from what they are joined with")
        ops = self._closed(inside, branch, self.users[branch])
        self._check_addressed(branch)
        return self._block(entry, branch, branch, "", ops)

    def _block(
        self, entry: str, branch: str, result: str, otherwise: str, ops: list[Op]
    ) -> _Candidate:
        scopes = [op.scope for op in (*ops, *self.users.get(branch, ())[:1])]
        around = _common(scope for scope in scopes if scope)
        inner = next((op.scope for op in reversed(ops) if op_macs(op, self.graph) and op.scope), "")
        child = _child(around, inner)
        nodes = [p.name for p in self._points(result) if not p.module]
        paths = [path for path in dict.fromkeys((around, child, inner)) if path]
        nodes = list(dict.fromkeys((*nodes, result)))
        block = LayerBlock(
            name=result,
            aliases=(),
            entry=entry,
            branch=branch,
            result=result,
            otherwise=otherwise,
            type=self.graph.types[entry],
            ops=tuple(op.name for op in ops),
            macs=sum(op_macs(op, self.graph) for op in ops),
        )
        return block, paths, nodes

    def _points(self, value: str) -> list[Point]:
        return sorted(self.names.get(value, ()), key=lambda p: (not p.module, len(p.name), p.name))

    def _name(self, op: Op) -> str:
        names = [p.name for p in self._points(op.outputs[0]) if not p.module]
        return op.scope or (names[0] if names else op.name)

    # --- channels ---------------------------------------------------------------------------------

    def channels(self) -> Found[ChannelPlace]:
        found: list[ChannelPlace] = []
        refused: dict[str, str] = {}
        kinds = ("Conv", "ConvTranspose")
        convolutions = [op for op in self.graph.ops if op.kind in kinds]
        paths = {op.name: self._module_paths(op) for op in convolutions}
        often = Counter(path for each in paths.values() for path in each)
        for op in convolutions:
            if op.outputs[0] in self.static:
                continue
            nodes = [p.name for p in self._points(op.outputs[0]) if not p.module]
            names = [path for path in paths[op.name] if often[path] == 1]
            names = list(dict.fromkeys([*names, *nodes, op.outputs[0]]))
            try:
                found.append(self._channel_place(op, names))
            except _Refused as why:
                refused[names[0]] = str(why)
        return Found(tuple(found), refused)

    def _module_paths(self, op: Op) -> list[str]:
        """What the host says the convolution's module is, the likeliest first.

        Exporters that fold a normalisation into a convolution call the two as the normalisation;
        the weight is called as the convolution still.
        """
        owner = op.inputs[1].removesuffix(".weight")
        own = owner != op.inputs[1] and len(self.users[op.inputs[1]]) == 1
        found = [owner, op.scope] if own and owner not in self.scopes else [op.scope]
        return [path for path in dict.fromkeys(found) if path]

    def _channel_place(self, op: Op, names: list[str]) -> ChannelPlace:
        if op.kind == "ConvTranspose":
            raise _Refused("channels of transposed convolutions are not gated")
        value = self._activated(op.outputs[0])
        if value in self.shown:
            raise _Refused("its result is an output of the network")
        entry, type_ = op.inputs[0], self.graph.types[op.inputs[0]]
        if not self._carries(value) or not self._carries(entry):
            raise _Refused(f"it reads {type_}, which is not one sample's features")
        self._check_addressed(value)
        readers = self.users.get(value, [])
        summing = [r for r in readers if r.kind == "Conv" and r.attributes["group"] == 1]
        reading = sum(op_macs(r, self.graph) for r in summing)
        return ChannelPlace(
            name=names[0],
            aliases=tuple(names[1:]),
            entry=entry,
            value=value,
            channels=self.graph.types[value].shape[1],
            type=type_,
            op=op.name,
            macs=op_macs(op, self.graph),
            read_macs=reading if len(summing) == len(readers) else 0,
            reader=self._reader(value),
        )

    def _reader(self, value: str) -> Reader | None:
        """The convolution that alone reads a value and sums over its channels."""
        users = self.users.get(value, [])
        if len(users) != 1 or users[0].kind != "Conv" or users[0].attributes["group"] != 1:
            return None
        result, weight = users[0].outputs[0], users[0].inputs[1]
        editable = result in self.names and weight in self.graph.constants
        return Reader(result, weight, self.graph.types[result]) if editable else None

    def _activated(self, value: str) -> str:
        """What the value is behind batch normalisation and one activation."""
        normalised = activated = False
        while value not in self.shown:
            users = self.users.get(value, [])
            if len(users) == 1 and users[0].kind == "BatchNormalization" and not normalised:
                normalised, value = True, users[0].outputs[0]
            elif not activated and (behind := _activation(users, value, self.static)):
                activated, value = True, behind
            else:
                break
        return value


def _activation(users: Sequence[Op], value: str, static: frozenset[str]) -> str:
    """The activation of `value` where that is all that reads it, else empty."""
    if len(users) == 1:
        (op,) = users
        slope = op.kind == "PRelu" and op.inputs[0] == value and op.inputs[1] in static
        return op.outputs[0] if op.kind in _ACTIVATIONS or slope else ""
    if len(users) == 2:  # x * sigmoid(x)
        inner, outer = users
        if inner.kind in _ACTIVATIONS and outer.kind == "Mul":
            factors = {value, inner.outputs[0]}
            return outer.outputs[0] if set(outer.inputs) == factors else ""
    return ""


def _bounds(graph: Graph) -> dict[str, tuple[float, float]]:
    """Value -> limits it is known to lie within, where any are known. O(#ops)."""
    known: dict[str, tuple[float, float]] = {}
    for op in graph.ops:
        read = known.get(op.inputs[0], (-inf, inf)) if op.inputs and op.inputs[0] else (-inf, inf)
        limits: Any = op.attributes
        if op.kind == "Relu":
            found = (max(read[0], 0.0), max(read[1], 0.0))
        elif op.kind == "Clip":
            low, high = limits["min"], limits["max"]
            found = (min(max(read[0], low), high), min(max(read[1], low), high))
        elif op.kind == "Sigmoid":
            found = (0.0, 1.0)
        elif op.kind in ("MaxPool", "Reshape", "Slice", "Transpose", "Keep"):
            found = read if op.kind != "Keep" else (min(read[0], 0.0), max(read[1], 0.0))
        else:
            continue
        if found != (-inf, inf):
            known[op.outputs[0]] = found
    return known


def _common(scopes: Iterable[str]) -> str:
    """The module path that contains all of them.

    >>> _common(["layer1.0.conv1", "layer1.0.bn1", "layer1.0"])
    'layer1.0'
    """
    shared: list[str] | None = None
    for scope in scopes:
        parts = scope.split(".")
        if shared is None:
            shared = parts
        while shared != parts[: len(shared)]:
            shared = shared[:-1]
    return ".".join(shared or ())


def _child(around: str, inner: str) -> str:
    """The module right inside `around` that contains `inner`; empty where that is itself.

    >>> _child("layers.0", "layers.0.self_attn.out_proj"), _child("a", "a")
    ('layers.0.self_attn', '')
    """
    if not inner or inner == around:
        return ""
    depth = len(around.split(".")) if around else 0
    return ".".join(inner.split(".")[: depth + 1])


def _named(found: Sequence[_Candidate]) -> tuple[LayerBlock, ...]:
    """The blocks, each called by the first of its names that it has alone."""
    often = Counter(name for _, paths, nodes in found for name in (*paths, *nodes))
    blocks = []
    for block, paths, nodes in found:
        # A module inside, `layers.0.linear2`, names a block only where the one around it does not.
        name = next((n for n in (*paths, *nodes) if often[n] == 1), nodes[-1])
        aliases = tuple(n for n in (*paths[:1], *nodes) if n != name)
        blocks.append(replace(block, name=name, aliases=aliases))
    return tuple(blocks)

"""Small surgery on a `GraphProto`: what ONNX's own helpers lack."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Sequence

import onnx

__all__ = ["bodies", "insert_behind", "read_instead", "reads", "remove_unused"]


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The node's subgraphs."""
    for attribute in node.attribute:
        if attribute.HasField("g"):  # to ask for an absent one would make it, once it is edited
            yield attribute.g
        yield from attribute.graphs


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Every value the node reads, also from inside its subgraphs (which may name inner ones)."""
    yield from filter(None, node.input)
    for body in bodies(node):
        for inner in body.node:
            yield from reads(inner)
        yield from (output.name for output in body.output)


def insert_behind(
    graph: onnx.GraphProto, values: Collection[str], nodes: Sequence[onnx.NodeProto]
) -> None:
    """Put nodes that read `values` (and each other, in order) right behind the last producer."""
    made = (i + 1 for i, node in enumerate(graph.node) if not set(values).isdisjoint(node.output))
    place = max(made, default=0)
    for i, node in enumerate(nodes):
        graph.node.insert(place + i, node)


def read_instead(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Every node and output that reads `old` reads `new`, but for what `new` is computed from.

    An output keeps its name: the tensor called `old` then gets ``old/replaced`` as its name and
    `old` becomes a copy of `new`.
    """
    needed = _needed_for(graph, new)
    for index, node in enumerate(graph.node):
        if index not in needed:
            _rename_inputs(node, old, new)
    if any(output.name == old for output in graph.output):
        moved = f"{old}/replaced"
        for node in graph.node:
            _rename_inputs(node, old, moved)
            for i, name in enumerate(node.output):
                node.output[i] = moved if name == old else name
        graph.node.append(onnx.helper.make_node("Identity", [new], [old], f"{old}/copy"))
    _sort(graph)


def _needed_for(graph: onnx.GraphProto, value: str) -> set[int]:
    """Indices of the nodes that `value` depends on, its own included."""
    live, found = {value}, set()
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if not live.isdisjoint(node.output):
            found.add(index)
            live.update(reads(node))
    return found


def _rename_inputs(node: onnx.NodeProto, old: str, new: str) -> None:
    for i, name in enumerate(node.input):
        if name == old:
            node.input[i] = new
    for body in bodies(node):
        for inner in body.node:
            _rename_inputs(inner, old, new)
        for output in body.output:
            output.name = new if output.name == old else output.name


def _sort(graph: onnx.GraphProto) -> None:
    """Topological order; of the nodes that are ready, the one that stood first goes first."""
    producer = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    waits = [{producer[name] for name in reads(node) if name in producer} for node in graph.node]
    followers: dict[int, list[int]] = {}
    for i, needed in enumerate(waits):
        needed.discard(i)
        for other in needed:
            followers.setdefault(other, []).append(i)
    ready = [i for i, needed in enumerate(waits) if not needed]
    order = []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for follower in followers.get(i, ()):
            waits[follower].discard(i)
            if not waits[follower]:
                heapq.heappush(ready, follower)
    nodes = [onnx.NodeProto.FromString(graph.node[i].SerializeToString()) for i in order]
    if len(nodes) != len(graph.node):
        raise ValueError("the edit would make a cycle")
    del graph.node[:]
    graph.node.extend(nodes)


def remove_unused(graph: onnx.GraphProto) -> bool:
    """Drop nodes and initializers that no output needs; says whether there were any."""
    live = {output.name for output in graph.output}
    dead = []
    for index in reversed(range(len(graph.node))):
        node = graph.node[index]
        if live.isdisjoint(node.output):
            dead.append(index)
        else:
            live.update(reads(node))
    weights = {tensor.name for tensor in graph.initializer}
    for index in dead:  # from the back, so that the others keep their places
        del graph.node[index]
    for field in (graph.initializer, graph.input):
        for index in reversed(range(len(field))):
            name = field[index].name
            if name in weights and name not in live:
                del field[index]
    return bool(dead) or not weights <= live

"""What ONNX's recurrent operators become: the unrolled steps, sequence lengths being static."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from eecompile.passes.onnx_moving import slice_of
from eecompile.passes.onnx_translate import Handler, Node, Refused

__all__ = ["RECURRENT"]

#: Steps that are unrolled; every step is a dozen operators.
_LONGEST = 128

_ACTIVATIONS = {
    "LSTM": ("Sigmoid", "Tanh", "Tanh"),
    "GRU": ("Sigmoid", "Tanh"),
    "RNN": ("Tanh",),
}

#: One step: (gates of the input (B, G H), state) -> next state, the hidden one first.
_Step = Callable[[str, tuple[str, ...]], tuple[str, ...]]


def _recurrent(node: Node) -> list[str]:
    """X (T, B, I), W (D, G H, I), R (D, G H, H), B (D, 2 G H) -> Y (T, D, B, H), Y_h, Y_c."""
    _check(node)
    direction = node.attribute("direction", "forward")
    runs = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[direction]
    results = [_run(node, d, backwards) for d, backwards in enumerate(runs)]
    columns = zip(*results, strict=True)  # of (Y, Y_h[, Y_c]), one a direction
    joined = []
    for i, parts in enumerate(columns):
        joined.append(
            parts[0] if len(parts) == 1 else node.add("Concat", *parts, axis=1 if i == 0 else 0)
        )
    return joined


def _check(node: Node) -> None:
    if node.attribute("layout", 0):
        raise Refused("`layout` of 1")
    if node.attribute("clip") is not None or node.attribute("input_forget", 0):
        raise Refused("`clip` and `input_forget`")
    wanted = _ACTIVATIONS[node.kind]
    given = node.attribute("activations", wanted)
    if any(name.lower() != wanted[i % len(wanted)].lower() for i, name in enumerate(given)):
        raise Refused(f"activations {', '.join(given)}")
    if node.has(7):
        raise Refused("peepholes")
    if node.shape()[0] > _LONGEST:
        raise Refused(f"a sequence of {node.shape()[0]} steps; up to {_LONGEST} are")
    if node.has(4) and (node.constant(4, "sequence lengths") != node.shape()[0]).any():
        raise Refused("sequences shorter than the input")


def _run(node: Node, d: int, backwards: bool) -> tuple[str, ...]:
    """One direction: Y (T, 1, B, H), then the last state, each (1, B, H)."""
    steps, batch = node.shape()[:2]
    hidden = node.attribute("hidden_size")

    def part(index: int, *shape: int) -> str:
        """The direction's slice of a weight or an initial state; zeros where it is absent."""
        if not node.has(index):
            return node.put(np.zeros(shape, np.float32))
        return node.reshape(slice_of(node, node.inputs[index], [(0, d, d + 1, 1)]), shape)

    gates = node.shape(1)[1]
    w = node.transpose(part(1, gates, node.shape()[2]), (1, 0))
    r = node.transpose(part(2, gates, hidden), (1, 0))
    biases = part(3, 2 * gates)
    from_input, from_state = (
        slice_of(node, biases, [(0, start, start + gates, 1)]) for start in (0, gates)
    )
    state: tuple[str, ...] = (part(5, batch, hidden),)
    if node.kind == "LSTM":
        state += (part(6, batch, hidden),)
    # The input's share of all steps is one product.
    shares = node.add("Add", node.add("MatMul", node.inputs[0], w), from_input)
    step = _STEPS[node.kind](node, r, from_state, hidden)
    seen = []
    for t in reversed(range(steps)) if backwards else range(steps):
        share = node.reshape(slice_of(node, shares, [(0, t, t + 1, 1)]), (batch, gates))
        state = step(share, state)
        seen.append(node.reshape(state[0], (1, 1, batch, hidden)))
    if backwards:
        seen.reverse()
    all_steps = seen[0] if len(seen) == 1 else node.add("Concat", *seen, axis=0)
    return (all_steps, *(node.reshape(value, (1, batch, hidden)) for value in state))


def _columns(node: Node, x: str, gate: int, hidden: int) -> str:
    last = len(node.type_of(x).shape) - 1
    return slice_of(node, x, [(last, gate * hidden, (gate + 1) * hidden, 1)])


def _lstm(node: Node, r: str, bias: str, hidden: int) -> _Step:
    def step(share: str, state: tuple[str, ...]) -> tuple[str, ...]:
        h, c = state
        gates = node.add("Add", node.add("Add", share, node.add("MatMul", h, r)), bias)
        i, o, f = (node.add("Sigmoid", _columns(node, gates, g, hidden)) for g in range(3))
        candidate = node.add("Tanh", _columns(node, gates, 3, hidden))
        c = node.add("Add", node.add("Mul", f, c), node.add("Mul", i, candidate))
        return node.add("Mul", o, node.add("Tanh", c)), c

    return step


def _gru(node: Node, r: str, bias: str, hidden: int) -> _Step:
    after_product = bool(node.attribute("linear_before_reset", 0))
    r_candidate, b_candidate = _columns(node, r, 2, hidden), _columns(node, bias, 2, hidden)
    r_gates = slice_of(node, r, [(1, 0, 2 * hidden, 1)])
    b_gates = slice_of(node, bias, [(0, 0, 2 * hidden, 1)])
    one = node.put(np.array(1, np.float32))

    def step(share: str, state: tuple[str, ...]) -> tuple[str, ...]:
        (h,) = state
        own = slice_of(node, share, [(1, 0, 2 * hidden, 1)])
        total = node.add("Add", node.add("Add", own, node.add("MatMul", h, r_gates)), b_gates)
        update, reset = (node.add("Sigmoid", _columns(node, total, g, hidden)) for g in range(2))
        if after_product:
            recalled = node.add("Add", node.add("MatMul", h, r_candidate), b_candidate)
            recalled = node.add("Mul", reset, recalled)
        else:
            recalled = node.add("MatMul", node.add("Mul", reset, h), r_candidate)
            recalled = node.add("Add", recalled, b_candidate)
        candidate = node.add("Tanh", node.add("Add", _columns(node, share, 2, hidden), recalled))
        kept = node.add("Mul", update, h)
        return (node.add("Add", node.add("Mul", node.add("Sub", one, update), candidate), kept),)

    return step


def _rnn(node: Node, r: str, bias: str, hidden: int) -> _Step:
    def step(share: str, state: tuple[str, ...]) -> tuple[str, ...]:
        total = node.add("Add", node.add("Add", share, node.add("MatMul", state[0], r)), bias)
        return (node.add("Tanh", total),)

    return step


_STEPS: dict[str, Callable[[Node, str, str, int], _Step]] = {
    "LSTM": _lstm,
    "GRU": _gru,
    "RNN": _rnn,
}

RECURRENT: dict[str, Handler] = dict.fromkeys(_STEPS, _recurrent)

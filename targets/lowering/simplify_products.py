"""Rules of simplification around convolutions and matrix products."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from eecompile.ir import Op
from eecompile.targets.lowering.rewriting import ELEMENTWISE, Round

__all__ = ["ProductRules"]


class ProductRules(Round):
    """What `simplify` does with convolutions, products, and what stands before and behind them."""

    def _scaled_behind(self, op: Op) -> bool:
        """(a * s) @ (b * t) -> (a @ b) * (s t), for numbers s and t."""
        if op.kind != "MatMul" or op.inputs[0] == op.inputs[1]:
            return False
        type_ = self.edit.source.types[op.outputs[0]]
        factor, inputs = 1.0, []
        for name in op.inputs:
            scale = self._only(name)
            found = None if scale is None else self._factor(scale)
            if scale is None or found is None:
                inputs.append(name)
                continue
            factor *= found[1]
            inputs.append(found[0])
            self.edit.remove(scale)
        if tuple(inputs) == op.inputs:
            return False
        product = self.edit.fresh(f"{op.outputs[0]}.unscaled")
        self.edit.append(replace(op, inputs=tuple(inputs), outputs=(product,)), [type_])
        self.uses[product] += 1
        self.made[product] = replace(op, inputs=tuple(inputs), outputs=(product,))
        name = self.edit.constant(f"{op.name}.factor", np.full((1,), factor, type_.dtype))
        self._keep(replace(op, kind="Mul", inputs=(product, name), attributes={}))
        return True

    def _factor(self, op: Op) -> tuple[str, float] | None:
        """(x, s) if `op` is x * s with a number s."""
        if op.kind not in ("Mul", "Div"):
            return None
        for scaled, other in (op.inputs, op.inputs[::-1])[: 2 if op.kind == "Mul" else 1]:
            array, before = self._array(other), self.edit.types[scaled]
            if array is None or array.size != 1 or before.dtype != "float32":
                continue
            value = float(array.reshape(()))
            if self.edit.types[op.outputs[0]] == before and (op.kind == "Mul" or value):
                return scaled, value if op.kind == "Mul" else 1 / value
        return None

    def _ahead_of_product(self, op: Op) -> bool:
        """reshape(f(a @ w)) -> f(reshape(a) @ w), for element-wise f with constants of one row."""
        if op.kind != "Reshape" or not op.inputs:
            return False
        shape: Any = op.attributes["shape"]
        chain: list[Op] = []
        at = self._only(op.inputs[0])
        while at is not None and at.kind in ELEMENTWISE and self._is_by_row(at):
            chain.append(at)
            at = self._only(at.inputs[0])
        if at is None or at.kind != "MatMul" or not shape:
            return False
        w = self._array(at.inputs[1])
        if w is None or w.ndim != 2 or shape[-1] != w.shape[1]:
            return False
        rows = self.edit.types[at.inputs[0]].shape
        if len(rows) < 2 or self.edit.types[at.outputs[0]].shape == shape:
            return False
        value = self.edit.add("Reshape", at.inputs[:1], {"shape": (*shape[:-1], rows[-1])}, op)
        self.uses[value] += 1
        self.made[value] = Op(value, "Reshape", at.inputs[:1], (value,), {})
        for step in (at, *reversed(chain)):
            self.edit.remove(step)
        steps = [at, *reversed(chain)]
        for step in steps[:-1]:
            name = self.edit.fresh(f"{step.outputs[0]}.reshaped")
            made = replace(step, inputs=(value, *step.inputs[1:]), outputs=(name,))
            type_ = replace(self.edit.types[step.outputs[0]], shape=shape)
            self.edit.append(made, [type_])
            self.uses[name], self.made[name] = 1, made
            value = name
        self._keep(replace(steps[-1], inputs=(value, *steps[-1].inputs[1:]), outputs=op.outputs))
        return True

    def _is_by_row(self, op: Op) -> bool:
        """Whether an element-wise operator reads one value and constants of a row at most."""
        before, after = self.edit.types[op.inputs[0]].shape, self.edit.types[op.outputs[0]].shape
        arrays = [self._array(name) for name in op.inputs[1:]]
        return (
            before == after
            and "axis" not in op.attributes
            and all(a is not None and a.size == (a.shape or (1,))[-1] for a in arrays)
        )

    def _untransposed(self, op: Op) -> bool:
        if op.kind != "ConvTranspose":
            return False
        w = self._array(op.inputs[1])
        if w is None:
            return False
        a: Any = op.attributes
        n, group = w.ndim - 2, a["group"]
        reach = [(k - 1) * d for k, d in zip(w.shape[2:], a["dilations"], strict=True)]
        begins = [r - p for r, p in zip(reach, a["pads"][:n], strict=True)]
        ends = [
            r - p + o for r, p, o in zip(reach, a["pads"][n:], a["output_padding"], strict=True)
        ]
        flipped = np.flip(w, axis=tuple(range(2, w.ndim)))
        flipped = flipped.reshape(group, w.shape[0] // group, *w.shape[1:]).swapaxes(1, 2)
        flipped = flipped.reshape(w.shape[1] * group, w.shape[0] // group, *w.shape[2:])
        name = self.edit.constant(f"{op.name}.flipped", flipped)
        attributes = {
            "strides": (1,) * n,
            "pads": (*begins, *ends),
            "dilations": a["dilations"],
            "group": group,
            "spread": a["strides"],
        }
        inputs = (op.inputs[0], name, *op.inputs[2:])
        self._keep(replace(op, kind="Conv", inputs=inputs, attributes=attributes))
        return True

    def _padding(self, op: Op) -> bool:
        if op.kind != "Conv" or any(s != 1 for s in _spread(op)):
            return False
        pad = self._only(op.inputs[0])
        if pad is None or pad.kind != "Pad":
            return False
        a: Any = pad.attributes
        rank, pads = len(a["pads"]) // 2, a["pads"]
        outside = (*pads[:2], *pads[rank : rank + 2])
        if a["mode"] != "constant" or a["value"] != 0 or any(outside) or min(pads) < 0:
            return False
        inner: Any = op.attributes["pads"]
        added = (*pads[2:rank], *pads[rank + 2 :])
        joined = tuple(x + y for x, y in zip(inner, added, strict=True))
        inputs = (pad.inputs[0], *op.inputs[1:])
        attributes = {**op.attributes, "pads": joined}
        self._replace(pad, replace(op, inputs=inputs, attributes=attributes))
        return True

    def _into_weights(self, op: Op) -> bool:
        """conv(x, w, b) * s + t -> conv(x, w * s, b * s + t)."""
        anchor = self._only(op.inputs[0]) if op.inputs else None
        other = 1
        if anchor is None and op.kind in ("Add", "Mul"):
            anchor, other = self._only(op.inputs[1]), 0
        if anchor is None or anchor.kind not in ("Conv", "MatMul"):
            return False
        w = self._array(anchor.inputs[1])
        if w is None or (anchor.kind == "MatMul" and w.ndim != 2) or w.dtype.kind != "f":
            return False
        if self.edit.types[anchor.outputs[0]] != self.edit.source.types[op.outputs[0]]:
            return False
        channels = w.shape[0] if anchor.kind == "Conv" else w.shape[1]
        affine = self._affine(op, other, anchor, channels)
        if affine is None:
            return False
        scale, shift = affine
        if (scale != 1).any() and _is_whole(w):
            return False
        if anchor.kind == "MatMul":
            # A sum after a product is an epilogue anyway; only scales are worth moving.
            if shift.any():
                return False
            new = self.edit.constant(f"{anchor.name}.w", (w * scale).astype(w.dtype))
            inputs: tuple[str, ...] = (anchor.inputs[0], new)
        else:
            bias = self._array(anchor.inputs[2]) if len(anchor.inputs) > 2 else None
            if bias is None and len(anchor.inputs) > 2 and anchor.inputs[2]:
                return False
            wide = w * scale.reshape(-1, *(1,) * (w.ndim - 1))
            total = shift if bias is None else bias * scale + shift
            inputs = (
                anchor.inputs[0],
                self.edit.constant(f"{anchor.name}.w", wide.astype(w.dtype)),
                self.edit.constant(f"{anchor.name}.b", total.astype(w.dtype)),
            )
        self._replace(anchor, replace(anchor, inputs=inputs, outputs=op.outputs))
        return True

    def _affine(
        self, op: Op, other: int, anchor: Op, channels: int
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """(scale, shift) per output channel, in float64, if `op` is such an operator."""
        if op.kind == "BatchNormalization":
            return self._batch_norm(op) if anchor.kind == "Conv" else None
        if op.kind not in ("Add", "Sub", "Mul", "Div"):
            return None
        array = self._array(op.inputs[other])
        if array is None:
            return None
        rank = len(self.edit.types[anchor.outputs[0]].shape)
        axis = 1 if anchor.kind == "Conv" else rank - 1
        full = array.reshape((1,) * (rank - array.ndim) + array.shape)
        if any(size != 1 for i, size in enumerate(full.shape) if i != axis):
            return None
        vector = np.broadcast_to(full.reshape(-1).astype(np.float64), (channels,))
        zero, one = np.zeros(channels), np.ones(channels)
        match op.kind:
            case "Add":
                return one, vector
            case "Sub":
                return one, -vector
            case "Mul":
                return vector, zero
        return (1 / vector, zero) if vector.all() else None

    def _batch_norm(self, op: Op) -> tuple[np.ndarray, np.ndarray] | None:
        found = [self._array(name) for name in op.inputs[1:]]
        if any(array is None for array in found):
            return None
        # In float32 and in the order exporters fold in: a network then gives the same bits whether
        # it was folded when it was exported or is folded here.
        scale, bias, mean, variance = (np.asarray(a, np.float32) for a in found)
        factor = scale / np.sqrt(variance + np.asarray(op.attributes["epsilon"], np.float32))
        shift = -mean * factor + bias
        return factor.astype(np.float64), shift.astype(np.float64)

    def _as_affine(self, op: Op) -> bool:
        affine = self._batch_norm(op)
        if affine is None:
            return False
        type_ = self.edit.types[op.inputs[0]]
        shape = (-1, *(1,) * (len(type_.shape) - 2))
        factor, shift = (v.astype(type_.dtype).reshape(shape) for v in affine)
        scale_name = self.edit.constant(f"{op.name}.scale", factor)
        scaled = self.edit.add("Mul", (op.inputs[0], scale_name), {}, op)
        shift_name = self.edit.constant(f"{op.name}.shift", shift)
        self.edit.add("Add", (scaled, shift_name), {}, op, output=op.outputs[0])
        return True


def _is_whole(w: np.ndarray) -> bool:
    """Whether weights are whole numbers: quantised ones, whose sums are exact.

    A scale moved into them would round every product, and what is quantised again behind it would
    now and then fall on the other side of a tie.
    """
    return bool((w == np.rint(w)).all())


def _spread(op: Op) -> tuple[int, ...]:
    spread: Any = op.attributes.get("spread", ())
    return tuple(spread)

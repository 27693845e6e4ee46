"""`--set`: what was asked for is changed, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from eecompile.diagnostics import Source
from eecompile.dsl.overrides import apply_overrides
from eecompile.dsl.parser import parse
from eecompile.spec import plain

TEXT = """eecompile 1
model net {
    source torch "zoo.py:net" weights "net.pth"
    input image: float32[1, 3, 32, 32]
    input "mask.1": float32[1]
    output logits: classes(10)
    exit early after "layer1" head linear(pool: 4) comparator class_means
    exit late after "layer2" head module("heads.py:Head" weights "h.pth")
    exits auto(count: 3..6) head linear(pool: 4)
    skip layers "layer2.*" gate recurrent(hidden: 10)
    skip channels "layer2.*" gate squeeze(groups: 4)
    skip channels "layer3.*" gate squeeze(groups: 2)
}
data d { fit "train.npz"   normalize mean [0.5] std [0.2] }
policy fast {
    exit when confidence(entropy)   budget mean macs <= 70 %   guard accuracy drop <= 1 % audit 5 %
}
policy far {
    offload "http://edge:8000" cost 0.5   split online_ucb(discount: 0.9)
    halt at budget latency <= 1 ms
}
target host { cores 2 }
"""


def leaves(node: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of a plain Spec, by its path."""
    if isinstance(node, dict) and node:
        return {k: v for key in node for k, v in leaves(node[key], f"{path}.{key}").items()}
    if isinstance(node, list) and node:
        return {k: v for i, n in enumerate(node) for k, v in leaves(n, f"{path}.{i}").items()}
    return {path.lstrip("."): node}


def changed(override: str) -> dict[str, Any]:
    spec, found = parse(Source("t.ee", TEXT))
    found.raise_errors()
    before, after = leaves(plain(spec)), leaves(plain(apply_overrides(spec, [override])))
    gone = {key: None for key in before if key not in after}
    return gone | {key: new for key, new in after.items() if before.get(key) != new}


@pytest.mark.parametrize(
    ("override", "change"),
    [
        ("model.exit.early.head.pool=2", {"models.0.exits.0.head.options.pool": 2}),
        ("model.net.exit.early.head.pool=2", {"models.0.exits.0.head.options.pool": 2}),
        ("model.exit.early.after=layer1.8", {"models.0.exits.0.point": "layer1.8"}),
        ('model.exit.early.after="layer1.8"', {"models.0.exits.0.point": "layer1.8"}),
        (
            "model.exit.early.head.pool=raw",
            {
                "models.0.exits.0.head.options.pool": None,
                "models.0.exits.0.head.options.pool.name": "raw",
            },
        ),
        (
            "model.exit.late.head.weights=new.pth",
            {"models.0.exits.1.head.options.weights": "new.pth"},
        ),
        ("model.source=other.py:small", {"models.0.path": "other.py", "models.0.entry": "small"}),
        ("model.weights=new.pth", {"models.0.weights": "new.pth"}),
        ("model.input.mask.1=int64[2]", {
            "models.0.inputs.1.type.dtype": "int64",
            "models.0.inputs.1.type.shape.0": 2,
        }),
        ("model.output.classes=100", {"models.0.output.classes": 100}),
        ("model.data=d", {"models.0.data": "d"}),
        ("data.fit=new.npz", {"data.0.fit.path": "new.npz"}),
        ("data.fit=train.npz[..100]", {"data.0.fit.stop": 100}),
        ('data.fit="train.npz"[5..]', {"data.0.fit.start": 5}),
        ("data.fit=data.py:train", {"data.0.fit.path": "data.py", "data.0.fit.entry": "train"}),
        ("data.normalize.std=[0.3]", {"data.0.normalize.std.0": 0.3}),
        ("data.keys.images=x", {"data.0.images_key": "x"}),
        ("data.layout=HWC", {"data.0.layout": "HWC"}),
        ("data.pixels=0..255", {"data.0.pixels.1": 255.0}),
        ("policy.fast.budget=mean macs <= 60 %", {"policies.0.budget.limit": 0.6}),
        ("policy.fast.exit=confidence(margin)", {"policies.0.rule.terms.0.measure": "margin"}),
        ("policy.fast.exit.when=confidence(margin)", {"policies.0.rule.terms.0.measure": "margin"}),
        ("policy.far.offload.cost=2", {"policies.1.offload.cost": 2.0}),
        ("policy.far.offload.url=grpc://e:8001", {"policies.1.offload.urls.0": "grpc://e:8001"}),
        ('policy.far.offload.urls=http://a:80, "http://b:80"', {
            "policies.1.offload.urls.0": "http://a:80",
            "policies.1.offload.urls.1": "http://b:80",
        }),
        ("policy.far.offload.border=int8", {"policies.1.offload.border": "int8"}),
        ("policy.far.offload.timeout=20 ms", {"policies.1.offload.timeout_s": 0.02}),
        ("policy.far.offload.retries=0", {"policies.1.offload.retries": 0}),
        ('policy.far.offload="http://edge:8000" cost 0.5 retries 3', {
            "policies.1.offload.retries": 3,
        }),
        ("policy.far.split.exploration=2", {"policies.1.split.options.exploration": 2}),
        ("policy.far.split=online_ucb", {
            "policies.1.split.options.discount": None,
            "policies.1.split.options": {},
        }),
        ("policy.fast.guard.drop=2 points", {"policies.0.guard.drop": 0.02}),
        ("policy.fast.guard.audit=100 %", {"policies.0.guard.share": 1.0}),
        ("policy.fast.guard=accuracy drop <= 3 % audit 5 %", {"policies.0.guard.drop": 0.03}),
        ("model.exits.count=4", {"models.0.auto_exits.low": 4, "models.0.auto_exits.high": 4}),
        ("model.exits.auto.count=3..5", {"models.0.auto_exits.high": 5}),
        ("model.exits.head.pool=2", {"models.0.auto_exits.head.options.pool": 2}),
        ("model.gates=net.gates.npz", {"models.0.gates": "net.gates.npz"}),
        ("model.skip.layers=layer4.*", {"models.0.skips.0.point": "layer4.*"}),
        ("model.skip.layers.gate.hidden=12", {"models.0.skips.0.gate.options.hidden": 12}),
        ("model.net.skip.layers.1.gate=fitted", {
            "models.0.skips.0.gate.kind": "fitted",
            "models.0.skips.0.gate.options.hidden": None,
            "models.0.skips.0.gate.options": {},
        }),
        ("model.skip.channels.2.gate.groups=8", {"models.0.skips.2.gate.options.groups": 8}),
        ('model.skip.channels.1="layer2.0"', {"models.0.skips.1.point": "layer2.0"}),
        ("policy.far.halt=latency <= 3 ms", {"policies.1.halt.limit": 0.003}),
        ("policy.fast.deadline=4 ms safe", {
            "policies.0.deadline": None,
            "policies.0.deadline.seconds": 0.004,
            "policies.0.deadline.kind": "safe",
        }),
        ("policy.fast.frequency=1 GHz", {"policies.0.frequency": 1e9}),
        ("target.cores=4", {"targets.0.cores": 4}),
        ("target.host.board=raspberry-pi-4", {"targets.0.board": "raspberry-pi-4"}),
    ],
)  # fmt: skip
def test_exactly_what_was_asked_for_changes(override: str, change: dict[str, Any]) -> None:
    assert changed(override) == change


def test_overrides_apply_in_order() -> None:
    spec, _ = parse(Source("t.ee", TEXT))
    spec = apply_overrides(
        spec, ["model.exit.early.head=conv(channels: 8)", "model.exit.early.head.channels=16"]
    )
    assert str(spec.model.exits[0].head) == "conv(channels: 16)"

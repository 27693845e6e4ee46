"""Which gates a network has, what each reads and decides about, and what it saves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from eecompile.gates.kinds import GateKind
from eecompile.gates.places import ChannelPlace, LayerBlock
from eecompile.ir import TensorType

__all__ = ["Gate", "GatePlan"]


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate: where it stands, what it decides about, what that saves.

    Its scores are called ``<name>.keep``, float32 (n, 1), and ``<name>.channels``, (n, groups):
    what they stand for is kept where they are above 0.

    Attributes:
        name: its block's or, where it decides about channels only, its convolution's.
        kind: what computes the scores, options included.
        feature: value it reads, as in the source's graph; where that is masked itself, what is
            left of it.
        type: of the feature.
        axis: dimension of the feature that holds its channels.
        block: what it leaves out as a whole, or None.
        place: the convolution whose channels it leaves out, or None.
        groups: equal runs of consecutive channels that it decides about, 0 without `place`.
        before: the gate whose state it reads; empty for the first and for kinds without state.
        hands_on: whether a later gate reads its state.
        within: the layer gate whose block `place` lies in, where that is another gate; empty else.
        macs: its own multiply-accumulates for one sample.
    """

    name: str
    kind: GateKind
    feature: str
    type: TensorType
    axis: int
    block: LayerBlock | None = None
    place: ChannelPlace | None = None
    groups: int = 0
    before: str = ""
    hands_on: bool = False
    within: str = ""
    macs: int = 0

    @property
    def size(self) -> int:
        """Channels of its feature."""
        return self.type.shape[self.axis]

    @property
    def block_macs(self) -> int:
        """Multiply-accumulates that leaving the block out saves; 0 without one."""
        return self.block.macs if self.block else 0

    @property
    def group_macs(self) -> float:
        """Multiply-accumulates that leaving one group of channels out saves; 0 without `place`.

        Where the convolutions that read them are gated too, they save what is left of that.
        """
        return (self.place.macs + self.place.read_macs) / self.groups if self.place else 0.0

    @property
    def outputs(self) -> dict[str, int]:
        """Name of each of its scores -> how many it has."""
        found = {f"{self.name}.keep": 1} if self.block else {}
        return found | ({f"{self.name}.channels": self.groups} if self.place else {})


@dataclass(frozen=True, slots=True)
class GatePlan:
    """The gates of a network, in the order in which they run.

    Attributes:
        gates: none reads what a later one masks.
        macs: multiply-accumulates of the network without them.
        passed_over: places that a pattern matched beside others, and that cannot be gated, with
            the reasons.
    """

    gates: tuple[Gate, ...] = ()
    macs: int = 0
    passed_over: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "passed_over", MappingProxyType(dict(self.passed_over)))

    def gate(self, name: str) -> Gate:
        """The gate called so.

        Raises:
            KeyError: there is none.
        """
        found = next((gate for gate in self.gates if gate.name == name), None)
        if found is None:
            raise KeyError(name)
        return found

    @property
    def outputs(self) -> dict[str, int]:
        """Name of every score -> how many it has, in order."""
        return {name: count for gate in self.gates for name, count in gate.outputs.items()}

    @property
    def gates_macs(self) -> int:
        """Multiply-accumulates of all gates."""
        return sum(gate.macs for gate in self.gates)

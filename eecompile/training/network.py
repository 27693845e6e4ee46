"""The network as training sees it: answers, masks and exits of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from eecompile.training.costs import Term, gate_names
from eecompile.training.losses import sample_costs
from eecompile.training.normalising import fold_batch_norms, normalise_by_batches
from eecompile.training.samples import Samples

__all__ = ["GATES", "Measured", "Network", "Seen", "laid_out", "measure", "teacher_of"]

#: How names of the gates' parameters start.
GATES = "gates."
#: Outputs with scores are called as those with their masks, and this.
_SCORE = ".score"
_LAST_BIASES = ("keep_bias", "channels_bias")
#: How names of what is the graph module's start in a `Network`.
_MODULE = "module."


@dataclass(frozen=True)
class Seen:
    """What a batch of n samples gave.

    Attributes:
        logits: of the network's own answer, float32 (n, classes).
        masks: gate's output -> 0/1, (n, groups); gradients pass straight through.
        scores: gate's output -> what was compared with 0, float32 (n, groups), without gradients.
        exits: logits of auxiliary heads at the exits, in order.
    """

    logits: Tensor
    masks: dict[str, Tensor]
    scores: dict[str, Tensor]
    exits: tuple[Tensor, ...]


class _Exit(nn.Module):
    """A head that lends an exit's features a loss; it is left behind when training ends."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, classes)

    def forward(self, feature: Tensor) -> Tensor:
        """Logits (n, classes), of the means of the feature's channels."""
        return self.linear(_pooled(feature).float())  # type: ignore[no-any-return]


def _pooled(feature: Tensor) -> Tensor:
    """(n, C): images are (n, C, H, W), texts (n, tokens, C)."""
    if feature.ndim == 3:
        return feature.mean(1)
    return feature.flatten(2).mean(2) if feature.ndim > 3 else feature


class Network(nn.Module):
    """A gated graph module with its trainable parameters, and heads at its exits.

    In eval mode it computes what is compiled; `train` has a network that is tuned normalise each
    batch by its own statistics, and gather these.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        answer: str,
        terms: Sequence[Term],
        exits: Mapping[str, int] | None = None,
        classes: int = 0,
        *,
        tune: bool = False,
    ) -> None:
        """Takes a gated module over.

        Args:
            module: gives a dictionary of tensors; edited.
            answer: its output with the scores.
            terms: what it costs; they name the outputs with masks.
            exits: outputs with the features of exits -> their channels.
            classes: number of classes.
            tune: whether the backbone is trained, not the gates alone.
        """
        super().__init__()
        self.statistics = normalise_by_batches(module) if tune else ()
        if not tune:
            fold_batch_norms(module)
        self.answer, self.gates = answer, gate_names(terms)
        _show_scores(module, self.gates)
        self.module = laid_out(module)
        self.exits = tuple(exits or ())
        self.heads = nn.ModuleList(_Exit(count, classes) for count in (exits or {}).values())
        for name, parameter in self.module.named_parameters():
            floats = parameter.dtype.is_floating_point
            parameter.requires_grad_(floats and (tune or name.startswith(GATES)))
        self.eval()

    def forward(self, inputs: Tensor) -> Seen:
        """Answers of a batch."""
        found = self.module(inputs)
        return Seen(
            found[self.answer].float(),
            {name: found[name] for name in self.gates},
            {name: found[f"{name}{_SCORE}"].detach().float() for name in self.gates},
            tuple(head(found[name]) for name, head in zip(self.exits, self.heads, strict=True)),
        )

    def trained(self) -> dict[str, nn.Parameter]:
        """Everything an optimiser moves, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def lower_scores(self, shift: float) -> None:
        """Lowers the scores of all gates by `shift`."""
        with torch.no_grad():
            for bias in self.score_biases():
                bias.sub_(shift)

    def score_biases(self) -> list[nn.Parameter]:
        """What is added last to each of the gates' scores."""
        return [p for name, p in self.trained().items() if self.is_score_bias(name)]

    @staticmethod
    def is_score_bias(name: str) -> bool:
        """Whether a parameter is added last to scores."""
        return name.endswith(_LAST_BIASES)

    def values(self) -> dict[str, Tensor]:
        """Copies of everything that training changes."""
        return {name: value.detach().cpu().clone() for name, value in self._changing().items()}

    def load(self, values: Mapping[str, Tensor]) -> None:
        """The inverse of `values`."""
        with torch.no_grad():
            for name, value in self._changing().items():
                value.copy_(values[name])

    def source_state(self) -> dict[str, Tensor]:
        """The gates' parameters, and the backbone's where it is tuned, by names of the source."""
        return {
            name.removeprefix(_MODULE): value
            for name, value in self.values().items()
            if name.startswith(_MODULE)
        }

    def _changing(self) -> dict[str, Tensor]:
        buffers = dict(self.module.named_buffers())
        return {
            **self.trained(),
            **{f"{_MODULE}{name}": buffers[name] for name in self.statistics},
        }


def _show_scores(module: fx.GraphModule, gates: Sequence[str]) -> None:
    """Adds an output with the scores for each with masks; gates compute in full precision.

    Decisions hang on small differences: rounded to bfloat16 they would not be those of the network
    that is compiled in the end.
    """
    end = module.graph.output_node()
    shown: dict[str, fx.Node] = dict(end.args[0])  # type: ignore[arg-type]
    for name in gates:
        near = [shown[name]]
        while near[0].target is not torch.ops.aten.gt.Scalar:
            near += near.pop(0).all_input_nodes
        shown[f"{name}{_SCORE}"] = near[0].all_input_nodes[0]
    end.args = (shown,)
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.matmul.default):
        if any(str(n.target).startswith(GATES) for n in node.all_input_nodes):
            node.target = _precise_product
    module.recompile()


def _precise_product(a: Tensor, b: Tensor) -> Tensor:
    with torch.autocast(a.device.type, enabled=False):
        return a.float() @ b.float()


def laid_out(module: fx.GraphModule) -> fx.GraphModule:
    """The module with its images' channels last, in eval mode: statistics and dropout are off."""
    module.eval()
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def teacher_of(module: fx.GraphModule) -> fx.GraphModule:
    """A frozen, folded network; the module given is edited."""
    fold_batch_norms(module)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return laid_out(module)


@dataclass(frozen=True)
class Measured:
    """Of a network on a split.

    Attributes:
        accuracy: share of right answers.
        cost: mean cost, a fraction of the ungated network's.
        kept: gate's output -> share that it keeps on average.
        count: samples.
        scores: gate's output -> what was compared with 0, float32 (n, groups).
    """

    accuracy: float
    cost: float
    kept: dict[str, float]
    count: int
    scores: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def to_json(self) -> dict[str, float]:
        """Keys scripts rely on."""
        return {"accuracy": self.accuracy, "mean_cost_fraction": self.cost, "n": self.count}


def measure(network: Network, samples: Samples, terms: Sequence[Term]) -> Measured:
    """The network on all samples, in float32, with hard decisions."""
    right, cost, kept = 0, 0.0, dict.fromkeys(network.gates, 0.0)
    scores: dict[str, list[Tensor]] = {name: [] for name in network.gates}
    device = next(network.parameters()).device
    with torch.inference_mode():
        for inputs, labels in samples.blocks():
            seen = network(inputs.to(device))
            right += int((seen.logits.argmax(1).cpu() == labels).sum())
            cost += float(sample_costs(terms, seen.masks, len(labels)).double().sum())
            for name, mask in seen.masks.items():
                kept[name] += float(mask.double().mean(1).sum())
                scores[name].append(seen.scores[name].cpu())
    count = len(samples)
    shares = {name: total / count for name, total in kept.items()}
    found = {name: torch.cat(parts) for name, parts in scores.items()}
    return Measured(right / count, cost / count, shares, count, found)

"""An artifact's network run over data here, once, for policies to be replayed on what it gave."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

from eecompile.console import Reporter
from eecompile.datasets import Dataset
from eecompile.gate_counts import decided_by_gates
from eecompile.record import Record, record
from eecompile.runtime.runner import Runner
from eecompile.runtime.session import Session
from eecompile.runtime.vectors import shown_values

__all__ = ["recorded"]

R = TypeVar("R", bound=Record)

#: Samples run together, for each thread.
_BATCH = 64
#: The network's logits with nothing left out, beside those of its gates' decisions.
_WHOLE = "whole.logits"


def recorded(
    kind: type[R],
    session: Session,
    dataset: Dataset,
    samples: int | None,
    progress: Reporter,
    shift: float | None = None,
) -> R:
    """What every exit computes for every sample, or for the first `samples`.

    Args:
        kind: of the record.
        session: of the artifact.
        dataset: the samples.
        samples: at most so many.
        progress: told of samples done.
        shift: of a network's gates, which then decide; None: nothing is left out.
    """
    network = session.manifest.network
    runner, names = Runner.of(session.library, network), shown_values(network)
    ((input_, _),) = network.inputs
    total = min(dataset.count or samples or 0, samples or dataset.count or 0)
    scores = [one.score for one in decided_by_gates(network)] if shift is not None else []

    def run_batch(images: np.ndarray) -> dict[str, np.ndarray]:
        if shift is None or not network.gated:
            found = runner.run_all({input_: images}, names, session.threads)
            return {name: rows.reshape(len(rows), -1) for name, rows in found.items()}
        run = runner.run_gated({input_: images}, names, session.threads, shift=shift)
        found = {name: run.values[name].reshape(len(images), -1) for name in names}
        whole = runner.run_all({input_: images}, [network.output], session.threads)
        found[_WHOLE] = whole[network.output].reshape(len(images), -1)
        return found | {score: run.shares[score][:, None] for score in scores}

    return record(
        kind,
        run_batch,
        _first(samples, dataset.batches(_BATCH * session.threads)),
        output=network.output,
        exits=network.exit_names[:-1],
        logits={e.name: e.head.outputs[0][0] for e in network.exits if e.head},
        class_means={e.name: e.comparator.outputs[0][0] for e in network.exits if e.comparator},
        shares=scores,
        whole={"logits": _WHOLE} if scores else {},
        progress=lambda done: progress(done, max(total, done)),
    )


def _first(
    samples: int | None, batches: Iterable[tuple[np.ndarray, np.ndarray]]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The batches up to so many samples; all of them where that is None."""
    left = samples
    for images, labels in batches:
        yield images[:left], labels[:left]
        if left is not None:
            left -= len(images)
            if left <= 0:
                return

"""Samples of a batch one after the other, where each may change what becomes of the next."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import numpy as np

from eecompile.compiled import batch_shape
from eecompile.manifest import Manifest
from eecompile.runtime.answers import Answer, BatchAnswer
from eecompile.runtime.inputs import Inputs, raw_inputs
from eecompile.runtime.runner import batch_inputs

__all__ = ["run_in_turn"]


def run_in_turn(
    run: Callable[[Inputs], Answer], manifest: Manifest, x: Inputs, normalize: bool
) -> BatchAnswer:
    """The answers for n samples in their order.

    Args:
        run: answers one sample.
        manifest: of the network.
        x: as in `Session.run_batch`.
        normalize: as there.

    Raises:
        CompileErrors: `x` does not fit; nothing has run then.
    """
    start = perf_counter()
    network = manifest.network
    given = raw_inputs(x, manifest) if normalize else x
    arrays, count = batch_inputs(given, network.inputs)
    output = dict(network.segments[-1].outputs)[network.output]
    shape = batch_shape(output, count)
    logits = np.empty(shape if network.classes is None else (count, network.classes), output.dtype)
    answers = []
    for row in range(count):
        answer = run({name: array[row : row + 1] for name, array in arrays.items()})
        logits[row] = answer.logits
        answers.append(answer)
    names = network.exit_names
    blocks_run = [answer.blocks_run for answer in answers if answer.blocks_run is not None]
    return BatchAnswer(
        logits,
        np.array([names.index(answer.exit) for answer in answers], np.int64),
        names,
        np.array([answer.segments_run for answer in answers], np.int64),
        np.array([answer.heads_run for answer in answers], np.int64),
        np.array([answer.macs for answer in answers], np.int64),
        perf_counter() - start,
        np.array([answer.offloaded for answer in answers], bool),
        np.array([answer.halted for answer in answers], bool),
        blocks_run=np.array(blocks_run, np.int64) if blocks_run else None,
        blocks=network.blocks,
    )

"""Saves what an artifact answers to an array of samples: artifact, policy, samples, output."""

from __future__ import annotations

import platform
import sys

import numpy as np

import eecompile as ee
from eecompile.runtime.vectors import verify_artifact

folder, policy, samples, output = sys.argv[1:]
x = np.load(samples)
net = ee.load(folder, policy)
answers = [net.run(sample) for sample in x]
batch = net.run_batch(x)
np.savez(
    output,
    machine=platform.machine(),
    verified=verify_artifact(folder).ok,
    exits=np.array([net.exit_names.index(answer.exit) for answer in answers]),
    logits=np.stack([answer.logits for answer in answers]),
    segments_run=np.array([answer.segments_run for answer in answers]),
    batch_exits=batch.exits,
    batch_logits=batch.logits,
    full_depth=net.full_depth_batch(x[:8]).logits,
    heavy=[name for name in ("torch", "onnx", "tvm", "lark", "scipy") if name in sys.modules],
)

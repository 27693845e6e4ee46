"""Saves what an artifact answers: artifact, thresholds by commas, samples, output."""

from __future__ import annotations

import platform
import sys

import numpy as np

import eecompile as ee
from eecompile.policies import ThresholdPolicy
from eecompile.runtime.vectors import verify_artifact

folder, thresholds, samples, output = sys.argv[1:]
x = np.load(samples)
net = ee.load(folder)
net.set_policy(ThresholdPolicy("max_softmax", list(map(float, thresholds.split(",")))))
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

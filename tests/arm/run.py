"""Saves what an artifact answers: artifact, policy as JSON, samples, output, size of the batch."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import numpy as np

import eecompile as ee
from eecompile.policies import from_json

folder, policy, samples, output, count = sys.argv[1:]
x = np.load(samples)
net = ee.load(folder)
net.set_policy(from_json(json.loads(Path(policy).read_text())))
answers = [net.run(sample) for sample in x]
batch = net.run_batch(x[: int(count)])
np.savez(
    output,
    machine=platform.machine(),
    exits=np.array([net.exit_names.index(answer.exit) for answer in answers]),
    logits=np.stack([answer.logits for answer in answers]),
    segments_run=np.array([answer.segments_run for answer in answers]),
    macs=np.array([answer.macs for answer in answers]),
    batch_exits=batch.exits,
    batch_macs=batch.macs,
    batch_logits=batch.logits,
    full_depth=net.full_depth_batch(x[:8]).logits,
    heavy=[name for name in ("torch", "onnx", "tvm", "lark", "scipy") if name in sys.modules],
)

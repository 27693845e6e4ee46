"""One sample at a time by the native runtime: one call from the input to the answer."""

from __future__ import annotations

import ctypes
import weakref
from math import nan

import numpy as np

from eecompile.artifact import Artifact
from eecompile.compiled import batch_shape
from eecompile.ir import TensorType
from eecompile.native_policies import has_native_form, policy_bytes
from eecompile.policies.base import ExitPolicy
from eecompile.policies.never import NeverPolicy
from eecompile.runtime.answers import Answer
from eecompile.runtime.deciding import Deciding
from eecompile.runtime.inputs import Inputs, copy_inputs
from eecompile.runtime.library import Library, Team
from eecompile.runtime.native import CANCELLED, HALTED, NativeAnswer, view
from eecompile.runtime.stopping import StopWord

__all__ = ["NativeSingles", "is_native"]


def is_native(how: Deciding | None) -> bool:
    """Whether the native runtime can decide so: by a rule of ours that needs nothing of Python's.

    Clocks, servers, guards and what clones learn together are Python objects, which their users
    may have given.
    """
    if how is None:
        return True
    if how.clock is not None or how.server is not None or how.guard is not None:
        return False
    return has_native_form(how.policy) and not how.policy.online


class NativeSingles:
    """A session of the native runtime. For one thread."""

    def __init__(
        self, library: Library, artifact: Artifact, team: Team | None, counts: list[int]
    ) -> None:
        """Allocates everything; answers allocate only what they hand out.

        Args:
            library: the artifact's.
            artifact: with a plan.
            team: shares the work of a sample.
            counts: samples answered by each exit, the final one last; shared with the session.

        Raises:
            CompileErrors: the plan is another library's, or there is not enough memory.
        """
        manifest = artifact.manifest
        self._manifest, network = manifest, manifest.network
        self._counts, self._team = counts, team
        native = self._native = library.native(artifact)
        session = self._session = native.session(team)
        # `native` keeps the code loaded for as long as the session's memory is there.
        weakref.finalize(self, native.close, session).atexit = False
        self._exit_names, self._labels = network.exit_names, manifest.labels
        self._blocks, self._last = network.blocks, len(network.exits)
        self._output, self._classes = network.output, network.classes
        self._inputs = [
            (name, type_, native.input(session, index, _single(type_)))
            for index, (name, type_) in enumerate(network.inputs)
        ]
        places = [memory.ctypes.data for _, _, memory in self._inputs]
        self._outputs = [
            (name, native.output(session, index, _single(type_)))
            for index, (name, type_) in enumerate(network.segments[-1].outputs)
        ]
        self._answer = NativeAnswer()
        # ctypes is quickest with what is converted already.
        self._pointers = (ctypes.c_void_p * len(places))(*places)
        self._arguments = session, self._pointers, ctypes.byref(self._answer)
        #: Logits by their address.
        self._logits: dict[int, np.ndarray] = {}
        self._how: Deciding | None = None
        self._policy: tuple[ExitPolicy, bool] | None = None

    def run(self, how: Deciding | None, x: Inputs, normalize: bool, stop: StopWord) -> Answer:
        """The answer for one sample: see `Session.run`."""
        if how is not self._how:
            self._decide_by(how)
        copy_inputs(x, normalize, self._manifest, self._inputs)
        return self._answered(self._native.run(*self._arguments, stop.address))

    def whole(self, x: Inputs, normalize: bool) -> Answer:
        """The network's own answer for one sample: no exit head runs."""
        copy_inputs(x, normalize, self._manifest, self._inputs)
        return self._answered(self._native.run_whole(*self._arguments))

    def _decide_by(self, how: Deciding | None) -> None:
        policy = (NeverPolicy(self._last), False) if how is None else (how.policy, how.gates)
        if policy != self._policy:
            self._native.decide_by(self._session, policy_bytes(policy[0]), policy[1])
            self._policy = policy
        rule = None if how is None or how.halt is None else how.halt.rule
        limits = (None,) * 3 if rule is None else (rule.macs, rule.latency_s, rule.energy_j)
        self._native.halt(self._session, *(nan if limit is None else limit for limit in limits))
        self._how = how

    def _answered(self, status: int) -> Answer:
        found = self._answer
        if status:
            raise self._native.failed(status)
        index, outputs = found.exit, {}
        self._counts[index] += 1
        if index == self._last:
            outputs = {name: values.copy() for name, values in self._outputs}
            output = outputs[self._output]
            logits = output[0] if self._classes is None else output.reshape(-1)
        else:
            logits = self._logits_at(found.logits).copy()
        flags, blocks = found.flags, self._blocks
        return Answer(
            logits,
            self._exit_names[index],
            found.segments_run,
            found.heads_run,
            found.macs,
            found.latency_s,
            halted=bool(flags & HALTED),
            cancelled=bool(flags & CANCELLED),
            outputs=outputs,
            label_names=self._labels,
            blocks_run=found.blocks_run if blocks else None,
            blocks=blocks,
        )

    def _logits_at(self, address: int) -> np.ndarray:
        known = self._logits.get(address)
        if known is None:
            type_ = TensorType("float32", (self._classes or 0,))
            known = self._logits[address] = view(address, type_)
        return known


def _single(type_: TensorType) -> TensorType:
    """The type of a batch of one."""
    return TensorType(type_.dtype, batch_shape(type_, 1))

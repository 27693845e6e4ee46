"""Samples that a server finishes, as long as it answers rightly and in time."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping

import numpy as np

from eecompile.diagnostics import CompileErrors, Diagnostic, did_you_mean_help
from eecompile.offload_rule import OffloadRule, Tail
from eecompile.runtime.offload.breaker import Breaker
from eecompile.runtime.offload.errors import AttemptFailed, Deadline, TooLate
from eecompile.runtime.offload.matching import mismatch
from eecompile.runtime.offload.triton import Connection, Sent, connection_to
from eecompile.runtime.offload.wire import checked, to_wire

__all__ = ["Offloader"]

#: Pause before the first further attempt; it doubles. Half of it is left to chance, so that devices
#: that failed together do not come back together.
_PAUSE_S = 0.01


class Offloader:
    """Asks one server for the network's answers. For one thread at a time.

    No thread of its own is left between calls, and a forked process connects anew.

    Attributes:
        rule: what is asked, of whom, how long.
        url: the server that is asked.
        counts: of samples: "answered", "failed" (no attempt succeeded; "late" where the last one
            ended for lack of time) and "refused_by_breaker" (not sent at all); "sent": attempts;
            "bytes_sent": of tensors, over HTTP with their names and shapes.
        last_failure: why the last attempt that failed did, empty before.
    """

    def __init__(
        self,
        rule: OffloadRule,
        url: str | None = None,
        *,
        breaker: Breaker | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Nothing is sent yet.

        Args:
            rule: of the policy.
            url: one of the rule's, its first if not given.
            breaker: decides when the server is left alone; one with the usual limits if not given.
            clock: what that one looks at.
            sleep: waits between attempts.

        Raises:
            CompileErrors: the rule does not allow to ask this server.
            ToolError: `tritonclient` is not installed.
        """
        self.rule, self.url = rule, rule.urls[0] if url is None else url
        if self.url not in rule.urls:
            raise CompileErrors([_not_allowed(self.url, rule.urls)])
        self.counts = dict.fromkeys(
            ("sent", "answered", "failed", "late", "refused_by_breaker", "bytes_sent"), 0
        )
        self.last_failure = ""
        self._breaker = breaker or Breaker(clock=clock)
        self._sleep = sleep
        self._connection = connection_to(self.url)
        self._process = os.getpid()
        self._abandoned: list[Connection] = []
        #: Version to ask for, by exit; None where the server was not looked at, or has failed.
        self._versions: dict[int, str] | None = None
        self._started = f"{self._process:x}-{time.time_ns():x}"
        self._requests = 0

    def connect(self) -> bool:
        """Whether the server is ready and has this network's tails; False: nobody answers in time.

        `answer` looks at the server itself where this was not called, or to no avail. Takes no
        longer than the rule's `timeout_s`.

        Raises:
            CompileErrors: the server has another network's models, other versions, or models that
                take or give other tensors; each is named, with what there should be.
        """
        try:
            self._check_server(Deadline(self.rule.timeout_s))
        except AttemptFailed as error:
            self._gave_up(error)
            return False
        except BaseException:
            self._connection.close()
            raise
        return True

    def answer(self, exit_index: int, values: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """The network's answer of one sample, of the shape it has here; None: nobody gave it.

        Whatever the server does, this takes no longer than the rule's `timeout_s`, and a wrong
        answer is none.

        Args:
            exit_index: of the exit after which the sample leaves.
            values: what later segments read, by name, each of one sample.

        Raises:
            KeyError, ValueError: there is no such exit, or a value is missing or of another size.
        """
        tail = self.rule.tails[exit_index]
        tensors = to_wire(tail, values)
        if not self._breaker.lets_through:
            self.counts["refused_by_breaker"] += 1
            return None
        deadline = Deadline(self.rule.timeout_s)
        late = False
        for attempt in range(self.rule.retries + 1):
            try:
                if attempt:
                    self._pause(attempt, deadline)
                found = self._attempt(exit_index, tail, tensors, deadline)
            except (AttemptFailed, CompileErrors) as error:
                self._gave_up(error)
                late = isinstance(error, TooLate)
                if late or isinstance(error, CompileErrors):
                    break
            except BaseException:
                self._connection.close()  # an answer may still come
                raise
            else:
                self._breaker.succeeded()
                self.counts["answered"] += 1
                return found
        self.counts["failed"] += 1
        self.counts["late"] += late
        self._breaker.failed()
        if self._breaker.is_open:
            self._versions = None  # who comes back may be another
        return None

    def close(self) -> None:
        """Closes the connection; the next answer connects anew."""
        self._connection.close()

    def _pause(self, attempt: int, deadline: Deadline) -> None:
        wanted = _PAUSE_S * 2.0 ** (attempt - 1) * random.uniform(0.5, 1.0)
        self._sleep(min(wanted, deadline.left_s()))

    def _attempt(self, index: int, tail: Tail, tensors: Sent, deadline: Deadline) -> np.ndarray:
        versions = self._versions
        if versions is None or self._process != os.getpid():
            versions = self._check_server(deadline)
        self._requests += 1
        request = f"{self._started}-{self._requests:x}"
        self.counts["sent"] += 1
        before = self._connection.bytes_sent
        try:
            reply = self._connection.infer(tail, versions[index], tensors, request, deadline)
        finally:
            self.counts["bytes_sent"] += self._connection.bytes_sent - before
        return checked(tail, request, reply)

    def _gave_up(self, error: Exception) -> None:
        """What was asked for may still come: it is never read."""
        self._connection.close()
        self.last_failure = str(error)

    def _check_server(self, deadline: Deadline) -> dict[int, str]:
        """Version to ask for, by exit; "" where the server has no versions."""
        if self._process != os.getpid():  # the parent's, which goes on using it
            self._abandoned.append(self._connection)
            self._connection, self._process = connection_to(self.url), os.getpid()
        self._versions = None
        connection = self._connection
        if not connection.ready(deadline):
            raise AttemptFailed("the server is not ready")
        versions: dict[int, str] = {}
        problems: list[Diagnostic] = []
        for index, tail in self.rule.tails.items():
            try:
                found = connection.metadata(tail.model, deadline)
            except AttemptFailed as error:
                if not error.missing:
                    raise
                problems.append(_missing_model(self.url, tail, self._models(deadline)))
                continue
            problems += mismatch(self.url, tail, found)
            versions[index] = tail.version if found.versions else ""
        if problems:
            raise CompileErrors(problems)
        index, tail = next(iter(self.rule.tails.items()))
        connection.choose_form(tail, versions[index], deadline)
        self._versions = versions
        return versions

    def _models(self, deadline: Deadline) -> tuple[str, ...]:
        try:
            return self._connection.models(deadline)
        except TooLate:
            raise
        except AttemptFailed:  # a part of the protocol that few servers have
            return ()


def _not_allowed(url: str, urls: tuple[str, ...]) -> Diagnostic:
    return Diagnostic(
        "endpoint-not-allowed",
        f"The server `{url}` is not one of the policy's",
        notes=(f"allowed: {', '.join(urls)}",),
        help=did_you_mean_help(url, urls)
        or "name it in the `.ee` file, behind `offload`, and build again",
    )


def _missing_model(url: str, tail: Tail, models: tuple[str, ...]) -> Diagnostic:
    own = tail.model.rpartition("-")[0]
    related = [name for name in models if name.rpartition("-")[0] == own] or list(models)
    has = ", ".join(f"`{name}`" for name in related[:4]) or "none of that name"
    return Diagnostic(
        "wrong-server",
        f"The server `{url}` has no model `{tail.model}`, which finishes exit `{tail.exit}`",
        notes=(f"it has {has}",),
        help="serve the folder that this artifact's build wrote",
    )

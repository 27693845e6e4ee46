"""The watchdog as its governor sees it: a process that is started, told, and ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from typing import Any

from eecompile.runtime import watchdog

__all__ = ["WatchdogProcess"]

_WAIT_S = 5.0  #: for a watchdog that is told to end


class WatchdogProcess:
    """One process that runs `eecompile.runtime.watchdog`, or none."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, record: dict[str, Any], journal: str) -> bool:
        """Whether it runs and knows what to restore.

        Args:
            record: what was found.
            journal: path of the journal that holds the same record; empty where there is none.
        """
        text = json.dumps(record).encode() + b"\n"
        try:
            self._process = subprocess.Popen(
                # -I and -S: nothing but the standard library, and none of the caller's settings.
                [sys.executable, "-I", "-S", watchdog.__file__, journal, str(os.getpid())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,  # says nothing: its end tells that the process has ended
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the whole group
                cwd="/",
                bufsize=0,
            )
            assert self._process.stdin is not None, "it is a pipe"
            self._process.stdin.write(text)
        except OSError:
            self.stop()
            return False
        return True

    def stop(self) -> None:
        """Tell it that all is restored, and wait for its end."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None, "they are pipes"
        with contextlib.suppress(OSError):  # it was killed
            process.stdin.write(watchdog.RESTORED)
        with contextlib.suppress(OSError):
            process.stdin.close()
        ended = select.poll()  # select takes no descriptor above 1023
        ended.register(process.stdout, select.POLLIN)
        ended.poll(_WAIT_S * 1000)
        process.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_WAIT_S)

    def kill(self) -> None:
        """End it without a word, as somebody else might."""
        if self._process is not None:
            self._process.kill()

    def abandon(self) -> None:
        """In a forked process: it is the parent's."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None and process.stdout is not None, "they are pipes"
            process.stdin.close()
            process.stdout.close()
            process.returncode = 0  # not this process's child: nothing to wait for

"""Puts clocks back where the process that changed them could not: killed, crashed, `os._exit`.

A governor starts this file as a process of its own and tells it, through a pipe, what it found.
The end of the pipe, or of the process, without a word that all is restored, means restoring. It
needs the standard library only and imports nothing of this package: it has to work in the worst of
moments, and starts in some 15 ms.

**What is restored.** Only what is still ours. A setting that holds neither what was found nor a
value the governor may have written was changed by somebody else, and is left to them. Two values do
not count as somebody else's: a lower limit below ours that equals the upper one (a kernel that
shows effective limits clamps it), and an upper limit below ours while a cooling device holds the
clock down.

A *record* is a JSON object: ``format``, ``token`` (who wrote it), ``boot`` (the boot id), ``root``,
``process`` and ``domains``. A domain is ``folder``, ``before`` (file name -> text found), ``ours``
(file name -> texts the governor may write) and ``tunables`` (path -> text): the settings of the
governor that was found, which the kernel forgets when its last policy leaves it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

__all__ = [
    "FORMAT",
    "GONE",
    "RESTORED",
    "Restored",
    "cooling",
    "parse_record",
    "put",
    "restore_domains",
    "set_in_order",
]

FORMAT = 1
RESTORED = b"restored\n"  #: what the governor says last when there is nothing left to do

Read = Callable[[str], str]
Write = Callable[[str, str], None]

_CPUFREQ = "/sys/devices/system/cpu/cpufreq"
_DEVICE = r"[A-Za-z0-9][A-Za-z0-9:_,@+-]*(?:\.[A-Za-z0-9:_,@+-]+)*"
_FOLDER = re.compile(rf"{_CPUFREQ}/policy\d+|/sys/class/devfreq/{_DEVICE}")
_TUNABLE = re.compile(rf"{_CPUFREQ}(?:/policy\d+)?/[a-z_]+/[a-z0-9_]+")
_TEXT = re.compile(r"[A-Za-z0-9_<>:. -]{1,200}")
#: Of a domain: governor, clock asked for, lower and upper limit.
_FILES = (
    *("scaling_governor", "scaling_setspeed", "scaling_min_freq", "scaling_max_freq"),
    *("governor", "min_freq", "max_freq"),
)
_LIMITS = (("scaling_min_freq", "scaling_max_freq"), ("min_freq", "max_freq"))
#: Files that have gone, and their settings with them.
GONE = (errno.ENOENT, errno.ENODEV, errno.ENXIO)
_LOCK_WAIT_S = 2.0


class Restored:
    """What became of a restoration.

    Attributes:
        failed: domains that could not be put back, to be tried again later.
        foreign: paths that somebody else has changed and that were left to them.
        errors: what the kernel said to the failed ones.
    """

    def __init__(self) -> None:
        self.failed: list[dict[str, Any]] = []
        self.foreign: list[str] = []
        self.errors: list[str] = []


def parse_record(text: str) -> dict[str, Any] | None:
    """The record that a text is; None for anything else.

    It names files that will be written, perhaps by root: any other than those of clocks, or a text
    that is no setting of theirs, and the record is refused as a whole.
    """
    try:
        record = json.loads(text)
        sound = (
            record["format"] == FORMAT
            and all(isinstance(record[key], str) for key in ("token", "boot", "root"))
            and isinstance(record["process"], int)
            and all(_sound_domain(domain) for domain in record["domains"])
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return record if sound else None


def _sound_domain(domain: dict[str, Any]) -> bool:
    before, ours, tunables = domain["before"], domain["ours"], domain["tunables"]
    texts = [*before.values(), *tunables.values(), *(one for some in ours.values() for one in some)]
    limits = [before[name] for pair in _LIMITS for name in pair if name in before]
    return (
        _FOLDER.fullmatch(domain["folder"]) is not None
        and set(before) <= set(_FILES)
        and set(ours) == set(before)
        and all(text.isascii() and text.isdigit() for text in limits)
        and all(_TUNABLE.fullmatch(path) is not None for path in tunables)
        and all(_TEXT.fullmatch(text) is not None for text in texts)
    )


def restore_domains(domains: list[dict[str, Any]], read: Read, write: Write) -> Restored:
    """Put every domain back as it was found, as far as it is still ours. Never raises `OSError`."""
    done = Restored()
    for domain in domains:
        try:
            _restore_governor(domain, read, write, done)
            _restore_limits(domain, read, write, done)
        except OSError as error:
            if error.errno not in GONE:
                done.failed.append(domain)
                done.errors.append(f"{domain['folder']}: {error.strerror or error}")
    return done


def _restore_governor(domain: dict[str, Any], read: Read, write: Write, done: Restored) -> None:
    before, ours = domain["before"], domain["ours"]
    name = "scaling_governor"
    if name not in before:
        return
    path = f"{domain['folder']}/{name}"
    now = read(path).strip()
    if now not in (before[name], *ours[name]):
        done.foreign.append(path)
        return
    if now != before[name]:
        write(path, before[name] + "\n")
    elif "scaling_setspeed" in before:
        _restore_speed(domain, read, write, done)
    for tunable, text in domain["tunables"].items():
        with contextlib.suppress(OSError):  # some are read-only, and none is worth a failure
            if read(tunable).strip() != text:
                write(tunable, text + "\n")


def _restore_speed(domain: dict[str, Any], read: Read, write: Write, done: Restored) -> None:
    name = "scaling_setspeed"
    before, path = domain["before"][name], f"{domain['folder']}/{name}"
    now = read(path).strip()
    if now in domain["ours"][name]:
        if now != before and before.isdigit():
            write(path, before + "\n")
    elif now != before:
        done.foreign.append(path)


def _restore_limits(domain: dict[str, Any], read: Read, write: Write, done: Restored) -> None:
    before, ours, folder = domain["before"], domain["ours"], domain["folder"]
    for low, high in _LIMITS:
        if low not in before or high not in before:
            continue
        now = {name: read(f"{folder}/{name}").strip() for name in (low, high)}
        wanted = {name: int(before[name]) for name in (low, high)}
        clamped = {
            low: now[low] == now[high] and _below(now[low], ours[low]),
            high: _below(now[high], ours[high]) and cooling(read),
        }
        mine = [
            name
            for name in (low, high)
            if now[name] in (before[name], *ours[name]) or clamped[name]
        ]
        done.foreign += [f"{folder}/{name}" for name in (low, high) if name not in mine]
        changed = [name for name in mine if now[name] != before[name]]
        # What a kernel shows may be clamped by the other limit: both go back if one does.
        todo = mine if changed else []
        upper_first = int(now[high]) < wanted[low] if now[high].isdigit() else True
        set_in_order(
            [(f"{folder}/{name}", f"{wanted[name]}\n") for name in todo], upper_first, write
        )


def _below(text: str, ours: list[str]) -> bool:
    return text.isdigit() and any(int(text) < int(one) for one in ours)


def set_in_order(pairs: list[tuple[str, str]], reverse: bool, write: Write) -> None:
    """Write lower and upper limit; a kernel may refuse the one that crosses the other's old value.

    `pairs` are paths and texts, the lower limit first; `reverse` says that it has to go last.

    Raises:
        OSError: what is refused in either order.
    """
    left = pairs[::-1] if reverse else list(pairs)
    for attempt in range(2):
        refused: list[tuple[str, str]] = []
        for path, text in left:
            try:
                write(path, text)
            except OSError as error:
                if attempt or error.errno != errno.EINVAL:
                    raise
                refused.append((path, text))
        left = refused


def cooling(read: Read) -> bool:
    """Whether a cooling device holds a processor's clock down just now."""
    for number in range(64):
        folder = f"/sys/class/thermal/cooling_device{number}"
        try:
            kind = read(f"{folder}/type").strip()
            level = read(f"{folder}/cur_state").strip()
        except OSError:
            continue
        if ("cpufreq" in kind or kind == "Processor") and level not in ("", "0"):
            return True
    return False


def put(handle: int, text: str, plain: bool) -> None:
    """Write a setting. The kernel takes each `pwrite` at 0 for a whole one.

    Of a plain file (a tree that was copied) the end of a longer text is first overwritten with
    newlines and then cut: at no moment, killed or not, does it hold another setting.
    """
    data = text.encode()
    if not plain:
        os.pwrite(handle, data, 0)
        return
    size = os.fstat(handle).st_size
    os.pwrite(handle, data.ljust(size, b"\n"), 0)
    if size > len(data):
        os.ftruncate(handle, len(data))


def _local(root: str) -> tuple[Read, Write]:
    prefix = "" if root == "/" else root

    def read(path: str) -> str:
        with open(prefix + path, encoding="utf-8", errors="replace") as file:
            return file.read(4096)

    def write(path: str, text: str) -> None:
        handle = os.open(prefix + path, os.O_WRONLY)
        try:
            put(handle, text, plain=bool(prefix))
        finally:
            os.close(handle)

    return read, write


def _messages(process: int) -> Iterator[bytes]:
    """Lines of standard input; ends with it, or with the process that writes them."""
    poll = select.poll()
    poll.register(0, select.POLLIN)
    with contextlib.suppress(OSError, AttributeError):  # before Linux 5.3 the pipe has to do
        poll.register(os.pidfd_open(process), select.POLLIN)
    rest = b""
    while True:
        ready = [handle for handle, _ in poll.poll()]
        if 0 not in ready:
            return
        part = os.read(0, 1 << 16)
        if not part:
            return
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line + b"\n"


@contextlib.contextmanager
def _locked(path: str) -> Iterator[int | None]:
    """The journal, once whoever holds it has let go; None where there is none any more."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        yield None
        return
    try:
        until = time.monotonic() + _LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > until:  # a child that was forked behind our back has it
                    break
                time.sleep(0.005)
        yield handle
    finally:
        os.close(handle)


def _restore(record: dict[str, Any], journal: str) -> None:
    read, write = _local(record["root"])
    if not journal:
        restore_domains(record["domains"], read, write)
        return
    with _locked(journal) as handle:
        if handle is None:
            return  # whoever removed it has seen to it
        found = parse_record(os.pread(handle, 1 << 20, 0).decode(errors="replace"))
        if found is None or found["token"] != record["token"]:
            return  # restored already, perhaps by a process that has begun since
        done = restore_domains(record["domains"], read, write)
        rest = json.dumps(record | {"domains": done.failed}) if done.failed else ""
        os.ftruncate(handle, 0)
        os.pwrite(handle, rest.encode(), 0)
        os.fsync(handle)


def main(arguments: list[str]) -> int:
    """Waits for the end of process `arguments[1]`; `arguments[0]` is its journal, or empty."""
    journal, process = arguments[0], int(arguments[1])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    record = None
    for line in _messages(process):
        if line == RESTORED:
            return 0
        record = parse_record(line.decode(errors="replace")) or record
    if record is not None:
        _restore(record, journal)
    return 0


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # there is nothing to clean up, and somebody waits

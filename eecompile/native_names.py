"""What a network's library is called, and how it is known."""

from __future__ import annotations

import re

__all__ = ["MARK", "app_name", "code_identity", "library_file", "library_symbol", "plain_name"]

#: What stands in a library before its 32-byte identity.
MARK = b"eecompile identity 1:\n"

#: What the C library, its relatives and this runtime call their headers and libraries.
_TAKEN = frozenset(
    """
    aio alloca argp ar assert byteswap c complex cpio crypt ctype dirent dl dlfcn eecompile elf
    endian envz err errno error execinfo fcntl features fenv float fmtmsg fnmatch fstab fts ftw
    gcc gcc_s gconv getopt glob grp iconv ieee754 ifaddrs inttypes iso646 langinfo libgen limits
    link locale m malloc math mcheck memory mntent monetary mqueue netdb nl_types nsl nss obstack
    paths poll printf proc_service pthread pty pwd re_comp regex regexp resolv rt sched search
    semaphore setjmp sgtty shadow signal spawn stab stdalign stdarg stdatomic stdbool stdc stddef
    stdint stdio stdio_ext stdlib stdnoreturn string strings stropts syscall sysexits syslog tar
    termio termios tgmath threads time ttyent uchar ucontext ulimit unistd util utime utmp utmpx
    values wait wchar wctype wordexp
    """.split()
)


def code_identity(library: bytes) -> bytes | None:
    """The 32 bytes that a library and its plans have in common; None where it has none.

    >>> code_identity(b"..." + MARK + bytes(range(32)) + b"...") == bytes(range(32))
    True
    """
    _, mark, rest = library.partition(MARK)
    return rest[:32] if mark and len(rest) >= 32 else None


def library_symbol(network: str) -> str:
    """Name of a library's `ee_library`: apps that use several networks tell them apart by it.

    >>> library_symbol("resnet-56 v2"), library_symbol("7up")
    ('ee_library_resnet_56_v2', 'ee_library_7up')
    """
    return f"ee_library_{plain_name(network)}"


def library_file(network: str) -> str:
    """Name of a library's file in an app.

    >>> library_file("resnet56")
    'libresnet56.so'
    """
    return f"lib{app_name(network)}.so"


def app_name(network: str) -> str:
    """What a network's files are called in an app: nothing that a compiler finds by that name.

    >>> app_name("resnet 56"), app_name("signal")
    ('resnet_56', 'signal_network')
    """
    name = plain_name(network)
    return f"{name}_network" if name in _TAKEN else name


def plain_name(network: str) -> str:
    """A network's name as it may be part of a C name: other characters become underscores."""
    return re.sub(r"[^A-Za-z0-9]+", "_", network).strip("_") or "network"

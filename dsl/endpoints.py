"""Where a server may be asked: the scheme, the host and the port, and nothing else.

An endpoint is written in full, so that no default decides to whom samples are sent.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from eecompile.diagnostics import did_you_mean_help

__all__ = ["SCHEMES", "EndpointFault", "endpoint_fault"]

#: Scheme -> the port that servers of the Open Inference Protocol listen at by default.
SCHEMES = {"http": 8000, "https": 8000, "grpc": 8001, "grpcs": 8001}

_LISTED = "`http`, `https`, `grpc` or `grpcs`"


@dataclass(frozen=True)
class EndpointFault:
    """What keeps a text from being an endpoint: a few words for its place, and what to do."""

    label: str
    help: str


def endpoint_fault(url: str) -> EndpointFault | None:
    """What is wrong with an endpoint; None where nothing is.

    >>> endpoint_fault("grpc://edge.local:8001"), endpoint_fault("http://[::1]:8000")
    (None, None)
    >>> endpoint_fault("http://edge").label
    'has no port'
    """
    match = re.fullmatch(r"(?:(?P<scheme>[^:/?#@]*)://)?(?P<place>[^/?#]*)(?P<rest>.*)", url)
    if match is None:  # a line end, which no string of the language has
        return EndpointFault("is no line of text", _written("http", "edge"))
    scheme, place, rest = match["scheme"], match["place"], match["rest"]
    host, port = _host_and_port(place.rpartition("@")[2])
    if scheme is None:
        known = host in SCHEMES  # "http:edge:8000"
        written = _written("http", "edge") if known else _written("http", host, port)
        return EndpointFault("says no protocol", written)
    if scheme not in SCHEMES:
        close = did_you_mean_help(scheme.lower(), SCHEMES)
        return EndpointFault(f"the protocol has to be {_LISTED}", close or _written("http", host))
    if "@" in place:
        help = f"{_written(scheme, host, port)}: whoever reads the file would read a password"
        return EndpointFault("names a user", help)
    if not _is_host(host):
        return EndpointFault("names no host", _written(scheme, "edge", port))
    if port is None:
        help = f"{_written(scheme, host)}, or the port your server listens at"
        return EndpointFault("has no port", help)
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        return EndpointFault("a port is a number from 1 to 65535", _written(scheme, host))
    if rest:
        help = f"{_written(scheme, host, port)}: the protocol says what follows"
        return EndpointFault("has more than a host and a port", help)
    return None


def _written(scheme: str, host: str, port: str | None = None) -> str:
    host = host if _is_host(host) else "edge"
    number = port if port and port.isascii() and port.isdigit() else str(SCHEMES[scheme])
    return f'write "{scheme}://{host}:{number}"'


def _host_and_port(place: str) -> tuple[str, str | None]:
    """The two parts, the port None where there is none; ``[::1]`` keeps its brackets.

    >>> _host_and_port("[::1]:8000"), _host_and_port("edge"), _host_and_port("edge:")
    (('[::1]', '8000'), ('edge', None), ('edge', None))
    """
    match = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(?::(.*))?", place)
    return (match[1], match[2] or None) if match else (place, None)


def _is_host(host: str) -> bool:
    """Whether it is a name, or an address of version 4 or (in brackets) 6.

    >>> [_is_host(host) for host in ("edge-1.local", "10.0.0.7", "[fe80::1]")]
    [True, True, True]
    >>> [_is_host(host) for host in ("", "a b", "-a", "10.0.0.700", "[edge]")]
    [False, False, False, False, False]
    """
    try:
        if host.startswith("["):
            return ipaddress.IPv6Address(host[1:-1]) is not None
        if re.fullmatch(r"[0-9.]+", host):
            return ipaddress.IPv4Address(host) is not None
    except ValueError:
        return False
    label = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
    return len(host) <= 253 and re.fullmatch(rf"{label}(\.{label})*\.?", host) is not None

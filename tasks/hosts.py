"""Where a server listens: who can reach it there, and what it may be called."""

from __future__ import annotations

import ipaddress
import socket

EVERYWHERE = ("0.0.0.0", "::", "[::]", "")


def loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def names(host: str) -> list[str]:
    """What a server that listens at `host` may be called in a URL."""
    own = ["localhost", "127.0.0.1", "[::1]"]
    if loopback(host):
        return own
    return [*own, socket.gethostname(), socket.getfqdn()] if host in EVERYWHERE else [*own, bracketed(host)]


def bracketed(host: str) -> str:
    """An IPv6 address as it stands in a URL."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host

"""Which machine this is; where a server listens: who can reach it there, and what it may be called."""

from __future__ import annotations

import ipaddress
import socket
from functools import cache
from pathlib import Path

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


@cache
def this_host() -> str:
    """This machine and boot, and the process namespace in it: where process ids mean the same."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}/{boot.read_text().strip() if boot.exists() else ''}/{space.readlink() if space.exists() else ''}"

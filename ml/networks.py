"""Over which network the processes of several machines reach each other.

gloo, by itself, listens at what a machine's own name resolves to, which on Debian and its kin is the loopback address 127.0.1.1: nobody else reaches that.
"""

from __future__ import annotations

import os
import socket

import psutil

INTERFACE = "GLOO_SOCKET_IFNAME"


def seen_from(host: str, port: int = 9) -> str:
    """This machine's address in the network of another one: nothing is sent to find it. Raises OSError where there is no way."""
    family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(place)
        return probe.getsockname()[0]


def meet(host: str) -> None:
    """Has process groups of this process listen where that machine reaches it, unless the user has named an interface."""
    own = seen_from(host)
    for name, found in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == own for one in found):
            os.environ.setdefault(INTERFACE, name)


def meet_nodes() -> None:
    """The same in a process of a Ray cluster: in the network of its nodes."""
    import ray

    meet(ray.util.get_node_ip_address())

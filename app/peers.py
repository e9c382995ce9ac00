"""Which addresses the service may call when a caller names them: public ones, and nothing of its own network.

An address that another is hidden in (IPv4 in IPv6) is judged by what is hidden. Among IPv6 addresses only those are
public that were given out as such; of these, what tunnels to places that can't be seen here is refused.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_REFUSED_V4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",  # this host
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # shared by a provider's customers; a cloud's metadata, too
            "127.0.0.0/8",  # loopback
            "168.63.129.16/32",  # a cloud's host, in the middle of public addresses
            "169.254.0.0/16",  # link-local, and most clouds' metadata
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocols; a cloud's metadata, too
            "192.0.2.0/24",  # documentation
            "192.88.99.0/24",  # 6to4 relays
            "192.168.0.0/16",  # private
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
        ),
    )
)
_PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
_REFUSED_V6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # protocols; Teredo, which hides an IPv4 address, among them
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4, which hides an IPv4 address
            "3fff::/20",  # documentation
        ),
    )
)
_MAPPED = ipaddress.IPv6Network("::ffff:0:0/96")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class Peers:
    """The addresses that may be called."""

    def __init__(self, *, allow_private: bool, refused: Iterable[Network] = ()) -> None:
        self.allow_private = allow_private
        self._refused = tuple(refused)

    def allow(self, host: str) -> bool:
        """Whether the address, in numbers, may be called."""
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        inner = _unwrapped(address)
        if any(
            one.version == network.version and one in network for network in self._refused for one in (address, inner)
        ):
            return False
        return self.allow_private or is_public(inner)


def is_public(address: Address) -> bool:
    """Whether anybody on the Internet could call it, and no more than that."""
    inner = _unwrapped(address)
    if isinstance(inner, ipaddress.IPv4Address):
        return not any(inner in network for network in _REFUSED_V4)
    return inner.scope_id is None and inner in _PUBLIC_V6 and not any(inner in network for network in _REFUSED_V6)


def _unwrapped(address: Address) -> Address:
    """The IPv4 address that a mapped or translated one leads to."""
    if isinstance(address, ipaddress.IPv6Address) and (address in _MAPPED or address in _NAT64):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address

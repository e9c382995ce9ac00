"""Which addresses may be called: a closed list of forms, and a law that holds for all."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.peers import Peers, is_public

PUBLIC = Peers(allow_private=False)

_PUBLIC = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "168.63.129.15", "172.15.255.255", "172.32.0.0", "223.255.255.255"]
_PUBLIC += ["100.63.255.255", "100.128.0.0", "2606:4700:4700::1111", "2a00:1450:4001:800::200e", "2001:4860:4860::8888"]
_REFUSED = {
    "this host": ["0.0.0.0", "0.1.2.3", "::"],
    "loopback": ["127.0.0.1", "127.255.255.254", "::1"],
    "private": ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.0.1", "fc00::1", "fd12:3456::1"],
    "site-local": ["fec0::1"],
    "shared": ["100.64.0.1", "100.127.255.255"],
    "link-local": ["169.254.0.1", "fe80::1", "fe80::1%eth0", "febf::1"],
    "metadata": ["169.254.169.254", "100.100.100.200", "192.0.0.192", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254"],
    "multicast": ["224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1"],
    "reserved": ["240.0.0.1", "255.255.255.255", "192.0.0.1", "4000::1", "100::1", "5f00::1"],
    "documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"],
    "benchmarks": ["198.18.0.1", "198.19.255.255", "2001:2::1"],
    "mapped": ["::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::ffff:0.0.0.0"],
    "compatible": ["::127.0.0.1", "::10.0.0.1", "::8.8.8.8"],
    "translated": ["::ffff:0:127.0.0.1", "::ffff:0:8.8.8.8"],
    "6to4": ["2002:7f00:1::", "2002:a00:1::1", "2002:a9fe:a9fe::", "2002:808:808::", "192.88.99.1"],
    "NAT64": ["64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b:1::8.8.8.8"],
    "Teredo": ["2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001::1"],
    "no address": ["", "localhost", "127.1", "0x7f.0.0.1", "2130706433", "1.2.3.4 ", "example.com", "fe80::1%25eth0%"],
}


@pytest.mark.parametrize("address", [*_PUBLIC, "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"])
def test_public_addresses_may_be_called_also_in_disguise(address: str) -> None:
    assert PUBLIC.allow(address)


@pytest.mark.parametrize(("kind", "address"), [(kind, one) for kind, some in _REFUSED.items() for one in some])
def test_what_is_not_public_may_not_be_called(kind: str, address: str) -> None:
    assert not PUBLIC.allow(address)


@given(st.ip_addresses())
def test_what_may_be_called_is_public_to_the_standard_library_too(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if is_public(address):
        inner = getattr(address, "ipv4_mapped", None) or address
        assert inner.is_global or inner in ipaddress.ip_network("64:ff9b::/96")
        assert not inner.is_multicast
        assert not inner.is_private


@given(st.ip_addresses(v=4), st.sampled_from(["::ffff:0:0", "64:ff9b::"]))
def test_an_address_in_another_is_judged_as_it_is_itself(address: ipaddress.IPv4Address, around: str) -> None:
    disguised = ipaddress.IPv6Address(int(ipaddress.IPv6Address(around)) | int(address))
    assert is_public(disguised) == is_public(address)


def test_private_addresses_may_be_called_where_the_operator_allows_it_and_named_networks_never() -> None:
    refused = [
        ipaddress.ip_network("10.1.0.0/16"),
        ipaddress.ip_network("8.8.0.0/16"),
        ipaddress.ip_network("2a00::/16"),
    ]
    lenient, strict = Peers(allow_private=True, refused=refused), Peers(allow_private=False, refused=refused)
    addresses = [
        "127.0.0.1",
        "10.2.0.1",
        "1.1.1.1",
        "10.1.2.3",
        "::ffff:10.1.2.3",
        "8.8.8.8",
        "64:ff9b::8.8.8.8",
        "2a00::1",
    ]
    assert [lenient.allow(address) for address in addresses] == [True] * 3 + [False] * 5
    assert [strict.allow(address) for address in addresses] == [False, False, True] + [False] * 5

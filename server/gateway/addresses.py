"""Addresses: the client behind proxies that may name it (`X-Forwarded-For`, and `Forwarded` of RFC 7239)."""

import re
from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address

from server.web.exchange import Headers

#: How many proxies one behind the other are believed; a header may name thousands.
_MOST_HOPS = 16

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z:\[\]-]+"  # with what proxies should quote and do not always

#: One parameter of `Forwarded`, up to the next one or the next element (RFC 7239, section 4).
_PARAMETER = re.compile(rf'[ \t]*(?P<name>{_WORD})=(?P<value>{_WORD}|"[^"\\]*")[ \t]*(?P<end>[;,]|$)')

_WITH_PORT = re.compile(r"\[(?P<ipv6>[^\]]+)\](:[0-9]+)?|(?P<ipv4>[0-9.]+):[0-9]+")

#: A request asks for its addresses several times, and many requests have the same.
_parsed = lru_cache(1024)(ip_address)


class Proxies:
    """The proxies that are believed when they name their clients.

    Args:
        networks: their addresses.
        is_any: whether every peer is trusted.
    """

    def __init__(self, networks: Sequence[IPv4Network | IPv6Network], *, is_any: bool) -> None:
        self._networks = networks
        self._is_any = is_any

    def client_of(self, peer: str | None, headers: Headers) -> str | None:
        """Find the address of a client: the nearest one that is no proxy of ours.

        Each proxy adds to the right whom it was asked by. What is further to the left than the first address
        that is not trusted, a client may have made up.

        Args:
            peer: the address at the other end of the connection; None for a unix socket, which a proxy uses.
            headers: of the request; names in lower case.

        Returns:
            None when the peer has no address and names none.
        """
        client = peer if peer is None else _address(peer) or peer
        if not self.is_trusted(client):
            return client
        for hop in _hops(headers):
            if hop is None:
                break
            client = hop
            if not self.is_trusted(hop):
                break
        return client

    def is_trusted(self, address: str | None) -> bool:
        """Say whether an address is that of a proxy; None, a unix socket, is."""
        if address is None or self._is_any:
            return True
        try:
            ip = _parsed(address)
        except ValueError:
            return False
        return any(ip in network for network in self._networks)


def _hops(headers: Headers) -> Sequence[str | None]:
    """Return whom the proxies name, the nearest first, with None for what is no address.

    `X-Forwarded-For` goes first: a proxy that adds to it often passes a client's own `Forwarded` on.
    """
    fields = list(headers)
    for name, parse in ((b"x-forwarded-for", _listed), (b"forwarded", _named_for)):
        if values := [value for field, value in fields if field == name]:
            hops = parse(b",".join(values).decode("latin-1"))
            return [_address(hop) for hop in hops[: -_MOST_HOPS - 1 : -1]]
    return ()


def _listed(text: str) -> list[str]:
    return text.split(",")


def _named_for(text: str) -> list[str]:
    """Return the parameter `for` of each element; nothing when any is malformed.

    A quote that a client has left open could swallow the element that a proxy has added.
    """
    hops, position = [""], 0
    while match := _PARAMETER.match(text, position):
        if match["name"].lower() == "for":
            hops[-1] = match["value"].strip('"')
        if match["end"] == ",":
            hops.append("")
        position = match.end()
    return hops if position == len(text) else []


def _address(text: str) -> str | None:
    """Read an address with or without a port; None for what is none, such as `unknown` or `_hidden`."""
    text = text.strip()
    if match := _WITH_PORT.fullmatch(text):
        text = match["ipv6"] or match["ipv4"]
    if "%" in text:  # a zone may have any character, and says nothing to another machine
        return None
    try:
        ip = _parsed(text)
    except ValueError:
        return None
    return str(getattr(ip, "ipv4_mapped", None) or ip)

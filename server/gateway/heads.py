"""Heads: which method, host and target a request may have (RFC 9110 and RFC 9112)."""

import re
from ipaddress import IPv6Address

#: The methods of RFC 9110, section 9, PATCH (RFC 5789) and QUERY (draft-ietf-httpbis-safe-method-w-body),
#: without CONNECT, which is for proxies.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "QUERY"})

#: Host and port (RFC 3986, section 3.2), without the user information, which HTTP does not allow.
_HOST = re.compile(
    rb"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]"
    rb"|\[[Vv][0-9A-Fa-f]+\.[A-Za-z0-9._~!$&'()*+,;=:-]+\]"
    rb"|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)"
    rb"(?::[0-9]*)?"
)

_ABSOLUTE = re.compile(rb"https?://(?P<host>[^/]*)(?P<path>/.*)?", re.IGNORECASE)


def is_host(value: bytes) -> bool:
    """Say whether a value of the field `Host` is one: a name or an address, and perhaps a port.

    It may be empty (RFC 9112, section 3.2).
    """
    match = _HOST.fullmatch(value)
    if match is None:
        return False
    if match["ipv6"] is None:
        return True
    try:
        IPv6Address(match["ipv6"].decode())
    except ValueError:
        return False
    return True


def split_absolute(target: bytes) -> tuple[bytes, bytes] | None:
    """Split the absolute form of a target (RFC 9112, section 3.2.2) into its host and its path.

    Args:
        target: as it was sent, without its query. Decoded, a `%3F` or a `%2F` would change where it splits.

    Returns:
        None for what is no URL of HTTP, which has a host (RFC 9110, section 4.2.1).
    """
    match = _ABSOLUTE.fullmatch(target)
    if match is None or not is_host(match["host"]) or match["host"][:1] in {b"", b":"}:
        return None
    return match["host"], match["path"] or b"/"

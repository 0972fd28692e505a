"""Callbacks: tell a client's server that a job or a batch has ended.

A callback is a job of its own, so it is tried again, with a growing delay, and can be looked at and retried
as any other job. It goes to hosts that the operator has listed, and there to public addresses only.

Source: Standard Webhooks specification 1.0; IANA IPv6 Global Unicast Address Assignments.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv6Address, IPv6Network, ip_address
from typing import Any

import httpx

from server.errors import BadParameter, CallbackFailed
from server.jobs.model import Callback, Claim

#: How often one is posted, at most: the last time after 9 minutes.
_ATTEMPTS = 10

#: How long one post may take, from the look-up of the name to the status, in seconds.
_TIMEOUT_S = 10.0

_LONGEST_URL = 2000

_PORTS = {"http": 80, "https": 443}

#: What the specification puts before a secret in base64.
_PREFIX = "whsec_"

#: All IPv6 addresses that are public today.
_GLOBAL_UNICAST = IPv6Network("2000::/3")


class Callbacks:
    """Posts callbacks.

    Args:
        hosts: the names of the only hosts that are posted to.
        secret: what they are signed with: in base64 after `whsec_`, or any text.
        is_public_only: whether hosts with a private address are refused.
        timeout_s: how long one post may take, in seconds.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        secret: str,
        *,
        is_public_only: bool = True,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self._hosts = frozenset(hosts)
        self._key = key_of(secret)
        self._is_public_only = is_public_only
        self._timeout_s = timeout_s
        self._tls = ssl.create_default_context()

    def accept(self, url: str) -> Callback:
        """Accept the URL of a callback.

        Raises:
            BadParameter: it is none, or its host is not allowed.
        """
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL:
            parsed = httpx.URL()
        is_wrong = parsed.scheme not in _PORTS or parsed.userinfo or not 0 < _port(parsed) < 1 << 16
        if is_wrong or len(url) > _LONGEST_URL:
            raise BadParameter(
                "The parameter `callback` is wrong. Give a URL that begins with https:// and has "
                f"no password and at most {_LONGEST_URL} characters."
            )
        if _host(parsed) not in self._hosts:
            raise BadParameter(
                "The host in `callback` is not in FLIP_CALLBACK_HOSTS. Ask the operator for it."
            )
        return Callback(url, _ATTEMPTS)

    async def post(self, claim: Claim) -> None:
        """Post one callback.

        Raises:
            CallbackFailed: it was not accepted.
        """
        parameters = claim.facts.parameters
        url = httpx.URL(parameters["url"])
        if _host(url) not in self._hosts:
            raise CallbackFailed("The host is not allowed any more.")
        body = json.dumps(_payload(parameters)).encode()
        try:
            async with asyncio.timeout(self._timeout_s):
                status = await self._send(url, body, self._signed(str(claim.id), body))
        except (TimeoutError, httpx.TimeoutException):
            raise CallbackFailed(f"The host did not answer within {self._timeout_s:g} s.") from None
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__  # may quote what the host has sent
            raise CallbackFailed(f"The post failed: {ascii(reason)[1:-1]}.") from None
        if not httpx.codes.is_success(status):
            raise CallbackFailed(f"The host answered with status {status}.")

    async def _send(self, url: httpx.URL, body: bytes, headers: Mapping[str, str]) -> int:
        """Post to the first address that a connection can be made to, and return the status."""
        host = _host(url)
        addresses = await self._resolve(host, _port(url))
        failure: httpx.TransportError | None = None
        # An address that does not answer leaves time for the others.
        timeout = httpx.Timeout(self._timeout_s, connect=self._timeout_s / max(1, len(addresses)))
        async with httpx.AsyncClient(verify=self._tls, timeout=timeout, trust_env=False) as client:
            for address in addresses:
                try:
                    async with client.stream(
                        "POST",
                        # The address that was checked: a second look-up could give another one.
                        url.copy_with(host=address),
                        content=body,
                        headers={**headers, "Host": url.netloc.decode()},
                        extensions={"sni_hostname": host},  # the certificate must be the host's
                    ) as response:
                        return response.status_code  # the body is not read
                except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                    failure = error
        raise failure or CallbackFailed("The host has no address.")

    async def _resolve(self, host: str, port: int) -> list[str]:
        # In a thread of its own: a look-up cannot be cancelled, and those that hang would occupy the threads
        # that the event loop has for files, and hold up the callbacks of other hosts.
        threads = ThreadPoolExecutor(1)
        look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        try:
            found = await asyncio.get_running_loop().run_in_executor(threads, look_up)
        except OSError:
            raise CallbackFailed("The name of the host is not known.") from None
        finally:
            threads.shutdown(wait=False)
        addresses = [str(address[0]) for *_, address in found]
        if self._is_public_only and not all(is_public(each) for each in addresses):
            raise CallbackFailed("The host has an address that is not public.")
        return addresses

    def _signed(self, id: str, body: bytes) -> dict[str, str]:
        moment = str(int(time.time()))
        signed = hmac.digest(self._key, f"{id}.{moment}.".encode() + body, hashlib.sha256)
        return {
            "Content-Type": "application/json",
            "Webhook-Id": id,
            "Webhook-Timestamp": moment,
            "Webhook-Signature": f"v1,{base64.b64encode(signed).decode()}",
        }


def key_of(secret: str) -> bytes:
    """Return the key that a secret stands for.

    Raises:
        ValueError: it begins with `whsec_`, and no base64 follows.
    """
    if secret.startswith(_PREFIX):
        return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    return secret.encode()


def is_public(text: str) -> bool:
    """Whether an address is one of the public Internet, and stands for no other one behind a translator."""
    address = ip_address(text)
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif address not in _GLOBAL_UNICAST or address.sixtofour is not None:
            return False
    return address.is_global and not address.is_multicast


def _host(url: httpx.URL) -> str:
    return url.raw_host.decode()


def _port(url: httpx.URL) -> int:
    return _PORTS[url.scheme] if url.port is None else url.port


def _payload(parameters: Mapping[str, Any]) -> dict[str, object]:
    kind, plural = ("batch", "batches") if parameters["is_batch"] else ("job", "jobs")
    return {
        "type": f"{kind}.ended",
        "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(parameters["ended_ms"] / 1000)),
        "data": {
            "id": parameters["group"],
            "href": f"/{plural}/{parameters['group']}",
            **parameters["counts"],
        },
    }

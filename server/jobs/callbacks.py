"""Callbacks: tell a client's server that a job or a batch has ended.

Signed as the Standard Webhooks specification 1.0 says. A callback is a job of its own, so it is tried again,
with a growing delay, and can be looked at and retried as any other job.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import time
from collections.abc import Sequence
from ipaddress import ip_address
from urllib.parse import urlsplit

import httpx

from server.errors import BadParameter
from server.jobs.model import Batch, Claim
from server.jobs.store import Store

#: How long one post may take, in seconds.
_TIMEOUT_S = 10.0

_PORTS = {"http": 80, "https": 443}


class CallbackFailed(Exception):
    """The client's server did not accept it; the text says why."""


class Callbacks:
    """Posts callbacks.

    Args:
        store: what has ended is read there.
        hosts: the names of the only hosts that are posted to.
        secret: what they are signed with.
        is_public_only: whether hosts with a private address are refused.
    """

    def __init__(
        self, store: Store, hosts: Sequence[str], secret: str, *, is_public_only: bool = True
    ) -> None:
        self._store = store
        self._hosts = frozenset(hosts)
        self._secret = secret.encode()
        self._is_public_only = is_public_only

    def check(self, url: str) -> str:
        """Accept the URL of a callback.

        Raises:
            BadParameter: it is none, or its host is not allowed.
        """
        try:
            parts = urlsplit(url)
            is_well_formed = parts.scheme in _PORTS and not parts.username and parts.port != 0
        except ValueError:
            is_well_formed = False
        if not is_well_formed:
            raise BadParameter("The parameter `callback` is no URL. Give one that begins with https://.")
        if parts.hostname not in self._hosts:
            raise BadParameter(
                "The host in `callback` is not allowed here. The operator lists hosts in FLIP_CALLBACK_HOSTS."
            )
        return url

    async def post(self, claim: Claim) -> None:
        """Post one callback.

        Raises:
            CallbackFailed: it was not accepted.
        """
        batch = await self._store.batch(claim.facts.parameters["group"])
        url = claim.facts.parameters["url"]
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
        if host not in self._hosts:
            raise CallbackFailed(f"the host {host} is not allowed any more")
        address = await self._resolve(host, port)
        body = json.dumps(_payload(batch)).encode()
        # To the address that was checked: a second look-up could give another one.
        target = httpx.URL(url).copy_with(host=address)
        try:
            async with httpx.AsyncClient(
                timeout=_TIMEOUT_S, trust_env=False, follow_redirects=False
            ) as client:
                response = await client.post(
                    target,
                    content=body,
                    headers={**self._signed(str(claim.id), body), "Host": parts.netloc},
                    extensions={"sni_hostname": host},
                )
        except httpx.HTTPError as error:
            raise CallbackFailed(str(error) or type(error).__name__) from None
        if not response.is_success:
            raise CallbackFailed(f"it was answered with status {response.status_code}")

    async def _resolve(self, host: str, port: int) -> str:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise CallbackFailed(f"the host {host} is not known: {error}") from None
        addresses = [str(address[0]) for *_, address in found]
        if self._is_public_only and not all(
            ip_address(each.partition("%")[0]).is_global for each in addresses
        ):
            raise CallbackFailed(f"the host {host} has an address that is not public")
        return addresses[0]

    def _signed(self, id: str, body: bytes) -> dict[str, str]:
        moment = str(int(time.time()))
        signed = hmac.digest(self._secret, f"{id}.{moment}.".encode() + body, hashlib.sha256)
        return {
            "Content-Type": "application/json",
            "Webhook-Id": id,
            "Webhook-Timestamp": moment,
            "Webhook-Signature": f"v1,{base64.b64encode(signed).decode()}",
        }


def _payload(batch: Batch) -> dict[str, object]:
    kind = "batch" if batch.is_batch else "job"
    return {
        "type": f"{kind}.ended",
        "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(batch.ended_s or 0)),
        "data": {
            "id": batch.id,
            "href": f"/{'batches' if batch.is_batch else 'jobs'}/{batch.id}",
            "total": batch.total,
            "completed": batch.completed,
            "failed": batch.failed,
            "cancelled": batch.cancelled,
        },
    }

"""Operators: clients that may pause queues and run jobs again."""

import hmac
import re
from ipaddress import ip_address

from falcon.asgi import Request

from server.errors import Forbidden, Unauthorized

#: What a proxy adds: behind one, the address of the connection says nothing about the client.
_PROXIED = ("Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-IP")

#: `Host` of a request to the machine itself. One with another came through a proxy, or from a browser whose
#: page has let its own name resolve to 127.0.0.1 (DNS rebinding).
_LOCAL_HOST = re.compile(r"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]*)?", re.IGNORECASE)


class Operators:
    """Tells operators from others.

    Args:
        token: what an operator sends as `Authorization: Bearer TOKEN`; without one, those on the same machine
            are operators, when they use a loopback address, HTTP/1.1 and no proxy.
    """

    def __init__(self, token: str | None) -> None:
        self._token = token

    def check(self, req: Request) -> None:
        """Let an operator pass.

        Raises:
            Unauthorized: there is a token, and the request has none or another one.
            Forbidden: there is no token, and the request is not from this machine, not for a loopback
                address, in HTTP/1.0 or has come through a proxy, or a page of another site has made a browser
                send it.
        """
        if self._token is not None:
            scheme, _, sent = req.get_header("Authorization", default="").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(sent.encode(), self._token.encode()):
                raise Unauthorized(
                    "This is for operators. Send `Authorization: Bearer` with the value of FLIP_ADMIN_TOKEN."
                )
        elif not _is_local(req):
            raise Forbidden(
                "This is for operators on the machine itself, at an address such as http://localhost:8000, "
                "with HTTP/1.1 and through no proxy. Set FLIP_ADMIN_TOKEN to do it from elsewhere."
            )
        elif req.get_header("Sec-Fetch-Site", default="none") not in {"none", "same-origin"}:
            raise Forbidden("A page of another site may not do this. Send the request without a browser.")


def _is_local(req: Request) -> bool:
    """Whether the request comes from this machine, over a unix socket too, and through no proxy.

    By default nginx says nothing of itself and makes `Host` the address that it connects to, but before
    1.29.7 it speaks HTTP/1.0, as hardly any client does. A proxy that differs in nothing cannot be told from
    an operator: docs/jobs.md asks for a token behind any proxy.

    Source: nginx, ngx_http_proxy_module, on proxy_http_version and proxy_set_header.
    """
    if req.scope["http_version"] == "1.0":
        return False
    if any(req.get_header(name) is not None for name in _PROXIED):
        return False
    if not _LOCAL_HOST.fullmatch(req.get_header("Host", default="")):
        return False
    client = (req.scope.get("client") or ("",))[0]
    try:
        return not client or ip_address(client).is_loopback
    except ValueError:
        return False

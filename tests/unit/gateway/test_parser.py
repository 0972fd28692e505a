"""Our parser accepts what gunicorn's accepts."""

import socket
from collections.abc import Iterator

import pytest
from gunicorn.asgi.parser import PythonProtocol
from support.gateway import Client, WatchedProtocol, gateway, run

from server.gateway.parser import Parser
from server.gateway.turns import Turns
from server.web.envelope import Receive, Scope, Send


def texts() -> Iterator[bytes]:
    yield b""
    for byte in range(256):
        for text in (b"%c", b"a%c", b"%ca", b"a%ca", b"a%c\n"):
            yield text % byte


def test_the_names_and_values_of_fields_are_those_of_gunicorn() -> None:
    ours, theirs = Parser(Turns()), PythonProtocol()
    for text in texts():
        assert ours._is_valid_token(text) == theirs._is_valid_token(text), text
        assert ours._has_invalid_header_chars(text) == theirs._has_invalid_header_chars(text), text


@pytest.mark.parametrize("trusted", ["127.0.0.1", "192.0.2.1"])
@pytest.mark.parametrize("is_on", [True, False])
def test_the_proxy_protocol_is_believed_where_it_is_on_and_the_proxy_trusted(
    trusted: str, is_on: bool
) -> None:
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["client"])
        headers = [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def test() -> None:
        config = {"proxy_protocol": "v1" if is_on else "off", "proxy_allow_ips": trusted}
        async with gateway(app, **config) as (served, events):
            with socket.create_server(("127.0.0.1", 0)) as listener:
                client = Client(socket.create_connection(listener.getsockname()))
                accepted, _ = listener.accept()
            protocol = WatchedProtocol(served.worker)
            protocol.arrive(accepted.getpeername())
            await served.worker.loop.connect_accepted_socket(lambda: protocol, accepted)
            await client.send(b"PROXY TCP4 198.51.100.7 192.0.2.2 1234 80\r\n")
            await client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = await client.read()
            if is_on and trusted == "127.0.0.1":
                assert answer.status == 200
                assert seen == [("198.51.100.7", 1234)]
                assert [event["client"] for event in events if event["event"] == "request"] == [
                    "198.51.100.7"
                ]
            else:
                assert answer.status == 400
            client.close()
            protocol.transport.abort()
            await protocol.lost.wait()

    run(test())

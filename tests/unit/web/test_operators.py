"""An operator has the token, or, where there is none, is on the machine itself."""

import pytest
from falcon.asgi import Request
from falcon.testing import create_scope

from server.errors import Forbidden, Unauthorized
from server.web.operators import Operators

TOKEN = "a token of some length"  # noqa: S105 of the test


def request(
    client: tuple[str, int] | None = ("127.0.0.1", 5000), http_version: str = "1.1", **headers: str
) -> Request:
    sent = {"Host": "localhost:8000"} | {name.replace("_", "-"): value for name, value in headers.items()}
    scope = create_scope(http_version="1.0", headers=sent)  # in 1.1 it would get another `Host`
    scope["client"], scope["http_version"] = client, http_version
    return Request(scope, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("client", [("127.0.0.1", 1), ("203.0.113.9", 1), None])
def test_a_client_with_the_token_is_an_operator(client: tuple[str, int] | None) -> None:
    Operators(TOKEN).check(request(client, Authorization=f"Bearer {TOKEN}", Sec_Fetch_Site="cross-site"))


@pytest.mark.parametrize(
    "sent",
    [
        *("", "Bearer", "Bearer ", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x"),
        *(f"Bearer  {TOKEN}", f"Bearer {TOKEN.upper()}", "Bearer \xe9\xff", "Bearer \0"),
    ],
)
def test_a_wrong_token_is_refused_from_the_machine_itself_too(sent: str) -> None:
    with pytest.raises(Unauthorized):
        Operators(TOKEN).check(request(Authorization=sent))


def test_a_request_without_a_token_is_refused_where_there_is_one() -> None:
    with pytest.raises(Unauthorized):
        Operators(TOKEN).check(request())


@pytest.mark.parametrize("client", [("127.0.0.1", 1), ("127.8.9.1", 1), ("::1", 1), ("", 0), None])
def test_without_a_token_those_on_the_machine_are_operators(client: tuple[str, int] | None) -> None:
    for site in ("none", "same-origin"):
        Operators(None).check(request(client, Sec_Fetch_Site=site))
    Operators(None).check(request(client))


@pytest.mark.parametrize("client", [("203.0.113.9", 1), ("10.0.0.1", 1), ("::ffff:10.0.0.1", 1), ("?", 1)])
def test_without_a_token_nobody_else_is(client: tuple[str, int]) -> None:
    with pytest.raises(Forbidden):
        Operators(None).check(request(client))


@pytest.mark.parametrize(
    "headers",
    [
        *({"Forwarded": "for=127.0.0.1"}, {"X_Forwarded_For": "127.0.0.1"}, {"X_Real_IP": "::1"}),
        *({"Via": "1.1 proxy"}, {"X_Forwarded_Host": "localhost"}, {"X_Forwarded_Proto": "http"}),
        *({"X_Forwarded_For": ""}, {"Via": ""}),
        *({"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"}, {"Sec_Fetch_Site": ""}),
    ],
)
def test_neither_a_proxy_nor_a_page_of_another_site_speaks_for_the_machine(headers: dict[str, str]) -> None:
    with pytest.raises(Forbidden):
        Operators(None).check(request(**headers))


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost:8000", "LocalHost:80", "127.0.0.1", "127.0.0.1:8000", "127.8.9.1:1"),
        *("[::1]", "[::1]:8000"),
    ],
)
@pytest.mark.parametrize("client", [("127.0.0.1", 1), None])
def test_an_operator_on_the_machine_uses_a_loopback_address(
    host: str, client: tuple[str, int] | None
) -> None:
    Operators(None).check(request(client, Host=host))


@pytest.mark.parametrize(
    "host",
    [
        *("", "flipcluster", "images.example", "images.example:8000", "10.0.0.10", "[::]", "::1"),
        *("localhost.images.example", "127.0.0.1.images.example", "images.example:127.0.0.1", "127.0.0.1@a"),
        *("localhost:8000:80", "localhost, localhost", "localhost,localhost"),
    ],
)
def test_neither_a_proxy_on_the_machine_nor_a_rebound_name_is_an_operator(host: str) -> None:
    for client in ("127.0.0.1", 1), None:
        with pytest.raises(Forbidden):
            Operators(None).check(request(client, Host=host))


def test_a_request_as_a_proxy_passes_it_by_default_is_no_operator() -> None:
    """`proxy_pass http://127.0.0.1:8000;` in nginx before 1.29.7."""
    for client in ("127.0.0.1", 1), None:
        sent = request(client, "1.0", Host="127.0.0.1:8000", Connection="close")
        with pytest.raises(Forbidden):
            Operators(None).check(sent)
        Operators(TOKEN).check(request(client, "1.0", Authorization=f"Bearer {TOKEN}"))

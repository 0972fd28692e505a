"""The gateway's policies: bytes and seconds in, decisions out."""

import asyncio
import json
from ipaddress import ip_network

import pytest
from support.ledgers import ledger_for

from server.cluster.ledger import Account, Field, Ledger
from server.gateway import eviction
from server.gateway.addresses import Proxies
from server.gateway.drain import Drain, Step
from server.gateway.heads import is_host, split_absolute
from server.gateway.linger import LINGER_S, LingeringClose
from server.gateway.refusals import refusal, refuse
from server.gateway.throttle import ConnectionThrottle
from server.gateway.transfer_rate import Reading, Stage, TransferRate
from server.settings import Settings
from server.shares import Shares
from server.web.exchange import Exchange

#: How long any wait may take, in seconds.
DEADLINE_S = 20.0

SETTINGS = Settings(headers_timeout_s=10, min_bytes_per_s=1000, slow_after_s=5)

# --- Heads --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        *("", "a", "A.example", "a.example.", "a:80", "a:", ":80", "127.0.0.1", "127.0.0.1:8000", "[::1]"),
        *("[::1]:80", "[2001:DB8::192.0.2.1]", "[v1.a:b]:1", "a_b", "a-b", "%41", "a!$&'()*+,;=~"),
    ],
)
def test_a_host_is_a_name_or_an_address_and_perhaps_a_port(value: str) -> None:
    assert is_host(value.encode())


@pytest.mark.parametrize(
    "value",
    [
        *("a b", "a,\tb", "a/b", "a?b", "a#b", "a\\b", "u@a", "u:p@a", "http://a", "a:b", "a:1:2", "a:-1"),
        *("::1", "[::1", "::1]", "[]", "[a]", "[::1%eth0]", "[1::2::3]", "[127.0.0.1]", "[::1]a", "%4", "%z"),
        *('"a"', "<a>", "{a}", "a|b", "a^b", "a`b", "ä", "a\x7f", "a\n"),
    ],
)
def test_nothing_else_is_a_host(value: str) -> None:
    assert not is_host(value.encode())


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        (b"http://a/b", (b"a", b"/b")),
        (b"HTTPS://a:1/b/http://c/d", (b"a:1", b"/b/http://c/d")),
        (b"http://a", (b"a", b"/")),
        (b"http://a/%3Fb%2F", (b"a", b"/%3Fb%2F")),
        (b"http://[::1]/", (b"[::1]", b"/")),
        (b"http://", None),
        (b"http:///b", None),
        (b"http://:80/b", None),
        (b"http://u:p@a/b", None),
        (b"http://[/b", None),
        (b"http://a\\b/c", None),
        (b"http:/a/b", None),
        (b"ftp://a/b", None),
        (b"a/b://c", None),
        (b"a:80", None),
    ],
)
def test_an_absolute_target_has_a_host_and_a_path(target: bytes, parts: tuple[bytes, bytes] | None) -> None:
    assert split_absolute(target) == parts


# --- Addresses ----------------------------------------------------------------------------------------------

PROXIES = Proxies([ip_network("10.0.0.0/8"), ip_network("fd00::/8")], is_any=False)


def client_of(peer: str | None, *fields: tuple[str, str], proxies: Proxies = PROXIES) -> str | None:
    return proxies.client_of(peer, [(name.encode(), value.encode("latin-1")) for name, value in fields])


@pytest.mark.parametrize(
    ("said", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.7:4711", "192.0.2.7"),
        ("2001:db8::7", "2001:db8::7"),
        ("[2001:DB8:0::7]", "2001:db8::7"),
        ("[2001:db8::7]:4711", "2001:db8::7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("198.51.100.1, 192.0.2.7", "192.0.2.7"),  # the first is what the client has sent
        ("198.51.100.1 ,\t192.0.2.7,10.0.0.2, fd00::2", "192.0.2.7"),
        ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
        ("198.51.100.1, unknown", "10.0.0.1"),
        ("198.51.100.1, unknown, 10.0.0.2", "10.0.0.2"),
        ("192.0.2.7,", "10.0.0.1"),
        ("", "10.0.0.1"),
        ("192.0.2.7 192.0.2.8", "10.0.0.1"),
        ("192.0.2.777", "10.0.0.1"),
        ("fe80::1%\x1b[31m", "10.0.0.1"),
        ("ä", "10.0.0.1"),
        ("198.51.100.1, " + "10.0.0.2, " * 15 + "10.0.0.3", "10.0.0.2"),  # no more than sixteen
    ],
)
def test_the_client_is_the_nearest_address_that_is_no_trusted_proxy(said: str, client: str) -> None:
    assert client_of("10.0.0.1", ("x-forwarded-for", said)) == client


@pytest.mark.parametrize(
    ("said", "client"),
    [
        ("for=192.0.2.7", "192.0.2.7"),
        ("For=192.0.2.7;proto=https;by=10.0.0.1", "192.0.2.7"),
        ('host="a,b;for=198.51.100.1" ; for="192.0.2.7:80"', "192.0.2.7"),
        ('for="[2001:db8::7]:4711"', "2001:db8::7"),
        ("for=[2001:db8::7]:4711", "2001:db8::7"),
        ("for=198.51.100.1, for=192.0.2.7;by=b, for=10.0.0.2", "192.0.2.7"),
        ("for=198.51.100.1, for=_hidden", "10.0.0.1"),
        ("for=198.51.100.1, for=unknown", "10.0.0.1"),
        ("for=198.51.100.1, by=10.0.0.2", "10.0.0.1"),
        ("192.0.2.7", "10.0.0.1"),
        ('for=198.51.100.1;by=", for=192.0.2.7', "10.0.0.1"),
        ('for=198.51.100.1;by=", for="[2001:db8::7]"', "10.0.0.1"),
        ('for="198.51.100.1, for="[2001:db8::7]"', "10.0.0.1"),
        ("for=198.51.100.1 for=192.0.2.7", "10.0.0.1"),
    ],
)
def test_the_client_of_the_standard_field_is_found_in_the_same_way(said: str, client: str) -> None:
    assert client_of("10.0.0.1", ("forwarded", said)) == client


def test_fields_of_one_name_are_one_list() -> None:
    fields = ("x-forwarded-for", "192.0.2.7"), ("x-forwarded-for", "10.0.0.2")
    assert client_of("10.0.0.1", *fields) == "192.0.2.7"


def test_a_client_s_own_forwarded_does_not_count_next_to_what_a_proxy_adds() -> None:
    fields = ("forwarded", "for=198.51.100.1"), ("x-forwarded-for", "192.0.2.7")
    assert client_of("10.0.0.1", *fields) == client_of("10.0.0.1", *reversed(fields)) == "192.0.2.7"


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("::ffff:10.0.0.1", "192.0.2.7"),
        (None, "192.0.2.7"),
    ],
)
def test_only_a_trusted_proxy_or_a_unix_socket_may_name_a_client(peer: str | None, client: str) -> None:
    assert client_of(peer, ("x-forwarded-for", "192.0.2.7")) == client
    assert client_of(peer) != "192.0.2.7"


def test_with_an_asterisk_everybody_may() -> None:
    anybody = Proxies([], is_any=True)
    assert client_of("198.51.100.1", ("x-forwarded-for", "192.0.2.7"), proxies=anybody) == "192.0.2.7"


# --- Minimum transfer rate ----------------------------------------------------------------------------------


def test_waiting_for_turns_does_not_extend_the_time_for_headers() -> None:
    rate = TransferRate(SETTINGS, now_s=0)
    assert not rate.read(Stage.HEADERS, 0, 9).is_too_slow
    assert not rate.read(Stage.NOTHING, 0, 11).is_too_slow  # it waits for its turn
    assert not rate.read(Stage.HEADERS, 0, 11.1).is_too_slow
    assert rate.read(Stage.HEADERS, 0, 11.2).is_too_slow


def test_headers_have_a_time_limit_of_their_own() -> None:
    rate = TransferRate(SETTINGS, 100)
    assert not rate.read(Stage.HEADERS, 0, 110).is_too_slow
    assert rate.read(Stage.HEADERS, 0, 110.1).is_too_slow


@pytest.mark.parametrize("stage", [Stage.UPLOAD, Stage.DOWNLOAD])
def test_a_client_below_the_minimum_is_too_slow_only_after_a_whole_window(stage: Stage) -> None:
    rate = TransferRate(SETTINGS, 0)
    assert rate.read(stage, 0, 1) == Reading()
    assert rate.read(stage, 10, 6) == Reading(is_too_slow=False, bytes_per_s=2)
    assert rate.read(stage, 4999, 6.1).is_too_slow


def test_a_client_at_the_minimum_is_fast_enough() -> None:
    rate = TransferRate(SETTINGS, 0)
    rate.read(Stage.UPLOAD, 0, 0)
    assert rate.read(Stage.UPLOAD, 10_000, 10) == Reading(is_too_slow=False, bytes_per_s=1000)


def test_each_window_is_measured_by_itself() -> None:
    rate = TransferRate(SETTINGS, 0)
    rate.read(Stage.UPLOAD, 0, 0)
    assert not rate.read(Stage.UPLOAD, 1_000_000, 6).is_too_slow
    assert rate.read(Stage.UPLOAD, 1_000_100, 12).is_too_slow


def test_a_new_stage_begins_a_new_window() -> None:
    rate = TransferRate(SETTINGS, 0)
    rate.read(Stage.UPLOAD, 0, 0)
    assert rate.read(Stage.DOWNLOAD, 7, 100) == Reading()
    assert rate.read(Stage.DOWNLOAD, 7, 105) == Reading(is_too_slow=False, bytes_per_s=0)


def test_a_connection_that_waits_for_the_server_is_never_too_slow() -> None:
    rate = TransferRate(SETTINGS, 0)
    rate.read(Stage.NOTHING, 0, 0)
    assert rate.read(Stage.NOTHING, 0, 1e6) == Reading()


def test_who_holds_more_must_read_faster() -> None:
    settings = Settings(min_bytes_per_s=1000, slow_after_s=5, download_timeout_s=100)
    for held_bytes, is_too_slow in ((0, False), (200_000, False), (300_000, True)):
        rate = TransferRate(settings, 0)
        rate.read(Stage.DOWNLOAD, 0, 0, held_bytes)
        assert rate.read(Stage.DOWNLOAD, 20_000, 10, held_bytes).is_too_slow is is_too_slow
    rate = TransferRate(settings, 0)
    rate.read(Stage.UPLOAD, 0, 0, 300_000)
    assert not rate.read(Stage.UPLOAD, 20_000, 10, 300_000).is_too_slow


def test_a_result_is_overdue_after_its_total_time() -> None:
    rate = TransferRate(Settings(download_timeout_s=100), 0)
    assert not rate.is_overdue(7, 107, 1)
    assert rate.is_overdue(7, 107.1, 1)
    assert not rate.is_overdue(7, 1e6, 0)  # nothing is held in memory for it
    assert not rate.is_overdue(None, 1e6, 1)  # it has not begun
    without = TransferRate(Settings(download_timeout_s=0), 0)
    assert not without.is_overdue(7, 1e6, 1)
    without.read(Stage.DOWNLOAD, 0, 0, 10**12)
    assert not without.read(Stage.DOWNLOAD, 10**6, 11, 10**12).is_too_slow


def test_two_looks_at_the_same_moment_do_no_harm() -> None:
    rate = TransferRate(SETTINGS, 0)
    rate.read(Stage.UPLOAD, 0, 1)
    assert rate.read(Stage.UPLOAD, 0, 1) == Reading()


# --- Lingering close ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("has_head", "is_refused", "is_body_complete", "is_last", "is_needed"),
    [
        pytest.param(False, False, False, False, False, id="idle"),
        pytest.param(False, True, False, False, True, id="the head may go on"),
        pytest.param(True, False, False, False, True, id="the body may go on"),
        pytest.param(True, True, False, True, True, id="the body may go on, on the last request"),
        pytest.param(True, False, True, False, True, id="another request may be on its way"),
        pytest.param(True, False, True, True, False, id="nothing more will come"),
    ],
)
def test_a_connection_lingers_when_its_client_may_still_send(
    has_head: bool, is_refused: bool, is_body_complete: bool, is_last: bool, is_needed: bool
) -> None:
    close = LingeringClose()
    facts = {
        "has_head": has_head,
        "is_refused": is_refused,
        "is_body_complete": is_body_complete,
        "is_last": is_last,
    }
    assert close.is_needed(**facts) is is_needed


def test_a_connection_lingers_once() -> None:
    close = LingeringClose()
    assert not close.is_begun
    assert close.begin(7) == 7 + LINGER_S
    assert close.is_begun
    assert not close.is_needed(has_head=True, is_refused=True, is_body_complete=False, is_last=False)


# --- Drain --------------------------------------------------------------------------------------------------


def test_a_drain_closes_the_listeners_first_and_ends_with_the_last_connection() -> None:
    drain = Drain(timeout_s=30, max_responses=10)
    assert not drain.is_begun
    drain.begin(100)
    assert drain.is_begun
    steps = [
        drain.step(now_s, connections, has_backlog=False)
        for now_s, connections in ((101, 0), (102, 2), (103, 1), (104, 0))
    ]
    assert steps == [Step.CLOSE_LISTENERS, Step.WAIT, Step.WAIT, Step.END]


def test_a_drain_listens_while_the_kernel_has_connections_but_not_for_ever() -> None:
    drain = Drain(timeout_s=30, max_responses=10)
    drain.begin(100)
    assert drain.step(101, 0, has_backlog=True) is Step.WAIT
    assert drain.step(101.5, 1, has_backlog=False) is Step.CLOSE_LISTENERS
    drain = Drain(timeout_s=30, max_responses=10)
    drain.begin(100)
    assert drain.step(102, 1, has_backlog=True) is Step.CLOSE_LISTENERS
    drain = Drain(timeout_s=1, max_responses=10)
    drain.begin(100)
    assert drain.step(101, 1, has_backlog=True) is Step.CLOSE_LISTENERS


def test_a_drain_has_a_deadline() -> None:
    drain = Drain(timeout_s=30, max_responses=10)
    drain.begin(100)
    drain.step(100, 1, has_backlog=False)
    assert drain.step(129.9, 1, has_backlog=False) is Step.WAIT
    assert drain.step(130, 1, has_backlog=False) is Step.TIME_OUT
    assert drain.step(130, 0, has_backlog=False) is Step.END


def test_a_worker_is_due_with_the_last_response_that_it_may_begin() -> None:
    drain = Drain(timeout_s=30, max_responses=3)
    assert [drain.is_due(responses) for responses in range(4)] == [False, False, True, True]


# --- Refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "slug", "next_step"),
    [
        (400, "bad-request", "Send a valid HTTP/1.1 request."),
        (408, "request-timeout", "Send all headers at once."),
        (414, "uri-too-long", "Send a shorter path and query."),
        (431, "request-header-fields-too-large", "Send fewer or shorter header fields."),
        (501, "not-implemented", "Use a method of /openapi.json, and no transfer coding but chunked."),
        (503, "service-unavailable", "Try again in a moment, or keep connections open and use them again."),
    ],
)
def test_a_refusal_says_why_and_what_to_do_next(status: int, slug: str, next_step: str) -> None:
    problem = refusal(status, "so it is")
    assert (problem.status, problem.slug) == (status, slug)
    assert problem.detail == f"The request was refused: so it is. {next_step}"


def test_a_fault_of_ours_tells_a_client_nothing_else() -> None:
    assert "secret" not in refusal(500, "secret").detail


def test_a_refusal_is_the_response_of_its_exchange() -> None:
    exchange = Exchange(request_id="a-b-c")
    answer = refuse(exchange, refusal(431, "too many"), ("retry-after", "1"))
    head, _, body = answer.partition(b"\r\n\r\n")
    line, *fields = head.split(b"\r\n")
    headers = dict(field.split(b": ", 1) for field in fields)
    assert line == b"HTTP/1.1 431 Request Header Fields Too Large"
    assert headers[b"content-type"] == b"application/problem+json"
    assert int(headers[b"content-length"]) == len(body) == exchange.sent_bytes
    assert (headers[b"connection"], headers[b"retry-after"]) == (b"close", b"1")
    assert headers[b"cache-control"] == b"no-store"
    assert headers[b"x-request-id"] == b"a-b-c"
    assert headers[b"date"].endswith(b" GMT")
    assert json.loads(body)["request_id"] == "a-b-c"
    assert (exchange.status, exchange.problem) == (431, "request-header-fields-too-large")


# --- Eviction -----------------------------------------------------------------------------------------------


class Place:
    """A connection of a worker that may have ten."""

    def __init__(self, account: Account | None, cost: tuple[int, float] | None = (0, 0)) -> None:
        self.account = account
        self._cost = cost
        self.looks = 0
        if account is not None:
            account.add(Field.CONNECTIONS, 1)

    def cost_of_closing(self) -> tuple[int, float] | None:
        self.looks += 1
        return self._cost


class Crowd:
    """Clients at a worker that may have ten connections, of which one client's share is 2.

    Attributes:
        elsewhere: what another worker counts.
    """

    def __init__(self) -> None:
        clients = "abcd"
        ledger = ledger_for(*clients)
        page, self.elsewhere = ledger.open(0), ledger.open(1)
        self.a, self.b, self.c, self.d = (page.account(client) for client in clients)
        self.shares = Shares(page, {Field.CONNECTIONS: 20})

    def choose(self, newcomer: Account | None, *places: Place) -> Place | None:
        """Return the first that is to be closed."""
        return next(iter(eviction.choose(newcomer, places, self.shares, 10)), None)


def test_the_client_with_the_most_connections_loses_one() -> None:
    crowd = Crowd()
    few, some, most = [
        [Place(account) for _ in range(number)]
        for account, number in ((crowd.a, 2), (crowd.b, 3), (crowd.c, 5))
    ]
    assert crowd.choose(crowd.d, *few, *some, *most) in most
    assert crowd.choose(crowd.a, Place(crowd.a)) is None  # it has had its share
    assert crowd.choose(None, *few, *some, *most) in most  # a proxy's


def test_nobody_loses_a_connection_within_a_share() -> None:
    crowd = Crowd()
    places = [Place(account) for account in (crowd.a, crowd.b) for _ in range(2)]
    assert crowd.choose(crowd.c, *places, *(Place(None) for _ in range(6))) is None


def test_what_costs_least_is_closed_first_and_what_an_engine_works_for_stays() -> None:
    crowd = Crowd()
    costs = [(2, 9.0), (0, 0), (2, 1.0), (1, 0), None]
    places = [Place(crowd.a, cost) for cost in costs]
    closed = []
    while place := crowd.choose(crowd.b, *places):
        closed.append(place.cost_of_closing())
        places.remove(place)
    assert closed == [(0, 0), (1, 0), (2, 1.0), (2, 9.0)]


def test_connections_on_which_no_request_is_lost_are_closed_together_down_to_the_share() -> None:
    crowd = Crowd()
    transfers, quiet = [Place(crowd.a, (2, 1.0)) for _ in range(2)], [Place(crowd.a) for _ in range(4)]
    assert eviction.choose(crowd.b, [*transfers, *quiet], crowd.shares, 10) == quiet
    assert eviction.choose(crowd.b, transfers, crowd.shares, 10) == transfers[:1]
    many = [Place(crowd.c, (1, 0)) for _ in range(100)]
    assert len(eviction.choose(crowd.b, many, crowd.shares, 10)) == 32


def test_of_many_connections_the_oldest_are_looked_at() -> None:
    crowd = Crowd()
    busy = [Place(crowd.a, None) for _ in range(10)]
    many = [Place(crowd.a, (1, 0)) for _ in range(1000)]
    assert eviction.choose(crowd.b, [*busy, *many], crowd.shares, 10) == many[:32]
    assert sum(place.looks for place in many) == 32


def test_an_idle_connection_is_found_behind_any_number_of_transfers() -> None:
    crowd = Crowd()
    transfers = [Place(crowd.a, (2, 1.0)) for _ in range(1000)]
    idle, half = [Place(crowd.a) for _ in range(40)], [Place(crowd.a, (1, 0)) for _ in range(10)]
    assert eviction.choose(crowd.b, [*transfers, *half, *idle], crowd.shares, 10) == [*idle[:22], *half]
    slowest = Place(crowd.a, (2, 0.5))
    assert crowd.choose(crowd.b, *transfers, slowest) is slowest


def test_connections_to_other_workers_take_no_place_of_this_one() -> None:
    crowd = Crowd()
    for _ in range(100):
        crowd.elsewhere.account("a").add(Field.CONNECTIONS, 1)
    places = [Place(crowd.a), *(Place(crowd.b) for _ in range(4))]
    assert crowd.choose(crowd.a, *places) in places[1:]


def test_without_a_share_nobody_loses_a_connection() -> None:
    crowd = Crowd()
    crowd.shares = Shares(Ledger(rows=1).open(0), {Field.CONNECTIONS: 0})
    assert crowd.choose(crowd.b, *(Place(crowd.a) for _ in range(10))) is None


# --- Connection throttle ------------------------------------------------------------------------------------


def test_no_connection_is_queued_while_refused_ones_use_up_the_limit() -> None:
    async def test() -> None:
        crowd = Crowd()
        throttle = ConnectionThrottle(crowd.shares, 2, refused := {1, 2})
        crowd.a.add(Field.CONNECTIONS, 1)
        assert not await throttle.wait(crowd.a)
        refused.pop()
        async with asyncio.timeout(DEADLINE_S):
            assert await throttle.wait(crowd.a)

    asyncio.run(test())


def test_where_few_connections_may_be_queued_each_client_keeps_the_one_that_it_has() -> None:
    async def test() -> None:
        crowd = Crowd()
        throttle = ConnectionThrottle(crowd.shares, 2, ())
        queued = []
        for account in (crowd.a, crowd.b):
            account.add(Field.CONNECTIONS, 1)
            queued.append(asyncio.ensure_future(throttle.wait(account)))
        await asyncio.sleep(0)  # they have begun
        crowd.c.add(Field.CONNECTIONS, 1)
        async with asyncio.timeout(DEADLINE_S):
            assert not await throttle.wait(crowd.c)
            assert await asyncio.gather(*queued) == [True, True]

    asyncio.run(test())

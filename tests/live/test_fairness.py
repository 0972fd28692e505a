"""A client that floods the service does not stand in front of another one."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
from support.live_server import DEADLINE_S, LiveServer

from benchmarks.harness.waiting import until

GREEDY, POLITE = "127.0.0.66", "127.0.0.2"

#: How many requests the flood has waiting, and how many the other client sends, one after the other.
FLOOD, FEW = 24, 6

WORKERS = 2

#: How many requests of the flood may be in front of another client's: one in each engine, of which each
#: worker may have two, and those that wait in the same lane, two for each engine that requests have.
IN_ENGINES, IN_LANE = 2 * WORKERS, 2 * WORKERS


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def client_at(address: str, stack: ExitStack) -> httpx.Client:
    """Return a client at an address of its own; the kernel has a whole network of them."""
    transport = httpx.HTTPTransport(local_address=address)
    return stack.enter_context(httpx.Client(transport=transport, timeout=DEADLINE_S))


def flood(server: LiveServer, image: bytes, stack: ExitStack, total: int) -> None:
    """Send expensive requests, each on a connection of its own, and wait until the last is in the queue.

    Args:
        total: how many the flood will have sent then.
    """
    head = b"POST /flip?format=avif HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(image)
    for _ in range(FLOOD):
        connection = socket.create_connection(("127.0.0.1", server.port), DEADLINE_S, (GREEDY, 0))
        stack.enter_context(connection).sendall(head + image)

    def has_come() -> bool:
        return served(server).count(GREEDY) + sum(each["in_flight"] for each in server.workers()) >= total

    assert until(has_come, DEADLINE_S)


def served(server: LiveServer) -> list[str]:
    """Return whose images were answered, in their order."""
    return [
        event["client"] for event in server.events if event["event"] == "request" and event["path"] == "/flip"
    ]


@pytest.mark.parametrize("jobs", ["off", "embedded"])
def test_a_client_is_served_before_the_queue_of_a_flood(stack: ExitStack, quarter: bytes, jobs: str) -> None:
    environ = {"WEB_CONCURRENCY": str(WORKERS), "FLIP_MAX_WAIT_S": "600", "FLIP_JOBS": jobs}
    server = stack.enter_context(LiveServer(environ=environ))
    polite = client_at(POLITE, stack)
    flood(server, quarter, stack, FLOOD)
    before = []
    for number in range(FEW):
        before.append(served(server).count(GREEDY))
        answer = polite.post(f"{server.url}/flip", content=quarter)
        assert answer.status_code == 200
        if number == 0:  # from now on its tasks yield
            flood(server, quarter, stack, 2 * FLOOD)
            server.wait_for("engine_online", role="background")
        engines = {worker["engine_pid"] for worker in server.workers()}
        assert int(answer.headers["X-Engine-PID"]) in engines
    server.wait_for("request", client=POLITE, count=FEW)
    order = served(server)
    answers = [at for at, client in enumerate(order) if client == POLITE]
    in_front = [order[:at].count(GREEDY) - had for at, had in zip(answers, before, strict=True)]
    assert in_front[0] <= IN_LANE + IN_ENGINES
    assert max(in_front[1:]) <= IN_ENGINES


def test_a_client_that_is_alone_does_not_yield(stack: ExitStack, quarter: bytes) -> None:
    server = stack.enter_context(LiveServer(environ={"WEB_CONCURRENCY": str(WORKERS)}))
    clients = [client_at(GREEDY, stack) for _ in range(12)]

    def flip(client: httpx.Client) -> set[int]:
        return {client.post(f"{server.url}/flip", content=quarter).status_code for _ in range(5)}

    with ThreadPoolExecutor(len(clients)) as threads:
        assert set.union(*threads.map(flip, clients)) == {200}
    online = [event for event in server.events if event["event"] == "engine_online"]
    assert {event["role"] for event in online} == {"interactive"}


def test_when_connections_run_out_a_newcomer_gets_one_of_the_greediest(
    stack: ExitStack, quarter: bytes
) -> None:
    environ = {"WEB_CONCURRENCY": "1"}
    server = stack.enter_context(LiveServer("--worker-connections", "20", environ=environ))
    for _ in range(20):
        assert client_at(GREEDY, stack).get(f"{server.url}/healthz").status_code == 200
    assert client_at(POLITE, stack).post(f"{server.url}/flip", content=quarter).status_code == 200
    server.wait_for("connections_evicted", client=GREEDY)

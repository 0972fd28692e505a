"""What one image, one client and all of them together may cost."""

import hashlib
import json
import os
import random
import re
import resource
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from io import BytesIO
from pathlib import Path

import httpx
import pytest
from PIL import Image
from support.live_server import DEADLINE_S, ROOT, LiveServer

from benchmarks.harness.waiting import until
from server.cluster.liveness import read_state
from server.errors import ServiceUnavailable

SLOW = {"format": "avif"}  # takes seconds for the sample image

SABOTAGE = f"{ROOT / 'benchmarks' / 'harness' / 'sabotage'}:{ROOT}"


def flip(server: LiveServer, image: bytes = b"", **query: str) -> httpx.Response:
    return httpx.post(f"{server.url}/flip", params=query, content=image, timeout=DEADLINE_S)


def flip_by_another(server: LiveServer, than: int) -> httpx.Response:
    """The kernel chooses who answers: often the same worker many times in a row."""
    wait_until_held(server, 0)  # what a worker has just answered would count for as long as it is stopped
    os.kill(than, signal.SIGSTOP)
    try:
        return flip(server, **SLOW)
    finally:
        os.kill(than, signal.SIGCONT)


def kind(answer: httpx.Response) -> str:
    problem: str = answer.json()["type"]
    return problem.rpartition(":")[2]


def connect(server: LiveServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), DEADLINE_S)


def read_to_the_end(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def test_an_engine_retires_and_no_client_notices() -> None:
    with LiveServer(environ={"WEB_CONCURRENCY": "1", "FLIP_ENGINE_MAX_TASKS": "3"}) as server:
        answers = [flip(server) for _ in range(10)]
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.headers["X-Engine-PID"] for answer in answers}) == 4
        server.wait_for("engine_retired", tasks=3, count=3)
        assert server.workers()[0]["engine_deaths"] == 0


def test_what_does_not_fit_into_memory_is_answered_503_and_breaks_nothing(quarter: bytes) -> None:
    """A limit on the size of files stands for a kernel that has no memory left for them."""

    def ask(server: LiveServer, **query: str) -> tuple[int, str]:
        answer = flip(server, quarter, **query)
        return answer.status_code, "" if answer.status_code == 200 else kind(answer)

    def limit(pid: int, most_bytes: int | None) -> None:
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if most_bytes is None else most_bytes, hard))

    with LiveServer(environ={"WEB_CONCURRENCY": "1"}) as server:
        (before,) = server.workers()
        limit(before["pid"], len(quarter) // 2)  # reached in the middle of the upload
        assert ask(server) == (503, "service-unavailable")
        limit(before["pid"], None)
        limit(before["engine_pid"], 10_000)  # reached in the middle of the result
        for form in ("jpeg", "png", "webp", "gif", "tiff", "bmp", "avif"):
            assert (form, *ask(server, format=form, path="pixels")) == (form, 503, "service-unavailable")
        assert ask(server, path="lossless") == (503, "service-unavailable")
        limit(before["engine_pid"], None)
        assert ask(server) == (200, "")
        (after,) = server.workers()
        lasting = ("pid", "engine_pid", "engine_deaths")
        assert [after[name] for name in lasting] == [before[name] for name in lasting]


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    with BytesIO() as file:
        image.save(file, form, **options)
        return file.getvalue()


def test_a_result_that_is_too_large_is_refused_in_every_format_and_breaks_nothing() -> None:
    """JPEG and BMP are written to the file by C; the kernel ends it there."""
    size = (640, 400)
    noise = Image.frombytes("RGB", size, random.Random(1).randbytes(3 * size[0] * size[1]))
    flat, jpeg = encoded(Image.new("RGB", size), "PNG"), encoded(noise, "JPEG", quality=95)
    assert len(jpeg) > 100_000
    with LiveServer(environ={"WEB_CONCURRENCY": "1", "FLIP_MAX_RESULT_BYTES": "100000"}) as server:
        (before,) = server.workers()
        for form in ("jpeg", "png", "webp", "gif", "tiff", "bmp", "avif"):
            answer = flip(server, encoded(noise, "PNG"), format=form, quality="100", effort="low")
            assert (form, answer.status_code, kind(answer)) == (form, 422, "result-too-large")
        for path in ("lossless", "pixels"):
            answer = flip(server, jpeg, path=path)
            assert (path, answer.status_code, kind(answer)) == (path, 422, "result-too-large")
        assert kind(flip(server, flat, format="bmp")) == "result-too-large"
        assert flip(server, flat).status_code == 200
        (after,) = server.workers()
        assert (after["engine_pid"], after["engine_deaths"]) == (before["engine_pid"], 0)


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveServer, Path]]:
    """Two engines that are ended after half a second, and a place for what they died of."""
    quarantine_dir = tmp_path_factory.mktemp("quarantine")
    environ = {
        "WEB_CONCURRENCY": "2",
        "FLIP_ENGINE_TIMEOUT_S": "0.5",
        "FLIP_HUNG_AFTER_S": "0",  # workers are stopped on purpose
        "FLIP_QUARANTINE_DIR": str(quarantine_dir),
    }
    with LiveServer(environ=environ) as server:
        yield server, quarantine_dir


def test_an_image_that_takes_too_long_is_given_up_and_then_quarantined(
    impatient: tuple[LiveServer, Path], landscape: Path
) -> None:
    server, quarantine_dir = impatient
    before = len(server.events)
    for deaths in (1, 2):
        with ThreadPoolExecutor(1) as threads:
            slow = threads.submit(flip, server, **SLOW)
            while not slow.done():  # others go well meanwhile, also while the engine is replaced
                other = flip(server)
                assert other.status_code == 200, other.text
        answer = slow.result()
        assert (answer.status_code, kind(answer)) == (422, "too-much-work")
        server.wait_for("engine_died", after=before, signal="SIGALRM", count=deaths)
        server.wait_for("engine_online", after=before, count=deaths)
    # By now the other worker refuses it, too.
    pids = [worker["pid"] for worker in server.workers()]
    answers = [flip_by_another(server, than=pid) for pid in pids]
    found = [(answer.status_code, kind(answer)) for answer in answers]
    assert found == [(422, "poison-image")] * 2, [answer.text for answer in answers]
    assert [int(answer.headers["X-Worker-PID"]) for answer in answers] == pids[::-1]
    died = [event for event in server.events[before:] if event["event"] == "engine_died"]
    assert len(died) == 2
    digest = hashlib.sha256(landscape.read_bytes()).hexdigest()
    server.wait_for("poison_image_quarantined", digest=digest, operation="flip", signal="SIGALRM", engines=2)
    (file,) = quarantine_dir.iterdir()
    assert file.name == f"{digest}.flip"
    assert file.read_bytes() == landscape.read_bytes()
    # What one recipe did refuses no other.
    assert flip(server).status_code == 200
    other = flip(server, **SLOW, effort="low")
    assert other.status_code == 200 or kind(other) == "too-much-work"


@pytest.fixture(scope="module")
def little_memory() -> Iterator[LiveServer]:
    environ = {
        "WEB_CONCURRENCY": "1",
        "FLIP_ENGINE_MEMORY_BYTES": str(256 * 2**20),
        "FLIP_MAX_BODY_BYTES": str(2**28),
    }
    with LiveServer(environ=environ) as server:
        yield server


@pytest.mark.parametrize("side", [5000, 9000])  # too large once decoded; too large as sent
def test_an_image_that_needs_too_much_memory_is_refused_and_the_engine_retires(
    little_memory: LiveServer, side: int
) -> None:
    before = len(little_memory.events)
    answer = flip(little_memory, b"P6 %d %d 255\n" % (side, side) + bytes(side * side * 3))
    assert (answer.status_code, kind(answer)) == (422, "too-many-pixels")
    assert flip(little_memory).status_code == 200
    little_memory.wait_for("engine_retired", after=before)


@pytest.mark.parametrize("form", ["avif", "webp", "gif"])
def test_an_image_that_needs_too_much_memory_to_be_encoded_is_refused_and_the_engine_retires(
    little_memory: LiveServer, form: str
) -> None:
    before = len(little_memory.events)
    noise = b"P6 3500 3500 255\n" + random.Random(1).randbytes(3500 * 3500 * 3)
    answer = flip(little_memory, noise, format=form, effort="low")
    assert (answer.status_code, kind(answer)) == (422, "too-many-pixels")
    assert flip(little_memory).status_code == 200
    little_memory.wait_for("engine_retired", after=before)


def test_an_engine_is_the_first_to_go_when_memory_runs_out(server: LiveServer) -> None:
    def score(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    for worker in server.workers():
        assert score(worker["engine_pid"]) > score(worker["pid"])


def test_a_request_that_would_wait_too_long_is_shed_with_retry_after(quarter: bytes) -> None:
    environ = {"WEB_CONCURRENCY": "1", "FLIP_MAX_WAIT_S": "0.5"}
    with LiveServer(environ=environ) as server, ThreadPoolExecutor(12) as threads:
        asked = [threads.submit(flip, server, quarter, **SLOW) for _ in range(12)]
        answers = [each.result() for each in asked]
        assert {answer.status_code for answer in answers} == {200, 503}
        refused = [answer for answer in answers if answer.status_code == 503]
        assert {kind(answer) for answer in refused} == {"service-unavailable"}
        assert min(int(answer.headers["Retry-After"]) for answer in refused) >= 1


@pytest.fixture(scope="module")
def narrow() -> Iterator[LiveServer]:
    """One worker with room for one image, which keeps idle connections for a second."""
    environ = {
        "WEB_CONCURRENCY": "1",
        "FLIP_MAX_BODY_BYTES": "300000",
        "FLIP_MAX_BYTES_IN_FLIGHT": "300000",
    }
    with LiveServer("--keep-alive", "1", environ=environ) as server:
        yield server


def wait_until_held(server: LiveServer, held_bytes: int) -> None:
    line = f"flip_held_bytes {held_bytes}.0"
    assert until(lambda: line in httpx.get(f"{server.url}/metrics").text, DEADLINE_S)


def test_images_of_unknown_length_are_bounded_together(narrow: LiveServer) -> None:
    wait_until_held(narrow, 0)
    with connect(narrow) as first:
        first.sendall(
            b"POST /flip HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n30d40\r\n" + bytes(200_000)
        )
        wait_until_held(narrow, 200_000)
        answer = httpx.post(
            f"{narrow.url}/flip", content=(bytes(50_000) for _ in range(4)), timeout=DEADLINE_S
        )
        assert (answer.status_code, kind(answer)) == (503, "service-unavailable")


def test_a_shed_keep_alive_connection_stays_open_past_retry_after(narrow: LiveServer) -> None:
    wait_until_held(narrow, 0)
    with ExitStack() as held:
        greedy, refused, idle = (held.enter_context(connect(narrow)) for _ in range(3))
        greedy.sendall(b"POST /flip HTTP/1.1\r\nHost: x\r\nContent-Length: 299990\r\n\r\n" + bytes(200_000))
        wait_until_held(narrow, 299_990)
        refused.sendall(b"POST /flip HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n" + bytes(20))
        head = refused.recv(4096)
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in head
        for connection in (idle, refused):
            # One that was told nothing is closed sooner, although it was used later.
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
            if connection is idle:
                assert connection.recv(4096) == b""


def test_stalled_uploads_do_not_starve_admission(landscape: Path) -> None:
    image = landscape.read_bytes()
    environ = {"WEB_CONCURRENCY": "1", "FLIP_SLOW_AFTER_S": "600", "FLIP_MAX_BYTES_IN_FLIGHT": str(64 << 20)}
    with LiveServer(environ=environ) as server, ExitStack() as held:
        head = b"POST /flip HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        first, second = (held.enter_context(connect(server)) for _ in range(2))
        first.sendall(head % len(image) + image[:1])
        second.sendall(head % ((64 << 20) - len(image)))  # there is no room left
        assert until(lambda: httpx.post(f"{server.url}/flip", content=image).status_code == 200, DEADLINE_S)
        # A stalled client that resumes is served, with everything that it sends.
        first.sendall(image[1:])
        with first.makefile("rb") as answer:
            assert answer.readline().startswith(b"HTTP/1.1 200 ")


def test_one_connection_too_many_is_answered_503() -> None:
    with LiveServer("--worker-connections", "3", environ={"WEB_CONCURRENCY": "1"}) as server:
        with ExitStack() as held:
            for _ in range(3):
                connection = held.enter_context(connect(server))
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
            with connect(server) as fourth, fourth.makefile("rb") as answer:
                head, _, problem = answer.read().partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1" in head
            assert json.loads(problem)["title"] == ServiceUnavailable.title
            assert b"too many connections" in problem
        assert until(lambda: server.workers()[0]["requests"] >= 5, DEADLINE_S)
        assert flip(server).status_code == 200


def test_connections_that_were_refused_take_no_place() -> None:
    request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    refused_clients = ExitStack()  # clients that are refused and do not hang up
    with LiveServer("--worker-connections", "3", environ={"WEB_CONCURRENCY": "1"}) as server, refused_clients:
        with ExitStack() as held:
            for _ in range(3):
                connection = held.enter_context(connect(server))
                connection.sendall(request)
                assert connection.recv(13) == b"HTTP/1.1 200 "
            for _ in range(3):
                assert refused_clients.enter_context(connect(server)).recv(13) == b"HTTP/1.1 503 "
        answer = b""
        tries = 0
        while answer != b"HTTP/1.1 200 ":
            tries += 1
            assert tries < 1000
            connection = refused_clients.enter_context(connect(server))
            connection.sendall(request)
            answer = connection.recv(13)


def test_headers_that_do_not_come_are_not_waited_for() -> None:
    environ = {"WEB_CONCURRENCY": "1", "FLIP_HEADERS_TIMEOUT_S": "0.5"}
    with LiveServer(environ=environ) as server, connect(server) as silent, connect(server) as slow:
        slow.sendall(b"POST /flip HTTP/1.1\r\nHost:")
        with slow.makefile("rb") as answer:
            assert answer.read().startswith(b"HTTP/1.1 408 ")
        assert silent.recv(1) == b""
        server.wait_for("slow_client_disconnected", stage="headers", count=2)


@pytest.fixture(scope="module")
def strict() -> Iterator[LiveServer]:
    environ = {"WEB_CONCURRENCY": "1", "FLIP_SLOW_AFTER_S": "1", "FLIP_MIN_BYTES_PER_S": "1000000"}
    with LiveServer(environ=environ) as server:
        yield server


def test_a_slow_upload_is_answered_408(strict: LiveServer, landscape: Path) -> None:
    with connect(strict) as connection, connection.makefile("rb") as answer:
        connection.sendall(b"POST /flip HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n")
        connection.sendall(landscape.read_bytes()[:400_000])
        head, _, problem = answer.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"upload-too-slow" in problem
    assert strict.workers()[0]["in_flight"] == 0


def test_a_slow_upload_that_goes_on_after_its_answer_is_no_fault_of_ours(strict: LiveServer) -> None:
    before = len(strict.events)
    answer = b""
    with connect(strict) as connection:
        connection.sendall(b"POST /flip HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n")
        connection.sendall(bytes(300_000))
        connection.settimeout(0.01)
        while not answer:
            connection.sendall(bytes(1000))
            with suppress(TimeoutError):
                answer = connection.recv(65536)
        connection.settimeout(DEADLINE_S)
        connection.sendall(bytes(1000))
        assert strict.workers()[0]["in_flight"] == 0  # by now it has been read
        connection.sendall(bytes(1000))
        read_to_the_end(connection)
    assert answer.startswith(b"HTTP/1.1 408 ")
    strict.wait_for("request", after=before, status=408)
    assert [event for event in strict.events[before:] if event["level"] == "error"] == []


def test_a_slow_download_is_cut_off(strict: LiveServer, landscape: Path) -> None:
    image = landscape.read_bytes()
    before = len(strict.events)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        connection.settimeout(DEADLINE_S)
        connection.connect(("127.0.0.1", strict.port))
        request = b"POST /flip?format=png HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
        connection.sendall(request % len(image) + image)
        assert connection.recv(15) == b"HTTP/1.1 200 OK"
        strict.wait_for("slow_client_disconnected", after=before, stage="download")
        with pytest.raises(ConnectionResetError):
            read_to_the_end(connection)


def slow_reader(server: LiveServer, target: str, image: bytes) -> socket.socket:
    """Ask for a result, and read none of it."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    connection.settimeout(DEADLINE_S)
    connection.connect(("127.0.0.1", server.port))
    request = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    connection.sendall(request % (target.encode(), len(image)) + image)
    return connection


def held_bytes(server: LiveServer) -> int:
    text = httpx.get(f"{server.url}/metrics").text
    return int(float(re.findall(r"^flip_held_bytes (\S+)$", text, flags=re.MULTILINE)[0]))


def test_slow_readers_of_results_that_explode_starve_nobody(quarter: bytes) -> None:
    with BytesIO() as file:
        Image.new("RGB", (2500, 2500)).save(file, "WEBP", lossless=True)
        image = file.getvalue()  # some hundred bytes; as a BMP, 19 MB
    limit_bytes = 64 << 20
    environ = {
        "WEB_CONCURRENCY": "1",
        "FLIP_MAX_BYTES_IN_FLIGHT": str(limit_bytes),
        "FLIP_MAX_BODY_BYTES": str(8 << 20),
        "FLIP_MAX_WAIT_S": "2",
    }
    with LiveServer(environ=environ) as server, ExitStack() as held:
        assert flip(server, quarter).status_code == 200
        readers = [held.enter_context(slow_reader(server, "/flip?format=bmp", image)) for _ in range(4)]
        statuses = sorted(reader.recv(12)[9:] for reader in readers)
        assert statuses == [b"200", b"200", b"503", b"503"]  # each leaves room for another one
        assert held_bytes(server) <= limit_bytes
        for _ in range(5):
            assert flip(server, quarter).status_code == 200
            assert held_bytes(server) <= limit_bytes


def test_announced_uploads_cost_nobody_anything(quarter: bytes) -> None:
    environ = {"WEB_CONCURRENCY": "1", "FLIP_MAX_BYTES_IN_FLIGHT": str(64 << 20)}
    with LiveServer(environ=environ) as server, ExitStack() as held:
        for _ in range(10):
            connection = held.enter_context(connect(server))
            connection.sendall(b"POST /flip HTTP/1.1\r\nHost: x\r\nContent-Length: 67108864\r\n\r\n")
        for _ in range(10):
            answer = flip(server, quarter)
            assert (answer.status_code, answer.headers.get("Retry-After")) == (200, None)
        wait_until_held(server, 0)


def test_a_download_that_outlives_its_total_time_is_cut_and_its_bytes_come_back(landscape: Path) -> None:
    environ = {
        "WEB_CONCURRENCY": "1",
        "FLIP_DOWNLOAD_TIMEOUT_S": "2",
        "FLIP_SLOW_AFTER_S": "600",
        "FLIP_MIN_BYTES_PER_S": "1",
    }
    with (
        LiveServer(environ=environ) as server,
        slow_reader(server, "/flip?format=bmp", landscape.read_bytes()) as connection,
    ):
        assert connection.recv(12) == b"HTTP/1.1 200"
        assert held_bytes(server) > 1 << 20
        server.wait_for("slow_client_disconnected", stage="download")
        wait_until_held(server, 0)


def test_a_client_that_waits_for_its_engine_is_no_slow_client(strict: LiveServer) -> None:
    """A client whose image takes longer than the limits on transfers is no slow client."""
    assert flip(strict, **SLOW).status_code == 200


def test_what_a_client_left_behind_is_not_worked_on(quarter: bytes) -> None:
    with LiveServer("--log-level", "debug", environ={"WEB_CONCURRENCY": "1"}) as server:
        with ThreadPoolExecutor(1) as threads:
            long_one = threads.submit(flip, server, quarter, **SLOW)
            assert until(lambda: server.workers()[0]["in_flight"], DEADLINE_S)
            with ExitStack() as leaving:
                for _ in range(5):
                    client = leaving.enter_context(connect(server))
                    client.sendall(b"POST /flip HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
                while server.workers()[0]["in_flight"] < 6:
                    assert not long_one.done()
            server.wait_for("request", status=499, count=5)
            assert long_one.result().status_code == 200
        assert flip(server).status_code == 200
        assert server.workers()[0]["tasks"] == 2


def ticks_of(pid: int) -> int:
    """Return the CPU time that a process has used, in ticks of the kernel's clock."""
    state = read_state(pid)
    assert state
    return state[1]


def test_a_client_that_leaves_counts_until_its_engine_has_ended(quarter: bytes) -> None:
    with LiveServer("--log-level", "debug", environ={"WEB_CONCURRENCY": "1"}) as server:
        engine = server.workers()[0]["engine_pid"]
        ticks = ticks_of(engine)
        with connect(server) as client:
            head = b"POST /flip?format=avif HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(quarter)
            client.sendall(head + quarter)
            while ticks_of(engine) < ticks + 5:
                pass  # bounded by the test's own time limit
        server.wait_for("request", status=499)
        assert [event["engine"] for event in server.events if event["event"] == "task_done"] == [engine]
        assert server.workers()[0]["in_flight"] == 0


def test_a_stopped_engine_is_no_reason_to_lose_a_request(quarter: bytes) -> None:
    """Two engines crash over a harmless image: the second one was killed on purpose."""
    with LiveServer(environ={"WEB_CONCURRENCY": "2"}) as server, ThreadPoolExecutor(1) as threads:
        answer = threads.submit(flip, server, quarter, **SLOW)
        assert until(lambda: any(worker["in_flight"] for worker in server.workers()), DEADLINE_S)
        victim, other = server.workers()
        os.kill(victim["engine_pid"], signal.SIGKILL)
        os.kill(other["engine_pid"], signal.SIGKILL)
        assert answer.result().status_code == 200


def test_a_stream_of_poison_images_triggers_no_restart_backoff() -> None:
    """Each of them is new, so that none is refused unseen, and kills an engine at its first task."""
    with LiveServer(environ={"WEB_CONCURRENCY": "1", "PYTHONPATH": SABOTAGE}) as server:
        for number in range(3):
            poison = b"sabotage:segfault %d" % number
            answer = httpx.post(f"{server.url}/flip", content=poison, timeout=DEADLINE_S)
            assert kind(answer) == "poison-image"
        delays = [event["restart_in_s"] for event in server.events if event["event"] == "engine_died"]
        assert set(delays) == {0.0}
        assert flip(server).status_code == 200

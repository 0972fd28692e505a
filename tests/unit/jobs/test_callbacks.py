"""A callback reaches the host that was meant, signed, and no other host in any way."""

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from structlog.testing import capture_logs
from support.asgi import run
from support.operations import OPERATIONS
from support.store import StoreServer, eventually, stores

from server.errors import BadParameter, CallbackFailed
from server.jobs.blobs import Directory
from server.jobs.callbacks import Callbacks, is_public
from server.jobs.consumer import Consumer
from server.jobs.model import Claim, Facts, JobId, JobState, NewJob, Schedule, new_id

KEY = bytes(range(32))
SECRET = f"whsec_{base64.b64encode(KEY).decode()}"
OK = b"HTTP/1.1 204 No Content\r\n\r\n"
ERROR = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"


class Sent(NamedTuple):
    """What a host was sent."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Host:
    """A host of callbacks on loopback.

    Attributes:
        answers: what it says, one after the other; the last one from then on.
        sent: what was posted to it.
        connections: how many were made.
    """

    answers: list[bytes]
    port: int = 0
    sent: list[Sent] = field(default_factory=list)
    connections: int = 0
    open: dict[asyncio.Task[None], asyncio.StreamWriter] = field(default_factory=dict)

    async def connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task
        self.open[task] = writer
        await self.serve(reader, writer)

    async def close(self) -> None:
        for writer in self.open.values():
            writer.close()
        await asyncio.gather(*self.open, return_exceptions=True)
        for writer in self.open.values():
            with suppress(OSError):
                await writer.wait_closed()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        line, *lines = head.strip().split("\r\n")
        headers = {name.lower(): value for name, value in (each.split(": ", 1) for each in lines)}
        self.sent.append(Sent(line, headers, await reader.readexactly(int(headers["content-length"]))))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        writer.write(answer)
        await reader.read()  # until it is closed


@asynccontextmanager
async def host(
    *answers: bytes, kind: type[Host] = Host, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Host]:
    it = kind(list(answers))
    async with await asyncio.start_server(it.connect, "127.0.0.1", 0, ssl=tls) as server:
        it.port = server.sockets[0].getsockname()[1]
        try:
            yield it
        finally:
            await it.close()


def claim_of(url: str, *, is_batch: bool = True) -> Claim:
    counts = {"total": 5, "completed": 3, "failed": 1, "cancelled": 1}
    parameters = {"url": url, "group": "ab" * 16, "is_batch": is_batch, "ended_ms": 1.7e12, "counts": counts}
    return Claim(JobId("cd" * 20), 1, 1, Facts("callback", 1, parameters, 10))


def on_loopback(hosts: tuple[str, ...] = ("localhost",), timeout_s: float = 10) -> Callbacks:
    return Callbacks(hosts, SECRET, is_public_only=False, timeout_s=timeout_s)


async def failure_of(callbacks: Callbacks, url: str) -> str:
    with pytest.raises(CallbackFailed) as failed:
        await callbacks.post(claim_of(url))
    return failed.value.detail


@pytest.mark.parametrize(
    ("is_batch", "kind", "href"), [(True, "batch", "/batches/"), (False, "job", "/jobs/")]
)
def test_the_end_is_told(is_batch: bool, kind: str, href: str) -> None:
    async def test() -> None:
        async with host(OK) as it:
            await on_loopback().post(claim_of(f"http://localhost:{it.port}/a%20b?c=d", is_batch=is_batch))
            (sent,) = it.sent
            assert sent.line == "POST /a%20b?c=d HTTP/1.1"
            assert sent.headers["host"] == f"localhost:{it.port}"
            assert sent.headers["content-type"] == "application/json"
            assert json.loads(sent.body) == {
                "type": f"{kind}.ended",
                "timestamp": "2023-11-14T22:13:20Z",
                "data": {
                    "id": "ab" * 16,
                    "href": href + "ab" * 16,
                    "total": 5,
                    "completed": 3,
                    "failed": 1,
                    "cancelled": 1,
                },
            }

    run(test())


@pytest.mark.parametrize(
    ("secret", "key"), [(SECRET, KEY), ("any text of some length", b"any text of some length")]
)
def test_the_signature_is_that_of_standard_webhooks(secret: str, key: bytes) -> None:
    async def test() -> None:
        async with host(OK) as it:
            callbacks = Callbacks(("localhost",), secret, is_public_only=False)
            await callbacks.post(claim_of(f"http://localhost:{it.port}/"))
            (sent,) = it.sent
            # Standard Webhooks 1.0, "Signature scheme": HMAC-SHA256 (RFC 2104) of id.timestamp.payload.
            moment = sent.headers["webhook-timestamp"]
            text = b".".join([sent.headers["webhook-id"].encode(), moment.encode(), sent.body])
            block = key.ljust(64, b"\0")
            inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in block) + text).digest()
            outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in block) + inner).digest()
            assert sent.headers["webhook-signature"] == f"v1,{base64.b64encode(outer).decode()}"
            assert outer == hmac.digest(key, text, "sha256")
            assert sent.headers["webhook-id"] == "cd" * 20

    run(test())


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "/done",
            "localhost/done",
            "ftp://localhost/",
            "file:///etc/passwd",
            "http://",
            "https:///done",
        ),
        *(
            "http://user@localhost/",
            "http://user:word@localhost/",
            "http://localhost:0/",
            "http://localhost:99999/",
        ),
        *(
            "http://elsewhere/",
            "http://localhost.elsewhere/",
            "http://elsewhere#@localhost/",
            "http://127.0.0.1/",
        ),
        *("http://localhost\\@elsewhere/", "http://elsewhere\\@localhost/", "http://localhost:80:80/"),
        *(
            "http://localhost%2eelsewhere/",
            "http://localhost./",
            "http://local\thost/",
            "http://localhost\r\nA: b/",
        ),
        "http://localhost/" + "a" * 2000,
    ],
)
def test_a_url_that_is_none_or_of_another_host_is_not_accepted(url: str) -> None:
    with pytest.raises(BadParameter) as refused:
        on_loopback().accept(url)
    assert "`callback`" in refused.value.detail


@pytest.mark.parametrize(
    "url", ["http://localhost/", "https://localhost:8443/a?b=c", "https://LOCALHOST/done", "http://[::1]/"]
)
def test_a_url_of_a_host_on_the_list_is_accepted(url: str) -> None:
    callback = on_loopback(("localhost", "::1")).accept(url)
    assert (callback.url, callback.attempts) == (url, 10)


def test_a_host_that_was_taken_off_the_list_is_not_posted_to() -> None:
    async def test() -> None:
        async with host(OK) as it:
            assert "allowed" in await failure_of(on_loopback(("other",)), f"http://localhost:{it.port}/")
            assert it.connections == 0

    run(test())


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),  # noqa: S104
        *(
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "192.0.2.1",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "ff02::1",
        ),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1", "fec0::1"),
        *("2002:7f00:1::", "2001:0:1::1", "2001:db8::1", "fe80::1%lo"),
    ],
)
def test_an_address_that_is_not_public_is_none(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8"])
def test_a_public_address_is_public(address: str) -> None:
    assert is_public(address)


def resolve_to(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Let names have these addresses, one answer after the other; returns the list of names asked for."""
    asked: list[str] = []
    left = list(answers)

    def getaddrinfo(name: str, port: int, **_: object) -> list[Any]:
        asked.append(name)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, port)) for each in left.pop(0)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::ffff:127.0.0.1"]])
def test_a_name_with_an_address_that_is_not_public_is_not_connected_to(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    async def test() -> None:
        async with host(OK) as it:
            resolve_to(monkeypatch, addresses)
            callbacks = Callbacks(("example.com",), SECRET)
            assert "not public" in await failure_of(callbacks, f"http://example.com:{it.port}/")
            assert it.connections == 0

    run(test())


def test_the_address_that_was_checked_is_the_one_that_is_connected_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def test() -> None:
        async with host(OK) as meant, host(OK) as rebound:
            asked = resolve_to(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])
            await on_loopback(("example.com",)).post(claim_of(f"http://example.com:{meant.port}/"))
            assert asked == ["example.com"]  # a second answer is never asked for
            assert (meant.connections, rebound.connections) == (1, 0)
            assert meant.sent[0].headers["host"] == f"example.com:{meant.port}"

    run(test())


def test_each_address_of_a_host_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with host(OK) as it:
            resolve_to(monkeypatch, ["127.0.0.2", "127.0.0.1"])  # nothing listens on the first
            await on_loopback(("example.com",)).post(claim_of(f"http://example.com:{it.port}/"))
            assert it.connections == 1

    run(test())


@contextmanager
def silent(address: str, port: int) -> Iterator[None]:
    """Let connections to an address neither succeed nor be refused: its queue of them is full."""
    with socket.socket() as listener, ExitStack() as stack:
        listener.bind((address, port))
        listener.listen(0)
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex((address, port))
        yield


def test_an_address_that_does_not_answer_leaves_time_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with host(OK) as it:
            resolve_to(monkeypatch, ["127.0.0.2", "127.0.0.1"])
            with silent("127.0.0.2", it.port):
                callbacks = on_loopback(("example.com",), timeout_s=4)
                await callbacks.post(claim_of(f"http://example.com:{it.port}/"))
            assert it.connections == 1

    run(test())


def test_addresses_that_do_not_answer_are_a_host_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with host(OK) as it:
            resolve_to(monkeypatch, ["127.0.0.2", "127.0.0.2"])
            with silent("127.0.0.2", it.port):
                callbacks = on_loopback(("example.com",), timeout_s=0.3)
                assert "within 0.3 s" in await failure_of(callbacks, f"http://example.com:{it.port}/")

    run(test())


def test_a_resolver_that_hangs_leaves_the_threads_for_files(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, may_answer = threading.Semaphore(0), threading.Event()

    def getaddrinfo(*_: object, **__: object) -> list[Any]:
        asked.release()
        may_answer.wait()
        return []

    async def test() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        callbacks = on_loopback(("example.com",), timeout_s=60)
        posts = [asyncio.create_task(failure_of(callbacks, "http://example.com/")) for _ in range(2)]
        try:
            for _ in posts:
                await eventually(lambda: asked.acquire(blocking=False))
            assert await asyncio.to_thread(str, 7) == "7"
        finally:
            may_answer.set()
        assert {await post for post in posts} == {"The host has no address."}

    run(test())


def test_a_redirect_is_not_followed() -> None:
    async def test() -> None:
        async with host(OK) as other:
            location = f"http://localhost:{other.port}/".encode()
            for status in (b"302 Found", b"307 Temporary Redirect"):
                async with host(b"HTTP/1.1 %b\r\nLocation: %b\r\n\r\n" % (status, location)) as it:
                    detail = await failure_of(on_loopback(), f"http://localhost:{it.port}/")
                    assert detail == f"The host answered with status {status[:3].decode()}."
            assert other.connections == 0

    run(test())


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nA: b\r\n"])
def test_a_host_that_does_not_answer_in_time_is_left(answer: bytes) -> None:
    async def test() -> None:
        async with host(answer) as it:
            callbacks = on_loopback(timeout_s=0.3)
            assert "within 0.3 s" in await failure_of(callbacks, f"http://localhost:{it.port}/")

    run(test())


def test_a_host_that_says_a_little_again_and_again_is_left() -> None:
    class Dripping(Host):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\n")
            while not writer.is_closing():
                writer.write(b"A: b\r\n")
                await asyncio.sleep(0.05)  # each read is in time

    async def test() -> None:
        async with host(kind=Dripping) as it:
            callbacks = on_loopback(timeout_s=0.5)
            assert "within 0.5 s" in await failure_of(callbacks, f"http://localhost:{it.port}/")

    run(test())


def test_a_body_without_end_is_not_read() -> None:
    class Endless(Host):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
            try:
                while True:
                    writer.write(bytes(1 << 16))
                    await writer.drain()
            except ConnectionError:
                ended.set()

    async def test() -> None:
        async with host(kind=Endless) as it:
            await on_loopback().post(claim_of(f"http://localhost:{it.port}/"))
            await ended.wait()

    ended = asyncio.Event()
    run(test())


@pytest.mark.parametrize("answer", [b"no HTTP\x1b[31m\r\n\r\n", b"HTTP/1.1 999999 \x07\r\n\r\n"])
def test_an_answer_that_is_no_http_is_a_failure_without_control_characters(answer: bytes) -> None:
    async def test() -> None:
        async with host(answer) as it:
            detail = await failure_of(on_loopback(), f"http://localhost:{it.port}/")
            assert detail.isprintable()

    run(test())


def test_a_name_that_nobody_knows_and_a_port_where_nobody_listens_are_failures() -> None:
    async def test() -> None:
        async with host(OK) as it:
            port = it.port
        callbacks = on_loopback(("localhost", "nowhere.invalid"))
        assert "post failed" in await failure_of(callbacks, f"http://localhost:{port}/")
        assert "not known" in await failure_of(callbacks, "http://nowhere.invalid/")

    run(test())


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA of its own, and a certificate for `callbacks.test`: ca.pem, key.pem, host.pem."""
    directory = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True, timeout=60)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")  # made sooner than RSA
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=CA", "-days", "2")
    openssl("req", *new, "-keyout", "key.pem", "-out", "host.csr", "-subj", "/CN=host")
    (directory / "names").write_text("subjectAltName=DNS:callbacks.test")
    signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names")
    openssl("x509", "-req", "-in", "host.csr", "-out", "host.pem", *signing)
    return directory


@pytest.mark.parametrize(
    ("name", "is_known", "expected"),
    [
        ("callbacks.test", True, ""),
        ("other.test", True, "CERTIFICATE"),
        ("callbacks.test", False, "CERTIFICATE"),
    ],
)
def test_the_certificate_must_be_that_of_the_name(
    monkeypatch: pytest.MonkeyPatch, authority: Path, name: str, is_known: bool, expected: str
) -> None:
    names: list[str | None] = []
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(authority / "host.pem", authority / "key.pem")
    tls.sni_callback = lambda _socket, asked, _context: names.append(asked)
    if is_known:
        monkeypatch.setenv("SSL_CERT_FILE", str(authority / "ca.pem"))

    async def test() -> None:
        async with host(OK, tls=tls) as it:
            resolve_to(monkeypatch, ["127.0.0.1"])
            url, callbacks = f"https://{name}:{it.port}/", on_loopback((name,))
            if expected:
                assert expected in await failure_of(callbacks, url)
                assert it.sent == []
            else:
                await callbacks.post(claim_of(url))
                assert len(it.sent) == 1

    run(test())
    assert names == [name]


def test_a_callback_is_posted_until_it_is_accepted(server: StoreServer, tmp_path: Path) -> None:
    async def test() -> None:
        async with stores(server, "me") as (store,), host(ERROR, ERROR, OK) as it:
            nothing: Any = None
            callbacks = on_loopback()
            consumer = Consumer(
                *(store, Directory(tmp_path), nothing, nothing, OPERATIONS),
                at_once=3,
                lease_s=60,
                callbacks=callbacks,
            )
            running = asyncio.create_task(consumer.run())
            batch = new_id()
            callback = callbacks.accept(f"http://localhost:{it.port}/")
            facts = Facts("other", 1, {}, 3, callback)  # an operation that this consumer has not
            await store.submit_items(batch, facts, [NewJob(1, 0), NewJob(1, 1)], Schedule("default"))
            await store.seal(batch)
            claims, _ = await store.claim(new_id(), ["other 1"], 2)
            for claim in claims:
                await store.give_back(claim)
            await store.cancel_batch(batch)
            await eventually(lambda: len(it.sent) == 3)
            ids = {sent.headers["webhook-id"] for sent in it.sent}
            assert len(ids) == 1  # by which a receiver knows that it is the same one
            assert len({sent.body for sent in it.sent}) == 1
            assert json.loads(it.sent[0].body)["data"]["cancelled"] == 2
            id = JobId.parse(ids.pop())
            assert id is not None

            async def is_completed() -> bool:
                return (await store.job(id)).state is JobState.COMPLETED

            await eventually(is_completed)
            job = await store.job(id)
            assert (job.tries, job.result, job.error, job.queue) == (3, None, None, "callbacks")
            running.cancel()
            await asyncio.wait([running])
            assert len(it.sent) == 3

    with capture_logs() as events:
        run(test())
    assert [event["error"] for event in events if event["event"] == "callback_failed"] == [
        "The host answered with status 500."
    ] * 2


def test_hosts_that_do_not_answer_hold_no_image_up(server: StoreServer, tmp_path: Path) -> None:
    async def test() -> None:
        async with stores(server, "me") as (store,), host(b"") as it:
            nothing: Any = None
            callbacks = on_loopback(timeout_s=60)
            consumer = Consumer(
                *(store, Directory(tmp_path), nothing, nothing, OPERATIONS),
                at_once=1,
                lease_s=60,
                callbacks=callbacks,
            )
            running = asyncio.create_task(consumer.run())
            callback = callbacks.accept(f"http://localhost:{it.port}/")
            for _ in range(10):
                id = new_id()
                await store.submit(id, Facts("other", 1, {}, 1, callback), NewJob(1), Schedule("default"))
                await store.cancel_job(JobId(id))
            await eventually(lambda: it.connections == 8)
            id = new_id()
            await store.submit(id, Facts("copy", 1, {}, 1), NewJob(1), Schedule("default"))

            async def has_failed() -> bool:  # as it has no file
                return (await store.job(JobId(id))).state is JobState.FAILED

            await eventually(has_failed)
            assert it.connections == 8
            running.cancel()
            await asyncio.wait([running])

    run(test())

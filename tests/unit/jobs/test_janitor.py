"""The janitor removes what has expired and what no job knows, and nothing else."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from support.asgi import run
from support.store import StoreServer, eventually, stores

from server.errors import Expired
from server.jobs.blobs import Directory
from server.jobs.janitor import Janitor
from server.jobs.model import Facts, JobId, NewJob, Schedule, new_id
from server.jobs.store import Store

FACTS = Facts("flip", 1, {}, attempts=3)
LONG_AGO_S = 1e9


@pytest.fixture
def root(tmp_path: Path) -> Path:
    Directory(tmp_path / "blobs").prepare()
    return tmp_path / "blobs"


async def keep_file(blobs: Directory, group: str) -> None:
    with blobs.new() as file:
        await blobs.keep(file, group, "0.in")


async def submit(store: Store, blobs: Directory, *, is_cancelled: bool = True) -> str:
    group = new_id()
    await keep_file(blobs, group)
    await store.submit(group, FACTS, NewJob(1), Schedule("default"))
    if is_cancelled:
        await store.cancel_job(JobId(group))
    return group


def groups(root: Path) -> set[str]:
    return {path.name for path in root.glob("*/*")}


def age(root: Path, group: str) -> None:
    os.utime(root / group[:2] / group, (LONG_AGO_S, LONG_AGO_S))


def with_stores(
    server: StoreServer, test: Callable[[Sequence[Store]], Awaitable[None]], ttl_s: float = 0.0
) -> None:
    async def whole() -> None:
        async with stores(server, "me", "other", ttl_s=ttl_s) as opened:
            await test(opened)

    run(whole())


def test_what_has_expired_is_removed_with_its_files(server: StoreServer, root: Path) -> None:
    async def test(opened: Sequence[Store]) -> None:
        store, blobs = opened[0], Directory(root)
        ended = await submit(store, blobs)
        waiting = await submit(store, blobs, is_cancelled=False)
        await Janitor(store, blobs).make_round()
        assert groups(root) == {waiting}
        with pytest.raises(Expired):
            await store.job(JobId(ended))
        await store.job(JobId(waiting))

    with capture_logs() as events:
        with_stores(server, test)
    assert {"event": "expired", "groups": 1, "log_level": "info"} in events


def test_what_has_not_expired_stays(server: StoreServer, root: Path) -> None:
    async def test(opened: Sequence[Store]) -> None:
        store, blobs = opened[0], Directory(root)
        ended = await submit(store, blobs)
        await Janitor(store, blobs).make_round()
        assert groups(root) == {ended}

    with_stores(server, test, ttl_s=60)


def test_one_of_two_janitors_works(server: StoreServer, root: Path) -> None:
    async def test(opened: Sequence[Store]) -> None:
        blobs = Directory(root)
        first, second = (Janitor(store, blobs) for store in opened)
        await first.make_round()
        ended = await submit(opened[0], blobs)
        await second.make_round()
        assert groups(root) == {ended}
        await first.make_round()
        assert groups(root) == set()

    with_stores(server, test)


def test_a_crash_between_the_files_and_the_keys_is_made_up_for(server: StoreServer, root: Path) -> None:
    class Crash(BaseException):
        pass

    class Crashing(Directory):
        async def remove_group(self, group: str) -> None:
            await super().remove_group(group)
            raise Crash

    async def test(opened: Sequence[Store]) -> None:
        store, blobs = opened[0], Directory(root)
        ended = await submit(store, blobs)
        with pytest.raises(Crash):
            await Janitor(store, Crashing(root)).make_round()
        assert groups(root) == set()
        assert await store.has(ended)
        await Janitor(store, blobs).make_round()
        assert not await store.has(ended)

    with_stores(server, test)


def test_a_group_that_cannot_be_removed_holds_no_other_up(server: StoreServer, root: Path) -> None:
    class Stubborn(Directory):
        async def remove_group(self, group: str) -> None:
            if group == stuck:
                raise PermissionError(1, "Operation not permitted")
            await super().remove_group(group)

    stuck = ""

    async def test(opened: Sequence[Store]) -> None:
        nonlocal stuck
        store, blobs = opened[0], Stubborn(root)
        stuck = await submit(store, blobs)
        await asyncio.sleep(0.002)  # it is the first to expire
        await submit(store, blobs)
        await Janitor(store, blobs).make_round()
        assert groups(root) == {stuck}
        assert await store.has(stuck)  # to be tried again

    with capture_logs() as events:
        with_stores(server, test)
    assert [event["group"] for event in events if event["event"] == "group_not_removed"] == [stuck]


def test_old_files_without_a_job_are_removed_once_an_hour(server: StoreServer, root: Path) -> None:
    async def test(opened: Sequence[Store]) -> None:
        store, blobs = opened[0], Directory(root)
        known = await submit(store, blobs, is_cancelled=False)
        old, young, later = new_id(), new_id(), new_id()
        for group in (old, young):
            await keep_file(blobs, group)
        for group in (old, known):
            age(root, group)
        janitor = Janitor(store, blobs)
        await janitor.make_round()
        assert groups(root) == {known, young}
        await keep_file(blobs, later)
        age(root, later)
        await janitor.make_round()
        assert groups(root) == {known, young, later}

    with capture_logs() as events:
        with_stores(server, test)
    assert {"event": "orphans_removed", "groups": 1, "log_level": "info"} in events


def test_the_files_of_a_store_that_is_away_are_no_orphans(server: StoreServer, root: Path) -> None:
    async def test() -> None:
        async with stores(server, "me", grace_s=2) as (store,):
            blobs = Directory(root)
            known = await submit(store, blobs, is_cancelled=False)
            age(root, known)
            kill = partial(asyncio.to_thread, server.kill)

            class Leaving(Directory):
                async def groups(self):  # type: ignore[no-untyped-def]  # noqa: ANN202
                    await kill()
                    async for found in super().groups():
                        yield found

            running = asyncio.create_task(Janitor(store, Leaving(root)).run())
            await eventually(lambda: not store._answers.is_closed)
            await asyncio.to_thread(server.start)
            await store.wait_until_back()
            assert groups(root) == {known}
            assert not running.done()
            running.cancel()
            await asyncio.wait([running])

    run(test())

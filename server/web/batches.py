"""Batches: many images in one request, one job for each, and one counter for all."""

import asyncio
import hashlib
import json
import os
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Mapping, Sequence
from contextlib import ExitStack, aclosing, suppress
from functools import partial
from io import FileIO, RawIOBase
from typing import TypeAlias
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from falcon.asgi import Request, Response

from server.cluster.threads import run_in_thread
from server.cluster.watched import keep_running
from server.errors import (
    BadParameter,
    Expired,
    NoSuchJob,
    NotDone,
    ServiceUnavailable,
    StoreAway,
    UploadTooLarge,
)
from server.jobs.blobs import BlobGone, Blobs
from server.jobs.intake import Item, Limits, beginning_with, items, shown
from server.jobs.model import Batch, Facts, Idempotency, Job, JobId, JobState, NewJob, new_id
from server.jobs.store import Dropped, Store
from server.operations.registry import Operation
from server.web import stored
from server.web.downloads import pieces
from server.web.jobs import as_time, describe, open_result
from server.web.parameters import Query, read_start
from server.web.submissions import (
    OptionReader,
    Options,
    accept,
    digest_of,
    fingerprint,
    idempotency_key,
    refusing_when_full,
)

#: How many items are listed at once, and are asked for at once.
_PAGE = 1000

#: How many items are submitted at once.
_CHUNK = 64

#: How many chunks are submitted at once.
_AT_ONCE = 2

#: How many bytes they may have together, unless one alone has more: they may be in memory.
_CHUNK_BYTES = 32 * 2**20

#: A year that zip can express; an archive of the same results is the same.
_EPOCH = (1980, 1, 1, 0, 0, 0)

#: What makes an item the same one when a batch is sent again: a digest of its name and one of its file.
_Input: TypeAlias = tuple[str, str]


class BatchesResource:
    """`POST /batches?operation=flip`: many images in one request.

    Args:
        store: where their jobs are submitted, while the upload still runs.
        blobs: where their files go.
        options: reads how the jobs are to be carried out.
        operations: what can be done to them.
        limits: of one batch.
    """

    def __init__(
        self,
        store: Store,
        blobs: Blobs,
        options: OptionReader,
        operations: Mapping[str, Operation],
        limits: Limits,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._options = options
        self._operations = operations
        self._queries = {name: Query(operation.parameters) for name, operation in operations.items()}
        self._limits = limits
        self._dropping: set[asyncio.Task[None]] = set()

    async def on_post(self, req: Request, resp: Response) -> None:
        """Answer 202 when all of it is kept; what is refused before that leaves nothing behind."""
        options, facts = self._read(req)
        key = idempotency_key(req)
        self._store.raise_if_away()
        batch = new_id()
        try:
            try:
                kept = await self._receive(req, batch, facts, options, key)
            except (BlobGone, Dropped):
                raise ServiceUnavailable(
                    "Files of the batch were removed while it was received. Send it again."
                ) from None
        except BaseException:
            await asyncio.shield(self._drop(batch))
            raise
        if kept != batch:  # the same batch was here before
            await asyncio.shield(self._drop(batch))
        accept(resp, f"/batches/{kept}")
        resp.media = {"id": kept, "href": f"/batches/{kept}"}

    async def _receive(
        self, req: Request, batch: str, facts: Facts, options: Options, key: str | None
    ) -> str:
        """Receive all of it, and return which batch it is: another one if its key was seen before."""
        inputs: list[_Input] | None = None if key is None else []
        with refusing_when_full():
            await self._submit(req, batch, facts, options, inputs)
        idempotency = None
        if key is not None and inputs is not None:
            idempotency = Idempotency(key, fingerprint("batch", facts, options, inputs))
        return await self._store.seal(batch, idempotency)

    def _read(self, req: Request) -> tuple[Options, Facts]:
        options, rest = self._options.read(req.query_string)
        name = rest.pop("operation", None)
        if not isinstance(name, str) or name not in self._operations:
            raise BadParameter(f"The parameter `operation` must be one of {', '.join(self._operations)}.")
        operation = self._operations[name]
        parameters = self._queries[name].choose(rest)
        return options, Facts(name, operation.version, parameters, options.attempts, options.callback)

    async def _submit(
        self, req: Request, batch: str, facts: Facts, options: Options, inputs: list[_Input] | None
    ) -> None:
        """Submit the items as they come, and add to the inputs if these are wanted."""
        if (req.content_length or 0) > self._limits.bytes:
            raise UploadTooLarge(
                f"The batch is larger than {self._limits.bytes} bytes. Split it into several batches."
            )
        if (req.content_type or "").partition(";")[0].strip().lower() == stored.MEDIA_TYPE:
            upload = stored.stored_items(req.stream, self._store, self._blobs, self._limits)
        else:
            upload = items(req.content_type or "", req.stream, self._blobs.new, self._limits)
        # While one chunk goes into the store, another one goes to the disk, and a third is received.
        tasks: deque[asyncio.Task[None]] = deque()
        try:
            async with aclosing(upload) as found, aclosing(_chunks(found)) as chunks:
                async for chunk in chunks:
                    with ExitStack() as unless_submitted:
                        unless_submitted.callback(chunk.close)
                        if len(tasks) == _AT_ONCE:
                            await tasks[0]
                            tasks.popleft()
                        unless_submitted.pop_all()
                    after = tasks[-1] if tasks else None
                    task = asyncio.create_task(
                        self._submit_chunk(chunk, after, batch, facts, options, inputs)
                    )
                    task.add_done_callback(chunk.close)
                    tasks.append(task)
            for task in tasks:
                await task
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _submit_chunk(  # noqa: PLR0913, PLR0917 once
        self,
        chunk: "_Chunk",
        after: asyncio.Task[None] | None,
        batch: str,
        facts: Facts,
        options: Options,
        inputs: list[_Input] | None,
    ) -> None:
        """Submit a chunk; its files are kept while the one before is still being submitted."""
        names = {JobId(batch, job.index).input_name: file for job, file in chunk.files.items()}
        more = [] if inputs is None else await run_in_thread(_inputs_of, chunk)
        await self._blobs.keep_all(names, batch)
        if after is not None:
            await after
        if inputs is not None:
            inputs += more
        await self._store.submit_items(batch, facts, tuple(chunk.files), options.schedule)

    async def _drop(self, batch: str) -> None:
        """Delete what was kept of a batch, unless it is sealed; if the store is away, as soon as it is back.

        A batch whose seal was carried out, although nothing was heard of it, is a submission as any other.
        """
        try:
            is_dropped = await self._store.drop(batch)
        except StoreAway:  # the janitor would leave the batch to this process for as long as it lives
            later = asyncio.create_task(keep_running("batch_drop", partial(self._drop_later, batch)))
            self._dropping.add(later)
            later.add_done_callback(self._dropping.discard)
        else:
            if is_dropped:
                with suppress(StoreAway):  # the janitor removes files that no batch knows
                    await self._blobs.remove_group(batch)

    async def _drop_later(self, batch: str) -> None:
        await self._store.wait_until_back()
        await self._drop(batch)


class _Chunk:
    """Items that are submitted together.

    Attributes:
        files: by their jobs, in order.
        names: of the items, as they were sent.
        bytes: of all.
    """

    def __init__(self) -> None:
        self.files: dict[NewJob, FileIO] = {}
        self.names: list[str] = []
        self.bytes = 0

    def close(self, *_: object) -> None:
        """Close the files."""
        for file in self.files.values():
            file.close()

    def add(self, item: Item) -> None:
        """Add an item, whose own file is closed after its turn."""
        file = FileIO(os.dup(item.file.fileno()))
        size = os.fstat(file.fileno()).st_size
        self.files[NewJob(size, item.index, shown(item.name))] = file
        self.names.append(item.name)
        self.bytes += size


async def _chunks(found: AsyncIterable[Item]) -> AsyncGenerator[_Chunk, None]:
    """Collect items; the first one comes alone, so that engines can begin. The caller closes each chunk."""
    chunk = _Chunk()
    with ExitStack() as unless_yielded:
        async for item in found:
            if not chunk.files:
                unless_yielded.callback(chunk.close)
            chunk.add(item)
            if len(chunk.files) == _CHUNK or chunk.bytes >= _CHUNK_BYTES or item.index == 0:
                unless_yielded.pop_all()
                yield chunk
                chunk = _Chunk()
        unless_yielded.pop_all()
        if chunk.files:
            yield chunk


def _inputs_of(chunk: _Chunk) -> list[_Input]:
    return [
        (hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest(), digest_of(file))
        for name, file in zip(chunk.names, chunk.files.values(), strict=True)
    ]


class BatchResource:
    """`/batches/{id}`: one batch."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def on_get(self, _req: Request, resp: Response, id: str) -> None:
        """Answer with its counters."""
        resp.set_header("Cache-Control", "no-store")
        resp.media = describe_batch(await find_batch(self._store, id))

    on_head = on_get

    async def on_delete(self, _req: Request, resp: Response, id: str) -> None:
        """Cancel what waits, and ask what runs to stop."""
        batch = await find_batch(self._store, id)
        await self._store.cancel_batch(batch.id)
        resp.media = describe_batch(await self._store.batch(batch.id))

    async def on_get_items(self, req: Request, resp: Response, id: str) -> None:
        """Answer with its jobs, a thousand at once; `?start=1000` for those after the first thousand."""
        start = read_start(req.query_string)
        batch = await find_batch(self._store, id)
        end = min(batch.total, start + _PAGE)
        jobs = await _items(self._store, batch, range(start, end))
        resp.set_header("Cache-Control", "no-store")
        resp.media = {
            "batch": f"/batches/{batch.id}",
            "items": [describe(job) for job in jobs],
            "next": f"/batches/{batch.id}/items?start={end}" if end < batch.total else None,
        }

    on_head_items = on_get_items


class ArchiveResource:
    """`GET /batches/{id}/archive`: all results as a zip, written while it is sent.

    Args:
        store: where the batch is.
        blobs: where the files are.
        operations: what was done to them, which says how files are named.
    """

    def __init__(self, store: Store, blobs: Blobs, operations: Mapping[str, Operation]) -> None:
        self._store = store
        self._blobs = blobs
        self._extensions = {name: operation.outcome.extensions for name, operation in operations.items()}

    async def on_get(self, req: Request, resp: Response, id: str) -> None:
        """Answer with the results in their order, and a manifest at the end."""
        batch = await find_batch(self._store, id)
        if batch.remaining or not batch.is_sealed:
            raise NotDone(f"{batch.remaining} of {batch.total} jobs are still to end. Ask again later.")
        archive = self._archive(batch)
        first = await anext(archive)  # once the response has begun, a failure can only cut it short
        resp.stream = beginning_with(first, archive)
        if req.method == "HEAD":  # whose stream is never iterated
            await archive.aclose()
        resp.content_type = "application/zip"
        resp.set_header("Content-Disposition", f'attachment; filename="{batch.id}.zip"')

    on_head = on_get

    async def _archive(self, batch: Batch) -> AsyncGenerator[bytes, None]:
        sent = _Sent()
        manifest = []
        extensions = self._extensions.get(batch.facts.operation, {})
        with ZipFile(sent, "w", ZIP_STORED) as archive:
            for start in range(0, batch.total, _PAGE):
                end = min(batch.total, start + _PAGE)
                for job in await _items(self._store, batch, range(start, end)):
                    name = _name(job, extensions)
                    manifest.append({**describe(job), "file": name})
                    if name is None or job.result is None:
                        continue
                    with (
                        await open_result(self._blobs, job.id, job.result) as file,
                        archive.open(
                            ZipInfo(name, _EPOCH), "w", force_zip64=job.result.bytes >= 1 << 31
                        ) as member,
                    ):
                        async for piece in pieces(file, 0, job.result.bytes):
                            member.write(piece)
                            yield sent.take()
            text = json.dumps({"batch": describe_batch(batch), "items": manifest}, indent=2)
            archive.writestr(ZipInfo("manifest.json", _EPOCH), text)
        yield sent.take()


class _Sent(RawIOBase):
    """A file that only takes, and cannot go back: what is written is taken away again."""

    def __init__(self) -> None:
        self._written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._written += data
        return len(data)

    def take(self) -> bytes:
        """Return what was written since the last call."""
        written, self._written = bytes(self._written), bytearray()
        return written


async def _items(store: Store, batch: Batch, indexes: range) -> Sequence[Job]:
    """Return items that the batch has.

    Raises:
        Expired: some are not kept any more. An archive that has begun breaks off, so no part of a batch is
            taken for all of it.
        StoreAway: as its name says.
    """
    jobs = await store.items(batch.id, indexes)
    if len(jobs) < len(indexes):
        raise Expired("The batch is not kept any more. Submit the work again.")
    return jobs


def _name(job: Job, extensions: Mapping[str, str]) -> str | None:
    """Name the result of an item by its number: the name that it came with may be anything."""
    if job.state is not JobState.COMPLETED or job.result is None:
        return None
    extension = extensions.get(str(job.result.outcome["media_type"]), ".bin")
    return f"{job.id.index:06}{extension}"


def batch_id(text: str) -> str:
    """Read the id of a batch.

    Raises:
        NoSuchJob: it is none.
    """
    id = JobId.parse(text)
    if id is None or id.index is not None:
        raise NoSuchJob("This is not the id of a batch. Use the address that the submission answered with.")
    return id.group


async def find_batch(store: Store, text: str) -> Batch:
    """Find a batch by its id.

    Raises:
        NoSuchJob, Expired, StoreAway: as their names say.
    """
    batch = await store.batch(batch_id(text))
    if not batch.is_batch:
        raise NoSuchJob(f"This is the id of a job in no batch. GET /jobs/{batch.id} shows it.")
    return batch


def describe_batch(batch: Batch) -> dict[str, object]:
    """Describe a batch as JSON."""
    href = f"/batches/{batch.id}"
    return {
        "id": batch.id,
        "href": href,
        "has_ended": batch.ended_s is not None,
        "operation": batch.facts.operation,
        "version": batch.facts.version,
        "parameters": batch.facts.parameters,
        "total": batch.total,
        "remaining": batch.remaining,
        "completed": batch.completed,
        "failed": batch.failed,
        "cancelled": batch.cancelled,
        "created": as_time(batch.created_s),
        "ended": as_time(batch.ended_s),
        "items": f"{href}/items",
        "archive": f"{href}/archive",
        "events": f"{href}/events",
    }

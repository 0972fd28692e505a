"""Stored items: results of earlier jobs as the items of a batch, named by a JSON document."""

import json
import re
from collections.abc import AsyncGenerator, AsyncIterable, Sequence

from server.errors import BadParameter, Expired, NoSuchJob, TooManyItems, UploadTooLarge
from server.jobs.blobs import BlobGone, Blobs
from server.jobs.intake import Item, Limits
from server.jobs.model import Job, JobId, JobState, Result
from server.jobs.store import Store

MEDIA_TYPE = "application/json"

_FORM = 'Send a document such as {"items": ["/jobs/5f2c0b7f4a3e9d1c8b6a5f4e3d2c1b0a/result"]}.'
_ADDRESS = re.compile(r"/jobs/([0-9a-f-]+)/result")

#: How long the document may be for each item of the limit, in bytes: an address, and white space around it.
_ADDRESS_BYTES = 128


async def stored_items(
    chunks: AsyncIterable[bytes], store: Store, blobs: Blobs, limits: Limits
) -> AsyncGenerator[Item, None]:
    """Iterate over the results that a document names; within `contextlib.aclosing`, as `intake.items`.

    Args:
        chunks: the document as it arrives: `{"items": [ADDRESS, …]}`.
        store: where their jobs are.
        blobs: where their files are. In a directory they are not copied; from S3 each is fetched.
        limits: what the batch may hold.

    Raises:
        BadParameter: the document is wrong, or names what is no result.
        TooManyItems, UploadTooLarge: the batch is beyond a limit.
    """
    total_bytes = 0
    for index, id in enumerate(_ids(await _received(chunks, limits), limits)):
        job, result = await _find(store, index, id)
        total_bytes += result.bytes
        if result.bytes > limits.item_bytes:
            raise UploadTooLarge(f"Item {index} is larger than {limits.item_bytes} bytes. Leave it out.")
        if total_bytes > limits.bytes:
            raise UploadTooLarge(
                f"The items are larger than {limits.bytes} bytes. Split it into several batches."
            )
        try:
            file = await blobs.open(job.id.group, job.id.result_name(result.fence))
        except BlobGone:
            raise _wrong(index, "The result is not kept any more.") from None
        with file:
            yield Item(index, str(job.id) if job.name is None else job.name, file)


async def _received(chunks: AsyncIterable[bytes], limits: Limits) -> bytes:
    data = bytearray()
    async for chunk in chunks:
        data += chunk
        if len(data) > limits.items * _ADDRESS_BYTES:
            raise _too_many(limits)
    return bytes(data)


def _ids(data: bytes, limits: Limits) -> Sequence[JobId]:
    """Read a whole document, so that nothing else of it is kept: it may be much larger in memory."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise BadParameter(f"The body is no JSON. {_FORM}") from None
    if not isinstance(document, dict) or document.keys() != {"items"}:
        raise BadParameter(f"The body has not the one member `items`. {_FORM}")
    addresses = document["items"]
    if not isinstance(addresses, list) or not addresses:
        raise BadParameter(f"The member `items` is no list with an address in it. {_FORM}")
    if len(addresses) > limits.items:
        raise _too_many(limits)
    return [_id(index, address) for index, address in enumerate(addresses)]


def _id(index: int, address: object) -> JobId:
    named = _ADDRESS.fullmatch(address) if isinstance(address, str) else None
    id = JobId.parse(named[1]) if named else None
    if id is None:
        raise _wrong(index, "It is not the address of a result.")
    return id


async def _find(store: Store, index: int, id: JobId) -> tuple[Job, Result]:
    try:
        job = await store.job(id)
    except (NoSuchJob, Expired) as error:
        raise _wrong(index, error.detail) from None
    if job.state is not JobState.COMPLETED or job.result is None:
        raise _wrong(index, f"The state of the job is {job.state}, so it has no result.")
    return job, job.result


def _wrong(index: int, reason: str) -> BadParameter:
    return BadParameter(f"Item {index} cannot be used. {reason}")


def _too_many(limits: Limits) -> TooManyItems:
    return TooManyItems(f"The batch has more than {limits.items} items. Split it into several batches.")

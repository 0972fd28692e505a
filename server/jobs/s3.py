"""Blobs on S3, for machines that share no directory; the only module that imports obstore.

Here files are unnamed ones in the directory for temporary files, and there whole objects. Nothing relies on
conditional requests, which not every S3 server has: names are unique, and a late result is looked after once
it is there.
"""

import asyncio
import mmap
import re
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from io import FileIO

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from server.cluster.memory_files import write_all
from server.errors import StoreAway
from server.jobs.blobs import BlobGone, UnsuitableBlobs, is_group, place_of
from server.jobs.model import JobId, new_id
from server.logs import get_logger

log = get_logger(__name__)

#: How long a connection and one request may take. A large file is put in several requests, and fetching one
#: goes on where it got stuck.
_CONNECT = timedelta(seconds=1)
_REQUEST = timedelta(seconds=10)

#: How long an idle connection is used again: less than servers keep one open, as a request that meets its end
#: fails.
_IDLE = timedelta(seconds=3)

#: How often a request that failed is repeated at most, and for how long.
_RETRIES = 2
_RETRY = timedelta(seconds=5)

#: How many files are listed, and are deleted, in one request.
_PAGE = 1000

#: What obstore raises: some of its errors are Python's own.
_ERRORS = (BaseError, FileNotFoundError, PermissionError)

#: How much of a file is written at once, in bytes.
_PIECE_BYTES = 1 << 20


class S3:
    """Blobs in a bucket.

    Credentials, region and endpoint come from the environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, …),
    or from the machine's role.

    Args:
        url: `s3://bucket` or `s3://bucket/prefix`.

    Raises:
        UnsuitableBlobs: what the environment says makes no sense.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        try:
            self._bucket = S3Store.from_url(
                url,
                client_options={
                    "connect_timeout": _CONNECT,
                    "timeout": _REQUEST,
                    "pool_idle_timeout": _IDLE,
                    "allow_http": True,  # for an endpoint that says so
                },
                retry_config={"max_retries": _RETRIES, "retry_timeout": _RETRY},
            )
        except _ERRORS as error:
            raise UnsuitableBlobs(_unsuitable(url, error)) from None

    async def check(self) -> None:
        """See whether files can be put, listed and deleted, and temporary ones made.

        Raises:
            UnsuitableBlobs: no; the text says why.
        """
        group = new_id()
        try:
            self.new().close()
        except OSError as error:
            raise UnsuitableBlobs(
                f"FLIP_BLOB_URL: no temporary files can be made: {error}; set TMPDIR"
            ) from None
        try:
            await obstore.put_async(self._bucket, place_of(group, JobId(group).input_name), b"")
            await self._remove_group(group)
        except _ERRORS as error:
            raise UnsuitableBlobs(_unsuitable(self._url, error)) from None

    def new(self) -> FileIO:
        """Open an empty file, on this machine's disk and without a name (`TMPDIR` says where)."""
        return tempfile.TemporaryFile("r+b", buffering=0)

    async def keep(self, file: FileIO, group: str, name: str, *, must_exist: bool = False) -> None:
        """Put a file; it is durable when this returns. See `Blobs`."""
        key = place_of(group, name)
        with _translated():
            await obstore.put_async(self._bucket, key, _content(file))
            # The input is deleted before the last look at a group that is removed: either that look finds
            # this result, or the input is found missing here.
            if must_exist and not await self._has(place_of(group, f"{name.partition('.')[0]}.in")):
                await self._delete([key])
                raise BlobGone(f"{group} was removed")

    async def keep_all(self, files: Mapping[str, FileIO], group: str) -> None:
        """Put files; they are durable when this returns. See `Blobs`."""
        puts = (self.keep(file, group, name) for name, file in files.items())
        for outcome in await asyncio.gather(*puts, return_exceptions=True):
            if outcome is not None:
                raise outcome

    async def open(self, group: str, name: str, part: tuple[int, int] | None = None) -> FileIO:
        """Fetch a file, or a part of it to its place in an empty one. See `Blobs`."""
        key = place_of(group, name)
        file = self.new()
        try:
            with _translated():
                try:
                    await self._fetch(key, file, part)
                except FileNotFoundError:
                    raise BlobGone(f"{group} has no {name}") from None
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    async def _fetch(self, key: str, file: FileIO, part: tuple[int, int] | None) -> None:
        start, end = part or (0, None)
        if start == end:  # an empty range cannot be asked for
            await obstore.head_async(self._bucket, key)
            return
        found = await obstore.get_async(self._bucket, key, options={"range": part} if part else None)
        file.seek(start)
        async for piece in found.stream(_PIECE_BYTES):
            write_all(file, piece)

    async def remove(self, group: str, name: str) -> None:
        """Delete a file if it is there."""
        with _translated():
            await self._delete([place_of(group, name)])

    async def remove_group(self, group: str) -> None:
        """Delete all files of a group, those included that arrive meanwhile."""
        with _translated():
            await self._remove_group(group)

    async def _remove_group(self, group: str) -> None:
        while keys := [
            each["path"] async for page in obstore.list(self._bucket, place_of(group)) for each in page
        ]:
            for start in range(0, len(keys), _PAGE):
                await self._delete(keys[start : start + _PAGE])

    async def _delete(self, keys: Sequence[str]) -> None:
        """Delete objects. That is a POST, which obstore does not repeat when its connection fails."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + _RETRY.total_seconds()
        for retries_left in reversed(range(_RETRIES + 1)):
            try:
                await obstore.delete_async(self._bucket, keys)
            except BaseError:
                if not retries_left or loop.time() >= end_s:
                    raise
            else:
                return

    async def groups(self) -> AsyncIterator[tuple[str, float]]:
        """Iterate over all groups, each with its last change. See `Blobs`."""
        group, changed_s = "", 0.0
        with _translated():
            async for page in obstore.list(self._bucket, chunk_size=_PAGE):  # in the order of their names
                for each in page:
                    found = each["path"].split("/")[1:2]
                    if not (found and is_group(found[0])):
                        continue
                    if found[0] != group:
                        if group:
                            yield group, changed_s
                        group, changed_s = found[0], 0.0
                    changed_s = max(changed_s, each["last_modified"].timestamp())
        if group:
            yield group, changed_s

    async def _has(self, key: str) -> bool:
        try:
            await obstore.head_async(self._bucket, key)
        except FileNotFoundError:
            return False
        return True


def _content(file: FileIO) -> bytes | mmap.mmap:
    """Return the bytes of a file, without copying them; none cannot be mapped."""
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.seek(0, 2) else b""


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except _ERRORS as error:
        log.warning("blobs_away", error=_reason(error))
        raise StoreAway("The files of the jobs cannot be reached. Try again in a second.") from error


def _unsuitable(url: str, error: Exception) -> str:
    return f"FLIP_BLOB_URL: cannot keep the files of jobs in {url}: {_reason(error)}"


def _reason(error: Exception) -> str:
    """Return what the server says, or what happened to the request."""
    told = re.search('<Message>(.+?)</Message>|message: "(.+?)"', str(error))
    return told[1] or told[2] if told else str(error).partition("\n")[0]

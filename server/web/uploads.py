"""Uploads: stream a request's body into a file in memory, within the limits."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from io import FileIO
from pathlib import Path
from typing import Protocol

import falcon
from falcon.asgi import Request
from falcon.asgi.multipart import BodyPart, MultipartForm
from falcon.media import MultipartFormHandler

from server.admission import Ticket
from server.cluster.memory_files import reader, write_all
from server.errors import MalformedMultipart, OperationRefused, UploadTooLarge, UploadTooSlow
from server.web.exchange import Exchange
from server.web.upload_sink import UploadSink

_ONE_FILE = "Send one file part named `image`, as `curl -F image=@photo.jpg` does, or the image as the body."

_FORMS = MultipartFormHandler()


class Files(Protocol):
    """Where files for uploads come from and go to."""

    def take(self) -> FileIO:
        """Return a file to be written from its start."""

    def give_back(self, file: FileIO) -> None:
        """Take a file back that is not needed any more."""


class Uploads:
    """Takes the image out of a request.

    Args:
        max_body_bytes: the largest body, in bytes.
        timeout_s: the longest time that a body may take, in seconds.
        sample: the image that stands in for an empty body.
        files: where the files for uploads come from and go to.
    """

    def __init__(self, *, max_body_bytes: int, timeout_s: float, sample: Path, files: Files) -> None:
        self._max_body_bytes = max_body_bytes
        self._timeout_s = timeout_s
        self._sample = sample
        self._files = files

    def length_of(self, req: Request) -> int | None:
        """Return the length of the body; None when no header says it.

        Raises:
            UploadTooLarge: it is over the limit.
        """
        length: int | None = req.content_length
        if (length or 0) > self._max_body_bytes:
            raise self._too_large()
        return length

    @asynccontextmanager
    async def received(self, req: Request, exchange: Exchange, ticket: Ticket) -> AsyncIterator[FileIO]:
        """Read the whole body and lend an open file with the image.

        Args:
            req: the request.
            exchange: its owner, whose sink is opened for a body that is the image itself.
            ticket: of its admission; told how large the image is if no header says it.

        Raises:
            UploadTooLarge, UploadTooSlow, MalformedMultipart: as their names say.
            ServiceUnavailable: there is no room for what arrives, or it would wait for too long.
        """
        upload = self._files.take()
        try:
            await self._read(req, exchange, upload, ticket)
            if upload.tell():
                yield upload
            else:
                with FileIO(self._sample) as sample:
                    yield sample
        except OperationRefused:  # the engine has answered or is gone, so it no longer uses the file
            self._files.give_back(upload)
            raise
        except BaseException:  # an engine may still be reading if it was starved, or if this worker ends
            upload.close()
            raise
        else:
            self._files.give_back(upload)

    async def _read(self, req: Request, exchange: Exchange, upload: FileIO, ticket: Ticket) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                if _is_multipart(req):
                    await self._read_form(req, exchange, upload, ticket)
                else:
                    await self._copy(req.stream, upload, ticket, exchange.sink)
        except TimeoutError:
            raise UploadTooSlow(
                f"The body did not arrive within {self._timeout_s:g} s. Send a smaller one, or faster."
            ) from None
        exchange.sink.close()  # the file will belong to another request
        upload.truncate()  # of the file's last use nothing may be left
        ticket.complete(upload.tell())

    async def _read_form(self, req: Request, exchange: Exchange, upload: FileIO, ticket: Ticket) -> None:
        parts = 0
        try:
            # Not req.get_media(): it compares the media type with upper and lower case told apart.
            form: MultipartForm = await _FORMS.deserialize_async(
                req.stream, req.content_type, req.content_length
            )
            async for part in form:
                parts += 1
                await self._read_part(part, parts, upload, ticket)
        except (falcon.MediaMalformedError, falcon.HTTPInvalidHeader) as error:
            raise MalformedMultipart(f"{error.description or error.title}. {_ONE_FILE}") from None
        except UnicodeDecodeError:
            raise MalformedMultipart(f"The header of a part is not in UTF-8. {_ONE_FILE}") from None
        if parts == 0:
            raise MalformedMultipart(f"The form has no part. {_ONE_FILE}")
        if exchange.body_bytes > self._max_body_bytes:  # most of it multipart framing
            raise self._too_large()

    async def _read_part(self, part: BodyPart, number: int, upload: FileIO, ticket: Ticket) -> None:
        if part.filename is None:
            raise MalformedMultipart(
                f"The form has a field that is no file. {_ONE_FILE} Parameters go into the query."
            )
        if number > 1:
            raise MalformedMultipart(f"The form has more than one file part. {_ONE_FILE}")
        await self._copy(part.stream, upload, ticket)
        if upload.tell() == 0:
            raise MalformedMultipart(f"The file part is empty. {_ONE_FILE}")

    async def _copy(
        self,
        chunks: AsyncIterable[bytes],
        upload: FileIO,
        ticket: Ticket,
        sink: UploadSink | None = None,
    ) -> None:
        """Write what arrives, and open the sink for the rest: with a server that uses it few chunks come."""
        async for chunk in chunks:
            write_all(upload, chunk)
            if upload.tell() > self._max_body_bytes:  # told by no header
                raise self._too_large()
            ticket.look(reader(upload, upload.tell()), upload.tell())
            ticket.arrive(upload.tell())
            if sink is not None:
                sink.open(upload)

    def _too_large(self) -> UploadTooLarge:
        return UploadTooLarge(f"The body is larger than {self._max_body_bytes} bytes. Send a smaller image.")


def _is_multipart(req: Request) -> bool:
    media_type, _, _ = (req.content_type or "").partition(";")
    return media_type.strip().lower() == "multipart/form-data"

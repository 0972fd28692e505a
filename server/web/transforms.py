"""The routes that transform a picture: an image comes in, the image turned comes out."""

import errno
import os
from collections.abc import AsyncIterator, Iterable, Mapping, MutableMapping
from io import FileIO
from typing import TypeVar

from falcon.asgi import Request, Response
from falcon.uri import parse_query_string

from server.admission import Admission
from server.cluster.dispatch import Dispatcher, TooLate
from server.cluster.memory_files import MemoryFilePool
from server.cluster.messages import Spent
from server.errors import BadParameter, ServiceUnavailable
from server.imaging.codecs import OUTPUT_FORMATS, Effort, Format
from server.imaging.geometry import Turn
from server.imaging.recipe import ImagePath, Recipe
from server.web.exchange import Exchange
from server.web.uploads import Uploads

T = TypeVar("T")

_ROTATIONS = {
    "90": Turn.ROTATE_90,
    "180": Turn.ROTATE_180,
    "270": Turn.ROTATE_270,
}
_BOOLEANS = {"true": True, "false": False}
_FORMATS = {form.value: form for form in Format if form in OUTPUT_FORMATS}
_PATHS: dict[str, ImagePath] = {"lossless": "lossless", "pixels": "pixels"}
_EFFORTS = {effort.value: effort for effort in Effort}
_QUALITIES = {str(quality): quality for quality in range(1, 101)}

#: What the kernel says when there are no more descriptors, when too many of them are in the work socket, and
#: when there is no memory for a file, or no more than a limit allows.
_EXHAUSTED = frozenset(
    {
        *(errno.EMFILE, errno.ENFILE, errno.ETOOMANYREFS, errno.ENOBUFS),
        *(errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EFBIG),
    }
)

#: Callers' words are quoted back up to this many characters.
_LONGEST_QUOTE = 40

#: How much of a picture is read for one write to the client, in bytes.
_PIECE_BYTES = 1 << 18


class Transform:
    """`POST` of a picture to one operation.

    Args:
        operation: what is done; None when the caller chooses with `angle`.
        admission: asked before the body is read.
        uploads: takes the picture out of the request.
        dispatcher: hands it to an engine.
        memory_files: where the file with the new picture goes when it has been sent.
    """

    def __init__(
        self,
        operation: Turn | None,
        admission: Admission,
        uploads: Uploads,
        dispatcher: Dispatcher,
        memory_files: MemoryFilePool,
    ) -> None:
        self._operation = operation
        self._admission = admission
        self._uploads = uploads
        self._dispatcher = dispatcher
        self._memory_files = memory_files

    async def on_post(self, req: Request, resp: Response) -> None:
        """Answer with the picture, transformed."""
        recipe = _read_recipe(req, self._operation)
        exchange = Exchange.of(req.scope)
        admitted = self._admission.admit(self._uploads.length_of(req))
        ticket = exchange.ticket = exchange.resources.enter_context(admitted)
        try:
            async with self._uploads.received(req, exchange, ticket) as upload:
                done, picture = await self._dispatcher.transform(upload, recipe, ticket.admitted_us)
        except TooLate as error:
            raise ticket.refusal() from error
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            raise ServiceUnavailable("Too many requests are under way. Try again in a second.") from error
        except MemoryError as error:
            raise ServiceUnavailable(
                "There is no memory for it at the moment. Try again in a second."
            ) from error
        exchange.resources.callback(self._memory_files.give_back, picture)
        size = os.fstat(picture.fileno()).st_size
        ticket.finish_work()
        ticket.hold(size)
        resp.content_type = done.result.media_type
        resp.content_length = size
        resp.set_header("X-Engine-PID", str(done.engine_pid))
        resp.set_header("X-Image-Path", done.result.path)
        resp.set_header("Server-Timing", _server_timing(done.spent))
        resp.stream = _pieces(picture, size)
        exchange.engine_pid = done.engine_pid
        exchange.image_path = done.result.path


def _read_recipe(req: Request, operation: Turn | None) -> Recipe:
    given = parse_query_string(req.query_string, keep_blank=True, csv=False)
    if operation is None:
        operation = _take(given, "angle", _ROTATIONS, "90, 180 or 270, clockwise")
        if operation is None:
            raise BadParameter("The parameter `angle` is missing. Give 90, 180 or 270, clockwise.")
    recipe = Recipe(
        turn=operation,
        format=_take(given, "format", _FORMATS, f"one of {', '.join(_FORMATS)}"),
        quality=_take(given, "quality", _QUALITIES, "a whole number from 1 to 100"),
        strip=_take(given, "strip", _BOOLEANS, "true or false") or False,
        path=_take(given, "path", _PATHS, "lossless or pixels"),
        effort=_take(given, "effort", _EFFORTS, f"one of {', '.join(_EFFORTS)}") or Effort.NORMAL,
    )
    if given:
        raise BadParameter(
            f"There is no parameter {_names(given)} here. Leave it out; /openapi.json lists what there is."
        )
    return recipe


def _take(
    given: MutableMapping[str, str | list[str]], name: str, choices: Mapping[str, T], expected: str
) -> T | None:
    """Take one parameter out of those given and look its value up; None when it is not there.

    Raises:
        BadParameter: its value is none of the choices, or it is there twice.
    """
    value = given.pop(name, None)
    if value is None:
        return None
    if isinstance(value, list):
        raise BadParameter(f"The parameter `{name}` is there more than once. Give it once.")
    if value not in choices:
        raise BadParameter(f"The parameter `{name}` is {_quoted(value)}. Give {expected}.")
    return choices[value]


def _names(names: Iterable[str]) -> str:
    return ", ".join(_quoted(name) for name in names)


def _quoted(text: str) -> str:
    return f"`{text if len(text) <= _LONGEST_QUOTE else text[:_LONGEST_QUOTE] + '...'}`"


def _server_timing(spent: Spent) -> str:
    """Write where the time went, in milliseconds (W3C Server Timing, section 3)."""
    return (
        f"queue;dur={spent.queue / 1e3:.1f}, decode;dur={spent.decode / 1e3:.1f}, "
        f"transform;dur={spent.transform / 1e3:.1f}, encode;dur={spent.encode / 1e3:.1f}"
    )


async def _pieces(picture: FileIO, size: int) -> AsyncIterator[bytes]:
    for offset in range(0, size, _PIECE_BYTES):
        yield os.pread(picture.fileno(), _PIECE_BYTES, offset)

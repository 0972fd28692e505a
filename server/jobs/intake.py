"""Intake: takes the items of a batch out of an upload, one by one, while the upload still arrives.

A form, a tar and a tar.gz are read as they come. A zip lists its members at its end, so it goes through an
unnamed file first. Which archive it is, its first bytes say.

No limit trusts what an archive says of itself: what comes out is counted, and stopped at once.

Source: POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format"; RFC 7578.
"""

import re
import stat
import struct
import zlib
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from io import BufferedWriter, FileIO
from typing import Any, Self, TypeAlias, TypeVar, TypeVarTuple
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from multipart import MultipartError, PushMultipartParser, parse_options_header

from server.cluster.threads import run_in_thread
from server.errors import BadArchive, MalformedMultipart, TooManyItems, UploadTooLarge

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_FORM = "Send one file part for each image, as `curl -F image=@1.jpg -F image=@2.jpg` does."
_SPLIT = "Split it into several batches."
_AGAIN = "Make it again, for example with `zip -r images.zip images` or `tar -cf images.tar images`."
_DAMAGED = f"The archive is damaged, or neither a zip nor a tar. {_AGAIN}"
_CUT_OFF = "The archive is incomplete. Send all of it."
_NO_BATCH = (
    "This is neither a form nor a zip, a tar or a tar.gz. Send one of these, made for example with "
    "`zip -r images.zip images`; a single image goes to /flip with `Prefer: respond-async`."
)

#: How much of a name is kept, in characters.
_NAME_LENGTH = 200

#: How much is unpacked at a time, in bytes.
_PIECE_BYTES = 1 << 18

#: What may come out of an archive whatever its ratio: padding and flat images compress very well.
_FREE_BYTES = 1 << 20

#: How long the content of an extended header of a tar may be, in bytes, and how many there may be in a row.
#: The usual tools write three at most.
_HEADER_BYTES = 1 << 16
_HEADERS = 16

#: How long the directory of a zip may be for each item of the limit, in bytes.
_ZIP_ENTRY_BYTES = 256

#: Flags of a zip's member.
_IS_ENCRYPTED, _IS_UTF_8 = 1, 0x800

#: What `zipfile` raises for one that is damaged.
_ZIP_DAMAGE = (
    *(
        BadZipFile,
        EOFError,
        IndexError,
        NotImplementedError,
        OSError,
        OverflowError,
        RuntimeError,
        ValueError,
    ),
    *(struct.error, zlib.error),
)

#: The size of the blocks that a tar is made of, in bytes.
_BLOCK_BYTES = 512

#: Type flags of a tar: of files, of a directory, and of extended headers, of which two are used.
_REGULAR = frozenset({b"0", b"\0", b"7"})
_DIRECTORY = b"5"
_LONG_NAME, _PAX = b"L", b"x"
_LONG_LINK, _PAX_GLOBAL, _VOLUME = b"K", b"g", b"V"
_EXTENDED = frozenset({_LONG_NAME, _PAX, _LONG_LINK, _PAX_GLOBAL, _VOLUME})

#: The records of pax that are used; no other is kept.
_USED_RECORDS = frozenset({b"path", b"size"})

#: Numbers in a tar, by their base.
_DIGITS = {8: re.compile(rb"[0-7]{1,20}"), 10: re.compile(rb"[0-9]{1,20}")}

#: What a number in a tar begins with when it is not octal.
_IS_BINARY = 0x80

#: How archives begin: a zip with members and one without, and gzip.
_ZIP_STARTS = frozenset({b"PK\3\4", b"PK\5\6"})
_GZIP_START = b"\x1f\x8b"

#: For `zlib`: gzip, with the largest window.
_GZIP = 31

#: The name of a member, None if it is no item, and its content, which must be read before the next member.
_Member: TypeAlias = tuple[str | None, AsyncGenerator[bytes | bytearray | memoryview, None]]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a batch may hold.

    Attributes:
        items: most of them, and most directories or empty fields beside them.
        bytes: most of the upload, and most of all items together.
        item_bytes: most of one item.
        ratio: how many times as large as the upload its items may be.
    """

    items: int
    bytes: int
    item_bytes: int
    ratio: float


@dataclass(frozen=True, slots=True)
class Item:
    """One file of a batch.

    Attributes:
        index: its place, from 0: its identity, as names may be the same.
        name: as it was sent, which may be empty; bytes that are not UTF-8 are surrogate escapes (PEP 383).
        file: complete; closed when the next item is asked for.
    """

    index: int
    name: str
    file: FileIO


async def items(
    content_type: str, chunks: AsyncIterable[bytes], new_file: Callable[[], FileIO], limits: Limits
) -> AsyncGenerator[Item, None]:
    """Iterate over the items of an upload; within `contextlib.aclosing`, so that nothing stays open.

    Args:
        content_type: of the upload: a form, or anything else for an archive.
        chunks: the upload as it arrives.
        new_file: opens an empty file.
        limits: what the batch may hold.

    Raises:
        TooManyItems, UploadTooLarge: the batch is beyond a limit.
        MalformedMultipart: the form is broken, or has no file.
        BadArchive: the archive is damaged or encrypted, holds no file or what is none, or expands too much.
    """
    index = others = total_bytes = 0
    async with aclosing(await _members(content_type, chunks, new_file, limits)) as members:
        async for name, content in members:
            if name is None:
                others += 1
                if others > limits.items:
                    raise TooManyItems(
                        f"The batch has more than {limits.items} directories or fields without a file. "
                        "Leave them out."
                    )
                await _drop(content)
                continue
            if index == limits.items:
                raise TooManyItems(f"The batch has more than {limits.items} items. {_SPLIT}")
            with new_file() as file:
                total_bytes += await _write(content, file, limits, limits.bytes - total_bytes)
                yield Item(index, name, file)
            index += 1
    if index == 0:
        raise _empty(content_type)


async def _members(
    content_type: str, chunks: AsyncIterable[bytes], new_file: Callable[[], FileIO], limits: Limits
) -> AsyncGenerator[_Member, None]:
    chunks = _limited(chunks, limits)
    media_type, options = parse_options_header(content_type)
    if media_type == "multipart/form-data":
        return _form(options.get("boundary", ""), chunks)
    reader = _Reader(chunks)
    start = await reader.peek(4)
    if not start:
        raise _empty(content_type)
    if start in _ZIP_STARTS:
        return _zip(reader, new_file, limits)
    if start.startswith(_GZIP_START):
        return _tar(_Reader(_inflated(reader, limits)))
    if not _is_tar(await reader.peek(_BLOCK_BYTES)):
        raise BadArchive(_NO_BATCH)
    return _tar(reader)


async def _limited(chunks: AsyncIterable[bytes], limits: Limits) -> AsyncGenerator[bytes, None]:
    received_bytes = 0
    async for chunk in chunks:
        received_bytes += len(chunk)
        if received_bytes > limits.bytes:
            raise UploadTooLarge(f"The upload is larger than {limits.bytes} bytes. {_SPLIT}")
        if chunk:  # an empty one would be the end for the parser of forms
            yield chunk


async def _write(
    content: AsyncGenerator[bytes | bytearray | memoryview, None],
    file: FileIO,
    limits: Limits,
    left_bytes: int,
) -> int:
    """Write an item into its file, and return its size in bytes."""
    size = 0
    with _buffered(file) as out:
        async for piece in content:
            size += len(piece)
            if size > limits.item_bytes:
                raise UploadTooLarge(
                    f"An item is larger than {limits.item_bytes} bytes. Send a smaller image."
                )
            if size > left_bytes:
                raise UploadTooLarge(f"The items are larger than {limits.bytes} bytes. {_SPLIT}")
            out.write(piece)
    return size


async def beginning_with(first: T, rest: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """Prepend what was taken off a generator to look at it."""
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


async def _drop(content: AsyncIterable[object]) -> None:
    async for _ in content:
        pass


def _buffered(file: FileIO) -> BufferedWriter:
    """Collect small writes to a file that stays open; a large one is written in full."""
    return BufferedWriter(FileIO(file.fileno(), "wb", closefd=False))


def shown(name: str) -> str:
    """Return a name for display, shortened, with unprintable characters replaced; it is never a path."""
    return "".join(
        each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in name[:_NAME_LENGTH]
    )


def _empty(content_type: str) -> MalformedMultipart | BadArchive:
    if content_type.lower().startswith("multipart/"):
        return MalformedMultipart(f"The form has no file. {_FORM}")
    return BadArchive(f"The archive holds no file. {_AGAIN}")


def _not_a_file(name: str) -> BadArchive:
    return BadArchive(
        f"`{shown(name)}` in the archive is a link or a device. Put the files themselves into it: "
        "`zip -r` and `tar --dereference --hard-dereference` follow links."
    )


class _Expansion:
    """The ratio between what has come out of an archive and its size.

    Attributes:
        packed_bytes: the size of the archive, as far as it has arrived.
    """

    def __init__(self, limits: Limits) -> None:
        self._ratio = limits.ratio
        self._unpacked_bytes = 0
        self.packed_bytes = 0

    def count(self, piece: bytes) -> None:
        self._unpacked_bytes += len(piece)
        if self._unpacked_bytes > max(_FREE_BYTES, self._ratio * self.packed_bytes):
            raise BadArchive(
                f"The archive unpacks to more than {self._ratio:g} times its size. Send the images in a form "
                "or in a tar, without compression."
            )


# --- forms -----------------------------------------------------------------------------------------------


async def _form(boundary: str, chunks: AsyncIterable[bytes]) -> AsyncGenerator[_Member, None]:
    if not boundary:
        raise MalformedMultipart(f"The content type has no boundary. {_FORM}")
    # Its own limits on the headers of a part are right: 8 of 4 KiB. A long one that is folded into many lines
    # would take long, as it is copied with each of them.
    parser = PushMultipartParser(boundary)
    async with aclosing(_events(parser, chunks)) as events:
        async for segment in events:
            if segment.filename is None:
                if "filename*=" in segment.header("Content-Disposition"):
                    raise MalformedMultipart(
                        "The form names a file by `filename*` alone, which RFC 7578 forbids. Send its name "
                        "as `filename`, in UTF-8."
                    )
                raise MalformedMultipart(
                    f"The form has a field that is no file. {_FORM} Parameters go into the query."
                )
            content = _content(events)
            if segment.filename:
                yield segment.filename, content
            elif first := await anext(content, None):
                yield "", beginning_with(first, content)
            else:  # a browser sends this for a field for which no file was chosen
                yield None, content


async def _events(parser: PushMultipartParser, chunks: AsyncIterable[bytes]) -> AsyncGenerator[Any, None]:
    try:
        async for chunk in chunks:
            for event in parser.parse(chunk):
                yield event
        parser.close()
    except MultipartError as error:
        what, *causes = error.args
        if causes:  # only one has a cause
            what = "The header of a part is not in UTF-8"
        raise MalformedMultipart(f"{what}. {_FORM}") from None


async def _content(events: AsyncGenerator[Any, None]) -> AsyncGenerator[bytearray, None]:
    async for event in events:
        if event is None:
            return
        yield event


# --- zip -------------------------------------------------------------------------------------------------


async def _zip(
    reader: "_Reader", new_file: Callable[[], FileIO], limits: Limits
) -> AsyncGenerator[_Member, None]:
    expansion = _Expansion(limits)
    with new_file() as spool:
        with _buffered(spool) as out:
            async for chunk in reader.rest():
                out.write(chunk)
        expansion.packed_bytes = spool.tell()
        with _ZipReader(spool, limits) as source, await _unzip(ZipFile, source) as archive:
            if len(archive.infolist()) > 2 * limits.items:  # the list stays until the last item is taken
                raise TooManyItems(f"The zip has more than {2 * limits.items} members. {_SPLIT}")
            for info in archive.infolist():
                if not info.filename.endswith("/") or info.file_size:
                    _check(info)
                    yield _zip_name(info), _unzipped(archive, info, expansion)


class _ZipReader(FileIO):
    """A zip whose directory is not read if it is so long that the list made of it would take much memory.

    The directory is read in one go, and everything else in pieces.
    """

    def __init__(self, file: FileIO, limits: Limits) -> None:
        super().__init__(file.fileno(), closefd=False)
        self._most_bytes = max(_PIECE_BYTES, limits.items * _ZIP_ENTRY_BYTES)

    def read(self, size: int | None = -1, /) -> bytes:
        if (size or 0) > self._most_bytes:
            raise BadArchive(f"The zip has too many members, or too long names. {_SPLIT}")
        return super().read(size)


def _zip_name(info: ZipInfo) -> str:
    """Return the name of a member, which `zip` writes in UTF-8 without saying so."""
    if info.flag_bits & _IS_UTF_8:
        return info.filename
    try:
        return info.filename.encode("cp437").decode()
    except UnicodeError:
        return info.filename


def _check(info: ZipInfo) -> None:
    if info.flag_bits & _IS_ENCRYPTED:
        raise BadArchive("The zip is encrypted. Send one without a password.")
    if info.compress_type not in {ZIP_STORED, ZIP_DEFLATED}:
        raise BadArchive(f"The zip is compressed in a way other than deflate. {_AGAIN}")
    if stat.S_IFMT(info.external_attr >> 16) not in {0, stat.S_IFREG}:
        raise _not_a_file(_zip_name(info))


async def _unzipped(archive: ZipFile, info: ZipInfo, expansion: _Expansion) -> AsyncGenerator[bytes, None]:
    with await _unzip(archive.open, info) as member:
        while piece := await _unzip(member.read, _PIECE_BYTES):
            expansion.count(piece)
            yield piece


async def _unzip(call: Callable[[*Ts], T], *args: *Ts) -> T:
    try:
        return await run_in_thread(call, *args)
    except _ZIP_DAMAGE:
        raise BadArchive(_DAMAGED) from None


# --- tar -------------------------------------------------------------------------------------------------


class _Reader:
    """Reads an archive by numbers of bytes, whatever the chunks are that it arrives in."""

    def __init__(self, chunks: AsyncIterable[bytes]) -> None:
        self._chunks = aiter(chunks)
        self._ahead = memoryview(b"")

    async def peek(self, size: int) -> bytes:
        """Look at what comes next; fewer bytes at the end."""
        while len(self._ahead) < size and (chunk := await anext(self._chunks, None)) is not None:
            self._ahead = memoryview(bytes(self._ahead) + chunk)
        return bytes(self._ahead[:size])

    async def read(self, size: int) -> bytes:
        """Read exactly so many bytes."""
        if len(data := await self.peek(size)) < size:
            raise BadArchive(_CUT_OFF)
        self._ahead = self._ahead[size:]
        return data

    async def pieces(self, size: int) -> AsyncGenerator[memoryview, None]:
        """Read exactly so many bytes, as they come."""
        while size:
            if not await self.peek(1):
                raise BadArchive(_CUT_OFF)
            piece, self._ahead = self._ahead[:size], self._ahead[size:]
            size -= len(piece)
            yield piece

    async def rest(self) -> AsyncGenerator[memoryview, None]:
        """Read everything that is left, as it comes."""
        while await self.peek(1):
            piece, self._ahead = self._ahead, memoryview(b"")
            yield piece


async def _inflated(reader: _Reader, limits: Limits) -> AsyncGenerator[bytes, None]:
    """Unpack a gzip file, or several in a row, to the end."""
    expansion = _Expansion(limits)
    inflater = zlib.decompressobj(_GZIP)
    async for chunk in reader.rest():
        expansion.packed_bytes += len(chunk)
        left: bytes | memoryview = chunk
        while left:
            if inflater.eof:  # another one, or padding
                if not (left := bytes(left).lstrip(b"\0")):
                    break
                inflater = zlib.decompressobj(_GZIP)
            try:
                piece = await run_in_thread(inflater.decompress, left, _PIECE_BYTES)
            except zlib.error:
                raise BadArchive(_DAMAGED) from None
            left = inflater.unused_data or inflater.unconsumed_tail
            expansion.count(piece)
            yield piece
    if not inflater.eof:
        raise BadArchive(_CUT_OFF)


@dataclass(frozen=True, slots=True)
class _Header:
    """The header of a member of a tar.

    Attributes:
        kind: the type flag.
        name, size: of the member.
    """

    kind: bytes
    name: bytes
    size: int

    @classmethod
    def parse(cls, block: bytes) -> Self:
        """Take a block apart."""
        if not _is_intact(block):
            raise BadArchive(_DAMAGED)
        name = _text(block[:100])
        if block[257:263] == b"ustar\0" and (prefix := _text(block[345:500])):
            name = prefix + b"/" + name
        return cls(block[156:157], name, _octal(block[124:136]))

    def extended_by(self, records: Mapping[bytes, bytes]) -> Self:
        """Return what an extended header before this one makes of it."""
        size = _whole(records[b"size"], 10) if b"size" in records else self.size
        return replace(self, name=records.get(b"path", self.name), size=size)


def _is_tar(start: bytes) -> bool:
    """Whether a tar can begin with these bytes; one without members begins with zeros."""
    with suppress(BadArchive):
        return len(start) == _BLOCK_BYTES and (not any(start) or _is_intact(start))
    return False


def _is_intact(header: bytes) -> bool:
    """Whether the checksum of a header is right; it is made with blanks in its own place."""
    return _octal(header[148:156]) == sum(header) - sum(header[148:156]) + 8 * ord(" ")


async def _tar(reader: _Reader) -> AsyncGenerator[_Member, None]:
    extended: dict[bytes, bytes] = {}  # by headers that come before that of the member
    headers = 0  # so far before it
    while any(block := await reader.read(_BLOCK_BYTES)):
        header = _Header.parse(block)
        size = header.size
        if header.kind in _EXTENDED:
            headers += 1
            if size > _HEADER_BYTES or headers > _HEADERS:
                raise BadArchive(
                    f"The tar has an extended header of more than {_HEADER_BYTES} bytes, or more than "
                    f"{_HEADERS} of them before one file. {_AGAIN}"
                )
            extended |= _records(header.kind, await reader.read(size))
        else:
            header = header.extended_by(extended)
            extended, headers = {}, 0
            name = header.name.decode(errors="surrogateescape")
            size = 0 if header.kind == _DIRECTORY else header.size  # of a directory, room to be reserved
            if header.kind not in _REGULAR | {_DIRECTORY}:
                raise _not_a_file(name)
            is_directory = size == 0 and (header.kind == _DIRECTORY or name.endswith("/"))
            yield None if is_directory else name, reader.pieces(size)
        await reader.read(-size % _BLOCK_BYTES)
    async for piece in reader.rest():
        if bytes(piece).strip(b"\0"):
            raise BadArchive(
                "Something follows the end of the tar, perhaps a second one. Make one tar of all files, or "
                "send several batches."
            )


def _records(kind: bytes, data: bytes) -> dict[bytes, bytes]:
    """Take an extended header apart: GNU's holds a name, that of pax records such as `12 path=a.b`."""
    if kind == _LONG_NAME:
        return {b"path": _text(data)}
    if kind != _PAX:
        return {}
    records = {}
    start = 0
    while start < len(data):
        space = data.find(b" ", start)
        if space <= start:
            raise BadArchive(_DAMAGED)
        end = start + _whole(data[start:space], 10)
        if not space < end <= len(data):
            raise BadArchive(_DAMAGED)
        key, _, value = data[space + 1 : end - 1].partition(b"=")
        if key.startswith(b"GNU.sparse."):
            raise _not_a_file(value.decode(errors="replace"))
        if key in _USED_RECORDS:
            records[key] = value
        start = end
    return records


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _octal(field: bytes) -> int:
    if field[0] == _IS_BINARY:  # GNU's, for numbers that are too large otherwise
        return int.from_bytes(field[1:])
    return _whole(_text(field).strip() or b"0", 8)


def _whole(digits: bytes, base: int) -> int:
    if not _DIGITS[base].fullmatch(digits):  # Python's numbers may also have signs and underscores
        raise BadArchive(_DAMAGED)
    return int(digits, base)

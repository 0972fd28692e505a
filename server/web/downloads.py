"""Downloads: send a file to a client in pieces, as fast as it takes them."""

import os
from collections.abc import AsyncIterator
from io import FileIO

#: How much of a file is read for one write to the client, in bytes.
_PIECE_BYTES = 1 << 18


async def pieces(file: FileIO, start: int, end: int) -> AsyncIterator[bytes]:
    """Iterate over the content of a file, from one byte to before another."""
    for offset in range(start, end, _PIECE_BYTES):
        yield os.pread(file.fileno(), min(_PIECE_BYTES, end - offset), offset)

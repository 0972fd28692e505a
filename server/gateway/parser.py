"""The parser: gunicorn's, with an end to its turns and a limit on the whole head."""

import re

from gunicorn.asgi.parser import InvalidHeader, LimitRequestHeaders, PythonProtocol

from server.gateway.turns import Turns

#: The longest head, in bytes, with the trailer fields of a chunked body. gunicorn limits each line only.
_MAX_HEAD_BYTES = 1 << 16

#: How much of a head is parsed at once, in fields and in bytes: the rest takes turns, as chunks do.
_SHORT_HEAD_FIELDS = 32
_SHORT_HEAD_BYTES = 1 << 12

#: RFC 9110, section 5.6.2. gunicorn looks at one byte after the other.
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

#: What is no part of a value: all controls but the tab (RFC 9110, section 5.5).
_NOT_IN_VALUES = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class Parser(PythonProtocol):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's parser in Python, which stops between two lines when its turn is over.

    Args:
        turns: of the worker.
        options: gunicorn's.

    Attributes:
        is_stopped: whether there may be more to parse, and `feed` has to be called again for it.
    """

    __slots__ = ("_head_bytes", "_turns", "is_stopped")

    def __init__(self, turns: Turns, **options: object) -> None:
        super().__init__(**options)
        self._turns = turns
        self._head_bytes = 0
        self.is_stopped = False

    @property
    def held_bytes(self) -> int:
        """How much has arrived and is not parsed yet."""
        return len(self._buffer)

    def hold(self, data: bytes | memoryview) -> None:
        """Take what has arrived, for a later call of `feed`."""
        self._buffer += data

    def feed(self, data: bytes = b"") -> None:
        """Parse what is held, and more.

        Raises:
            ParseError: it is no request, or beyond a limit.
        """
        self.is_stopped = False
        super().feed(data)

    def reset(self) -> None:
        """Be ready for the next request."""
        super().reset()
        self._head_bytes = 0
        self.is_stopped = False

    def _find_line(self, limit: int, error: Exception) -> int:
        """Find the end of the next line, or say that there is none yet: gunicorn then stops in time."""
        is_chunked = self._state == "chunked"
        takes_turns = (
            is_chunked or self._header_count >= _SHORT_HEAD_FIELDS or self._head_bytes >= _SHORT_HEAD_BYTES
        )
        if takes_turns and self._turns.is_over:
            self.is_stopped = True
            return -1
        end: int = super()._find_line(min(limit, _MAX_HEAD_BYTES), error)
        if end < 0:
            return end
        if takes_turns:
            self._turns.count_line(end)
        if not is_chunked or self._chunk_state == "trailer":
            self._head_bytes += end + len(b"\r\n")
            if self._head_bytes > _MAX_HEAD_BYTES:
                raise LimitRequestHeaders(f"the header fields are longer than {_MAX_HEAD_BYTES} bytes")
            if is_chunked and end:
                self._check_trailer(bytes(self._buffer[:end]))
        return end

    def _check_trailer(self, line: bytes) -> None:
        """Want a field (RFC 9112, section 7.1.2): gunicorn looks for forbidden names only."""
        name, colon, value = line.partition(b":")
        if not (colon and self._is_valid_token(name)) or self._has_invalid_header_chars(value.strip(b" \t")):
            raise InvalidHeader("a line of the trailer is no field")

    def _is_valid_method(self, method: bytes) -> bool:
        """Take every token (RFC 9110, section 9.1): gunicorn wants 3 to 20 bytes and no small letters.

        Those that no resource has get 501 once the head is complete.
        """
        return self._is_valid_token(method)

    def _is_valid_token(self, data: bytes) -> bool:
        return _TOKEN.fullmatch(data) is not None

    def _has_invalid_header_chars(self, value: bytes) -> bool:
        return _NOT_IN_VALUES.search(value) is not None

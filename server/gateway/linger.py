"""Lingering close: ends a connection so that the client can still read the last response.

Closing a socket with unread bytes in its buffer, such as the rest of a refused upload, makes the kernel reset
the connection, and the reset overtakes the response. So the server ends its own side only and goes on reading
for a moment.

Source: RFC 9112, section 9.6.
"""

#: How long a connection that the server closes is still read from, in seconds.
LINGER_S = 2.0


class LingeringClose:
    """The lingering close of one connection.

    Attributes:
        is_begun: whether the server's side has ended: whatever arrives from then on is discarded.
    """

    __slots__ = ("is_begun",)

    def __init__(self) -> None:
        self.is_begun = False

    def is_needed(self, *, has_request: bool, is_body_complete: bool, is_last_request: bool) -> bool:
        """Whether the client may still be sending.

        Args:
            has_request: whether the head of a request has arrived.
            is_body_complete: whether its whole body has, too.
            is_last_request: whether the client has said that it sends no other one.
        """
        return not self.is_begun and has_request and not (is_body_complete and is_last_request)

    def begin(self, now_s: float) -> float:
        """Begin, and return when to close, in seconds of the same clock."""
        self.is_begun = True
        return now_s + LINGER_S

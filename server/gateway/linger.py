"""Lingering close: ends a connection so that the client can still read the last response.

Closing a socket with unread bytes in its buffer, such as the rest of a refused upload, makes the kernel reset
the connection, and the reset overtakes the response. So the server ends its own side only and goes on reading
for a moment.

Source: RFC 9112, section 9.6.
"""

#: How long a connection that the server closes is still read from, in seconds.
LINGER_S = 2.0

#: How long the rest of a long body is left unread before it is discarded, in seconds.
LINGER_UNREAD_S = 0.3


class LingeringClose:
    """The lingering close of one connection.

    Attributes:
        is_begun: whether the server's side has ended: whatever arrives from then on is discarded.
    """

    __slots__ = ("is_begun",)

    def __init__(self) -> None:
        self.is_begun = False

    def is_needed(self, *, has_head: bool, is_refused: bool, is_body_complete: bool, is_last: bool) -> bool:
        """Whether the client may still be sending.

        Args:
            has_head: whether the head of a request has arrived.
            is_refused: whether a request was refused, perhaps in the middle of its head.
            is_body_complete: whether a whole body has arrived.
            is_last: whether the client has said that it sends no other request.
        """
        if self.is_begun:
            return False
        return not (is_body_complete and is_last) if has_head else is_refused

    def begin(self, now_s: float) -> float:
        """Begin, and return when to close, in seconds of the same clock."""
        self.is_begun = True
        return now_s + LINGER_S

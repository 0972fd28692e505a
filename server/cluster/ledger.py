"""The ledger: shared memory that says what each client uses of the cluster, readable from any process.

The arbiter makes it before it forks. One page per worker, written by its owner alone, as the rows of the
scoreboard are (ADR 25). A client is the hash of its address: nothing has to be found, made or forgotten.
"""

import mmap
import secrets
from collections.abc import Iterator, Sequence
from enum import IntEnum, auto
from hashlib import blake2b
from ipaddress import IPv6Address, ip_address

from server.cluster.scoreboard import ROWS

#: Into how many places clients are hashed; two in one place count as one client.
BUCKETS = 2048

#: How much of an IPv6 address is one client's: the rest is its own to choose (RFC 4291, section 2.5.4).
_IPV6_PREFIX = 64

#: By which part the spent engine time shrinks with each call of `Page.forget`, about once a second. What a
#: client did more than a few seconds ago says little about what it does now.
_FORGOTTEN = 2


class Field(IntEnum):
    """What is counted for each client."""

    CONNECTIONS = 0
    HELD_BYTES = auto()  # of images being received, worked on or sent, and booked for results to come
    UPLOAD_BYTES = auto()  # of these, those of uploads
    PREDICTED_US = auto()  # predicted engine time that its admitted requests still need
    LIKELY_MORE_US = auto()  # what its uploads are likely to need beyond that, until their rate is known
    SPENT_US = auto()  # engine time that it has used in the last seconds
    WAITING = auto()  # requests whose upload is there, and that an engine has not finished yet


_STRIDE = BUCKETS + 1  # cells of a field: one per bucket, and then their sum
_PAGE = len(Field) * _STRIDE


class Account:
    """What one client uses, as one worker books it; `account.add(Field.HELD_BYTES, 5)`.

    Args:
        ledger: where all workers book.
        page: of the worker.
        bucket: of the client.
    """

    __slots__ = ("_ledger", "_page", "bucket")

    def __init__(self, ledger: "Ledger", page: memoryview, bucket: int) -> None:
        self._ledger = ledger
        self._page = page
        self.bucket = bucket

    def add(self, field: Field, more: int) -> None:
        """Count more for the client from now on, or less."""
        first = field * _STRIDE
        self._page[first + self.bucket] += more
        self._page[first + BUCKETS] += more

    def used(self, field: Field) -> int:
        """What all workers count for the client."""
        return self._ledger.used(self.bucket, field)

    def used_here(self, field: Field) -> int:
        """What this worker counts for the client."""
        return self._page[field * _STRIDE + self.bucket]


class Page:
    """What one worker books, for all of its clients.

    Args:
        ledger: the whole of it.
        cells: those of the worker.
    """

    __slots__ = ("_cells", "ledger")

    def __init__(self, ledger: "Ledger", cells: memoryview) -> None:
        self.ledger = ledger
        self._cells = cells

    def account(self, client: str) -> Account:
        """Return the account of a client.

        Args:
            client: its address.
        """
        return Account(self.ledger, self._cells, self.ledger.bucket(client))

    def forget(self) -> None:
        """Let half of the spent engine time be forgotten; to be called once a second."""
        first = Field.SPENT_US * _STRIDE
        if self._cells[first + BUCKETS]:
            left = [spent // _FORGOTTEN for spent in self._cells[first : first + BUCKETS]]
            for place, spent in enumerate((*left, sum(left)), first):
                self._cells[place] = spent


class Ledger:
    """All pages.

    Args:
        rows: how many workers there can be at once.
    """

    def __init__(self, rows: int = ROWS) -> None:
        # The first cell says how many pages have been opened: the kernel gives memory to no other.
        self._memory = memoryview(mmap.mmap(-1, (1 + rows * _PAGE) * 8)).cast("q")
        self._salt = secrets.token_bytes(16)  # so that a client cannot choose whom it shares a bucket with

    def open(self, row: int) -> Page:
        """Open the page of a worker about to be forked; in the arbiter.

        Args:
            row: the index of its row of the scoreboard.
        """
        self._memory[0] = max(self._memory[0], row + 1)
        return Page(self, self._page(row))

    def clear(self, row: int) -> None:
        """Take back all that a worker had booked, when it has died; in the arbiter."""
        self._page(row)[:] = memoryview(bytes(_PAGE * 8)).cast("q")

    def bucket(self, client: str) -> int:
        """Return the bucket of a client.

        Args:
            client: its address; anything else is hashed as it is.
        """
        digest = blake2b(_key(client).encode(), digest_size=8, key=self._salt).digest()
        return int.from_bytes(digest) % BUCKETS

    def used(self, bucket: int, field: Field) -> int:
        """Add up what all workers count for a client."""
        return sum(self._memory[1 + field * _STRIDE + bucket : self._end : _PAGE])

    def total(self, field: Field) -> int:
        """Add up what all workers count for all clients."""
        return self.used(BUCKETS, field)

    def by_client(self, *fields: Field) -> Sequence[int]:
        """Add fields up, over all workers, for each bucket; it takes 0.1 ms per worker."""
        return [sum(cells) for cells in zip(*self._columns(fields), strict=True)] or [0] * BUCKETS

    def _columns(self, fields: Sequence[Field]) -> Iterator[memoryview]:
        for page in range(1, self._end, _PAGE):
            for field in fields:
                first = page + field * _STRIDE
                if self._memory[first + BUCKETS]:  # else there is nothing to add
                    yield self._memory[first : first + BUCKETS]

    @property
    def _end(self) -> int:
        return 1 + self._memory[0] * _PAGE

    def _page(self, row: int) -> memoryview:
        return self._memory[1 + row * _PAGE : 1 + (row + 1) * _PAGE]


def _key(client: str) -> str:
    """Return what all addresses of one client have in common."""
    try:
        address = ip_address(client)
    except ValueError:
        return client
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(int(address) >> (128 - _IPV6_PREFIX))

"""The janitor: removes what has expired, and files that no job knows; one over all machines."""

import asyncio
import time

from server.errors import StoreAway
from server.jobs.blobs import Blobs
from server.jobs.store import Store
from server.logs import get_logger

log = get_logger(__name__)

#: How often there is a round, in seconds, and how many groups one removes at most.
_ROUND_S = 10.0
_MOST = 1000

#: For how long the janitor stays the janitor without a word, in seconds: three rounds.
_LEASE_S = 30.0

#: After so many seconds of silence the process that was receiving a batch is taken for dead.
_SILENT_S = 60.0

#: How often the files are compared with the store, in seconds, and how old those are that may be orphans: a
#: submission writes its file first.
_SEARCH_S = 3600.0
_ORPHAN_S = 86400.0


class Janitor:
    """Keeps house for all machines, while no other one does.

    Files go first, then what the store knows of them: after a crash in between the next round does it again.

    Args:
        store: names what has expired.
        blobs: where the files are.
    """

    def __init__(self, store: Store, blobs: Blobs) -> None:
        self._store = store
        self._blobs = blobs
        self._searched_s = float("-inf")

    async def run(self) -> None:
        """Make rounds until cancelled."""
        while True:
            try:
                await self.make_round()
            except StoreAway:
                await self._store.wait_until_back()
            except OSError as error:
                log.error("janitor_failed", error=str(error))  # noqa: TRY400 it says all
            await asyncio.sleep(_ROUND_S)

    async def make_round(self) -> None:
        """Make one round, if this is the janitor."""
        kept = await self._store.sweep(_MOST, _LEASE_S, _SILENT_S)
        if kept is None:
            return
        fence, groups = kept
        for group in groups:
            try:
                await self._blobs.remove_group(group)
            except OSError as error:  # the others still expire
                log.error("group_not_removed", group=group, error=str(error))  # noqa: TRY400 it says all
                continue
            if not await self._store.expire(group, fence):
                return
        if groups:
            log.info("expired", groups=len(groups))
        now_s = time.monotonic()
        if now_s - self._searched_s >= _SEARCH_S:
            self._searched_s = now_s
            await self._remove_orphans()

    async def _remove_orphans(self) -> None:
        oldest_s = time.time() - _ORPHAN_S
        removed = 0
        async for group, changed_s in self._blobs.groups():
            if changed_s < oldest_s and not await self._store.has(group):
                await self._blobs.remove_group(group)
                removed += 1
        if removed:
            log.info("orphans_removed", groups=removed)

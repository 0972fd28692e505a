"""Preferences: what a client asks for in `Prefer` (RFC 7240)."""

import re
from dataclasses import dataclass
from typing import Self

from falcon.asgi import Request

from server.web.parameters import whole

#: The longest time that an answer is held back, in seconds: proxies in front often give up after a minute.
_LONGEST_WAIT_S = 50

#: What stands between two commas; quoted text may hold some. Possessive: it is never read twice.
_PREFERENCE = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*+"?)++', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a client prefers; what we do not know is left out, as the RFC wants it.

    Attributes:
        is_async: `respond-async`: an answer at once, before the work is done.
        wait_s: `wait`: how long the answer may be held back, in seconds.
    """

    is_async: bool = False
    wait_s: int = 0

    @classmethod
    def of(cls, req: Request) -> Self:
        """Read the preferences of a request; of one that is there more than once the first counts."""
        given: dict[str, str] = {}
        for preference in _PREFERENCE.findall(req.get_header("Prefer", default="")):
            name, _, value = preference.partition(";")[0].partition("=")
            given.setdefault(name.strip().lower(), value.strip().removeprefix('"').removesuffix('"'))
        return cls("respond-async" in given, min(whole(given.get("wait", "")) or 0, _LONGEST_WAIT_S))

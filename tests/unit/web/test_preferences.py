"""`Prefer` is read as RFC 7240 says, and what is not known or not well-formed in it is left out."""

import pytest
from falcon.testing import create_asgi_req

from server.web.preferences import Preferences


def preferences(value: str | None) -> Preferences:
    return Preferences.of(create_asgi_req(headers={} if value is None else {"Prefer": value}))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, Preferences()),
        ("", Preferences()),
        # The examples of the RFC, sections 2, 4.1 and 4.3.
        ("respond-async, wait=10", Preferences(is_async=True, wait_s=10)),
        ("respond-async, wait=100, handling=lenient", Preferences(is_async=True, wait_s=50)),
        ("foo; bar", Preferences()),
        ('foo; bar=""', Preferences()),
        ('foo=""; bar', Preferences()),
        ('return=minimal; foo="some parameter"', Preferences()),
        # Names are compared without their case, spaces do not count, and of two the first does.
        ("Respond-Async", Preferences(is_async=True)),
        ("  wait = 5 ,respond-async;x=y", Preferences(is_async=True, wait_s=5)),
        ('wait="7"', Preferences(wait_s=7)),
        ("wait=3, wait=4", Preferences(wait_s=3)),
        ("respond-async=", Preferences(is_async=True)),
        # Quoted text is no preference.
        ('foo="respond-async, wait=5"', Preferences()),
        ('foo; bar="a, wait=5, respond-async"', Preferences()),
        (r'foo="a\", wait=5"', Preferences()),
        ('foo; bar="a, b", wait=5', Preferences(wait_s=5)),
        # Values that a wait cannot have.
        *((f"wait={value}", Preferences()) for value in ("", "-1", "1.5", "x", "0x5", "\xb2", "9" * 10)),
        ("wait", Preferences()),
        ("respond-asynchronously, await=5", Preferences()),
    ],
)
def test_a_preference_is_read(value: str | None, expected: Preferences) -> None:
    assert preferences(value) == expected


def test_a_long_header_is_read_in_one_pass() -> None:
    for piece in (" ", '"', "a", "a ", 'a="', "=", ",", ", ", "\\"):
        for end in ("", '"', ",", "\0"):
            preferences("a," + piece * (100_000 // len(piece)) + end)

"""The circuit breaker of the store closes again, whatever a probe meets."""

from structlog.testing import capture_logs
from support.asgi import run

from server.jobs.store import _Breaker


def test_a_bug_in_a_probe_does_not_keep_the_breaker_open() -> None:
    async def test() -> None:
        faults = [ZeroDivisionError("of ours")]

        async def probe() -> None:
            if faults:
                raise faults.pop()

        breaker = _Breaker(probe, 1.0, "store_away", "store_back")
        breaker.open(ConnectionResetError("by peer"))
        await breaker.wait()
        assert not faults

    with capture_logs() as events:
        run(test())
    assert [event["event"] for event in events] == ["store_away", "part_failed", "store_back"]
